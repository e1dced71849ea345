"""The SLO classes that requests are resolved by: those of the settings, or of classes.toml in their place.

The file is read again when it changes; one that cannot be used changes nothing. A candidate's is checked here, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gateway import settings_errors, slo
from gateway.catalog import candidate_classes as disk
from gateway.errors import RepositoryError
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.slo import SloClass

log = logging.getLogger(__name__)

Classes = Mapping[str, SloClass]
FILE = "classes"  # as a label
_CLASSES = TypeAdapter(dict[str, SloClass], config=ConfigDict(extra="forbid", allow_inf_nan=False))


class ClassesFile:
    """Keeps `service.classes` in step with the file in the model repository."""

    def __init__(self, service: AnswerService, followers: Followers = NOBODY) -> None:
        self._service = service
        self._followers = followers
        self._repository = service.settings.model_repository
        self._seen: bytes | None = None
        self.refused: str | None = None  # why the file is not used

    async def look(self) -> None:
        """Look once at the file, and use it if it changed and is sound."""
        try:
            raw = await asyncio.to_thread(disk.read_bytes, self._repository, disk.CLASSES)
            if raw == self._seen and self.refused is None:
                return
            classes = self._service.settings.classes
            if raw is not None:
                path = self._repository / disk.CLASSES
                tables, _ = disk.parse(raw, path)
                classes = dict(in_place(tables, self._service.settings, path))
        except RepositoryError as exc:
            self._refuse(str(exc))
            return
        self._seen, self.refused = raw, None
        self._service.metrics.note_reload(FILE, loaded=True)
        if classes != self._service.classes:
            self._service.classes = classes
            self._followers.reclassed()
            log.info("classes: %s", "those of the settings" if raw is None else disk.CLASSES)

    def _refuse(self, why: str) -> None:
        if why != self.refused:
            log.error("classes refused, the previous ones stay in use: %s", why)
            self._service.metrics.note_reload(FILE, loaded=False)
        self.refused = why


def in_place(tables: Mapping[str, Any], settings: Settings, path: Path) -> Classes:
    """Return all classes, those of a file in place of the settings'. Raises: RepositoryError."""
    if unknown := tables.keys() - settings.classes.keys():
        known = ", ".join(sorted(settings.classes))
        raise RepositoryError(
            f"{path}: classes.{min(unknown)}: the settings have no such class, only {known}; a new one needs a restart"
        )
    try:
        found = _CLASSES.validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as exc:
        errors = [{**e, "loc": ("classes", *e["loc"])} for e in exc.errors()]
        where, what = settings_errors.describe(errors, Settings.model_fields)
        raise RepositoryError(f"{path}: {where}: {what}") from exc
    longest_ms = slo.longest_timeout_ms(settings.classes)
    for name, each in found.items():
        if problem := slo.class_problem(name, each):
            raise RepositoryError(f"{path}: classes.{problem}")
        if (each.timeout_ms or 0.0) > longest_ms:
            raise RepositoryError(
                f"{path}: classes.{name}.timeout_ms is {each.timeout_ms:g}; more than {longest_ms:g} needs a restart:"
                " set it in the settings"
            )
    return {**settings.classes, **found}
