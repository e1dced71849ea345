"""Keeps the latency profiles measured on this host between starts, one small file for each model and host.

A missing profile is measured again. A kept profile is used after a probe, like one of the catalog that was
measured on this host. Never raises for a file: one that cannot be read or written counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gateway.catalog.schema import Cell, Host, Profile, Variant
from gateway.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    # It holds for everything inside, too.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    profile: Profile


_ADAPTER = TypeAdapter(_File)


class KeptProfiles:
    """The profiles in a folder; without a folder none."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the kept profiles of this host; with a remote Triton, nothing is kept."""
        folder = settings.profiles_folder
        if settings.triton_url or not folder:
            return cls()
        try:
            return cls(Path(folder).expanduser())
        except RuntimeError:  # a user without a home, as in some containers
            return cls()

    def of_model(self, variant: Variant, here: Host) -> Profile | None:
        """Return the profile kept of this model file on this host; None: there is none."""
        if self._folder is None:
            return None
        try:
            profile = _ADAPTER.validate_json(self._path(variant, here).read_bytes()).profile
        except (OSError, ValidationError):
            return None
        usable = profile.host == here and _covers(profile.cells, variant.profile.cells)
        return profile if usable else None

    def keep(self, variant: Variant, profile: Profile) -> None:
        """Write the profile, in place of an earlier one."""
        if self._folder is None:
            return
        path = self._path(variant, profile.host)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(_ADAPTER.dump_json(_File(profile), indent=1))
            os.replace(part, path)
        except OSError as exc:
            log.debug("%s: the profile is not kept: %s", path, exc)
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def _path(self, variant: Variant, host: Host) -> Path:
        """Return the file: its name tells models and hosts apart."""
        assert self._folder is not None
        where = hashlib.sha256(json.dumps(asdict(host), sort_keys=True).encode()).hexdigest()
        return self._folder / f"{variant.sha256[:16]}-{where[:12]}.json"


def _covers(cells: tuple[Cell, ...], known: tuple[Cell, ...]) -> bool:
    """Say whether the cells reach as far as the known ones, with times above 0."""
    longest = max((c.bucket for c in cells if c.batch == 1), default=0)
    return longest >= max(c.bucket for c in known) and all(
        0 < c.p50_ms <= c.p95_ms <= c.p99_ms for c in cells
    )


NONE_KEPT = KeptProfiles()
