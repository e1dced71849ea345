"""Progress of a long loop: log lines with the time left; none for a short loop."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)

EVERY_S = 15.0


class Progress:
    """Counts steps from any thread."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._done = 0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._done += 1
            now = time.monotonic()
            if now - self._said < EVERY_S:
                return
            self._said = now
            left_s = (now - self._began) / self._done * (self._total - self._done)
            log.info("%s: %d/%d, %.0f s left", self._name, self._done, self._total, left_s)
