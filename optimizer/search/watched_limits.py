"""Limits that somebody may change in the study file while a search runs.

Source: SigOpt's metric thresholds, which are the only part of a metric that a running experiment lets one
change: https://docs.sigopt.com/core-module-api-references/api-endpoints/experiment-update
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from optimizer.study import config as configs
from optimizer.study.config import ConfigError, SearchConfig
from optimizer.study.trials import Limits

log = logging.getLogger(__name__)


@dataclass
class WatchedLimits:
    """The limits of a study file; it is read again when it was written."""

    path: Path
    _written_ns: int = 0
    _limits: Limits = field(default_factory=Limits)

    def __call__(self) -> Limits:
        """Return the limits as the file has them now; of a file that cannot be read, the last ones."""
        written_ns = self._stamp()
        if written_ns != self._written_ns:
            self._written_ns = written_ns
            try:
                self._limits = (configs.read(self.path).search or SearchConfig()).limits
            except ConfigError as exc:
                log.warning("the search goes on with the limits that it has: %s", exc)
        return self._limits

    def _stamp(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:  # an editor may replace the file
            return self._written_ns
