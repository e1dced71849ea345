"""Who follows what the watcher, healing and background tasks of this process find out.

A gateway of one process follows itself: nothing is to do. The parent of several workers tells them.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.request.rollout import Running
from gateway.serving_set import ServingSet


class Followers:
    """Nobody."""

    def serve(self, serving: ServingSet) -> None:
        """Follow a set that is served from now on."""

    def tried(self, running: Running | None) -> None:
        """Follow a candidate that is tried from now on, or its set that was checked again; None: none is."""

    def reclassed(self) -> None:
        """Follow that the service has other SLO classes."""

    def admitted(self) -> None:
        """Follow which of several model servers are asked for what."""

    def gone(self, variant: str) -> None:
        """Follow that no instance of a variant is left."""

    def healed(self, server: str, variant: str) -> None:
        """Follow that a variant that had lost an instance is loaded again."""

    def external(self, windows: Mapping[str, int]) -> None:
        """Follow the load of other gateways."""

    async def count_answers(self) -> None:
        """Learn what the model servers answered to followers: it is no load of other gateways."""


NOBODY = Followers()
