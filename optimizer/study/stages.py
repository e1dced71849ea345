"""A stage: a folder that is finished when its manifest exists and has the same inputs.

The manifest is written last, so a killed stage runs again and a finished one is skipped. Where the run folder
is kept in a store, a finished stage goes there, and comes from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.study import provenance, store, workers

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.pt"  # where a killed stage resumes
LOSSES = "losses.json"  # loss curve of a training
LOCK = "stage.lock"
STARTED = "started"  # holds the key of the inputs of an unfinished run
_REPORTED: set[str] = set()  # stages that this process has logged


def run_stage(
    folder: Path, inputs: dict[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the results of a stage; run it only if it is not finished for these inputs.

    One process at a time works on a stage: another waits, and takes what the first one found.
    """
    key = _key_of(inputs)
    if (done := _done(folder, key)) is not None:
        _keep(folder, key)
        return done
    folder.mkdir(parents=True, exist_ok=True)
    waiting = f"{folder}: waiting, another process works on this stage"
    with workers.in_turn(folder / LOCK, waiting):
        _fetch(folder, key)
        found = _done(folder, key) or _worked(folder, key, inputs, work)
        _keep(folder, key)
    return found


def fetch(folder: Path, inputs: Callable[[], dict[str, Any]]) -> Path:
    """Return the folder of a stage, with its files if the store has them and they are not here yet."""
    if store.of(folder) is not None:
        _fetch(folder, _key_of(inputs()))
    return folder


def _key_of(inputs: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def _key_in(folder: Path) -> str | None:
    return (read_manifest(folder) or {}).get("key")


def _key_there(folder: Path) -> str | None:
    """Return the key of the stage that the store has; None: it has none, or there is no store."""
    kept = store.of(folder)
    found = kept and kept.read(folder / MANIFEST)
    return json.loads(found)["key"] if found else None


def _fetch(folder: Path, key: str) -> None:
    kept = store.of(folder)
    if kept is not None and _key_in(folder) != key and _key_there(folder) == key:
        log.info("%s: fetched from %s", _named(folder), kept.url)
        kept.fetch(folder, last=MANIFEST)


def _keep(folder: Path, key: str) -> None:
    """Copy a finished stage to the store, unless it is there; the stages inside it keep themselves."""
    kept = store.of(folder)
    if kept is None or _key_there(folder) == key:
        return
    inner = [path.parent for path in folder.glob(f"*/**/{MANIFEST}")]
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in (MANIFEST, CHECKPOINT, LOCK, STARTED)
        and path.suffix != ".part"
        and not any(path.is_relative_to(stage) for stage in inner)
    ]
    kept.keep([*files, folder / MANIFEST])


def _done(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the results of a stage finished for these inputs, else None."""
    done = read_manifest(folder)
    if not done or done["key"] != key:
        return None
    _report_skipped(_named(folder))
    return dict(done["results"])


def _report_skipped(name: str) -> None:
    """Log a skipped stage once: later stages read the results of earlier ones, often."""
    if name not in _REPORTED:
        _REPORTED.add(name)
        log.info("%s: done before, skipped", name)


def _named(folder: Path) -> str:
    """Return a stage's name with its folder's, which is a variant's where every variant has such a stage."""
    return f"{folder.parent.name}/{folder.name}"


def _worked(
    folder: Path, key: str, inputs: dict[str, Any], work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Run a stage and write its manifest."""
    _drop_stale_checkpoint(folder, key)
    _REPORTED.add(_named(folder))
    log.info("%s: started", _named(folder))
    ran_on, began = provenance.ran_on(), time.monotonic()
    results = work()
    manifest = {
        "key": key,
        "inputs": inputs,
        "results": results,
        "ran_on": ran_on,
        "seconds": round(time.monotonic() - began, 3),  # of the last run, after a kill
    }
    write_json(folder / MANIFEST, manifest)
    return results


def _drop_stale_checkpoint(folder: Path, key: str) -> None:
    """Remove a checkpoint that was written for other inputs."""
    started = folder / STARTED
    if started.exists() and started.read_text() != key:
        (folder / CHECKPOINT).unlink(missing_ok=True)
    started.write_text(key)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def write_json(path: Path, value: Any) -> None:
    """Write `value` by one rename: a reader sees the old file or the new one.

    Several processes may: workers of a search share its folder.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")
    os.replace(part, path)
