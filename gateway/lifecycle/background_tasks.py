"""Background tasks: check replicas that are back, poll the external load, keep used variants loaded.

Runs beside the request path and never answers a question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gateway.backends.pool import Replicas
from gateway.clock import now_ms
from gateway.errors import BertierError
from gateway.lifecycle.followers import NOBODY, Followers
from gateway.lifecycle.preparation import capacity, golden_windows, readmit
from gateway.request.service import AnswerService

log = logging.getLogger(__name__)

REPLICA_CHECK_MS = 1_000.0
KEEP_LOADED_BUDGET_MS = 30_000.0
KEEP_LOADED_CALLS = (
    3  # calls to a variant within the time after which another gateway would unload it
)


class BackgroundTasks:
    """Keeps replicas and the latency model in step with the model servers."""

    def __init__(self, service: AnswerService, followers: Followers = NOBODY) -> None:
        self._followers = followers
        self._service = service
        self._replicas = service.backend if isinstance(service.backend, Replicas) else None

    async def run(self) -> None:
        """Run the tasks that the settings need, forever."""
        settings = self._service.settings
        tasks = []
        if self._replicas is not None:
            tasks.append(_for_ever(self.check_replicas, REPLICA_CHECK_MS))
        if settings.triton_url and settings.others_poll_ms:
            tasks.append(_for_ever(self.poll_external_load, settings.others_poll_ms))
        if self._service.backend.name != "embedded" and settings.unload_after_ms:
            tasks.append(_for_ever(self.keep_loaded, settings.unload_after_ms / KEEP_LOADED_CALLS))
        await asyncio.gather(*tasks)

    async def check_replicas(self) -> None:
        """Check the servers that came back, and update the capacity of the latency model."""
        serving, replicas = self._service.serving, self._replicas
        if serving is None or replicas is None:
            return
        for each in (serving, *self._service.candidates()):
            if any(replicas.unchecked(each.catalog.variant(name)) for name in each.trust):
                await readmit(each, replicas)
        serving.latency.resize(*capacity(serving.catalog, replicas))
        self._followers.admitted()

    async def poll_external_load(self) -> None:
        """Update the external load of the latency model: our work waits behind it."""
        await self._followers.count_answers()
        try:
            external = await self._service.backend.external_load()
        except BertierError:
            external = {}  # a server that cannot be reached has no load
        if self._service.serving is not None:
            windows = {name: round(n) for name, n in external.items()}
            self._service.serving.latency.set_external(windows, now_ms())
            self._followers.external(windows)

    async def keep_loaded(self) -> None:
        """Ask every routed variant, so that other gateways do not unload it as idle."""
        serving, backend = self._service.serving, self._service.backend
        if serving is None:
            return
        for each in (serving, *self._service.candidates()):
            for name in each.trust:
                variant = each.catalog.variant(name)
                windows = golden_windows(variant, each.catalog, serving.encoder)[0]
                with suppress(BertierError):  # the watcher handles it
                    await backend.infer(variant, windows, KEEP_LOADED_BUDGET_MS)


async def _for_ever(do: Callable[[], Awaitable[None]], every_ms: float) -> None:
    while True:
        try:
            await do()
        except Exception:  # keep serving
            log.exception("a background task failed; it continues")
        await asyncio.sleep(every_ms / 1e3)
