"""The folder of a run: requests.jsonl, summary.json, report.html. Nothing old is left beside new.

A run cannot be continued where it was stopped; a rerun starts anew. Until it has ended whole there
is no summary, so that no figure outlives the run it came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gateway.errors import BertierError
from loadtest.drive.outcomes import Result

REQUESTS, SUMMARY, REPORT = "requests.jsonl", "summary.json", "report.html"


class FolderError(BertierError):
    """A folder that cannot be written to; the message names it."""


class Folder:
    """Where a run is kept. Raises: FolderError, from every method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in (SUMMARY, REPORT, REQUESTS):
                (path / name).unlink(missing_ok=True)
        except OSError as exc:
            raise FolderError(f"{path}: {exc.strerror}; give another --folder") from exc

    def keep(self, results: Iterable[Result]) -> None:
        self._write(REQUESTS, "".join(json.dumps(r.as_json()) + "\n" for r in results))

    def end(self, summary: Mapping[str, Any], page: str) -> None:
        self._write(REPORT, page)
        self._write(SUMMARY, json.dumps(summary, indent=1, sort_keys=True) + "\n")

    def _write(self, name: str, text: str) -> None:
        path, part = self.path / name, self.path / f"{name}.part"
        try:
            part.write_text(text)
            os.replace(part, path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise FolderError(f"{path}: {exc.strerror}; give another --folder") from exc
