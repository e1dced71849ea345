"""Prints the modules that one `POST /v1/answer` enters: `python -m gateway.docs.trace_request`.

Answers the example request twice in this process, without a model server, and traces the second one.
Nothing at run time imports it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
from starlette.types import ASGIApp

from gateway.backends.embedded import EmbeddedBackend
from gateway.catalog import store
from gateway.frontends.http import routes
from gateway.frontends.welcome import EXAMPLE
from gateway.lifecycle import preparation
from gateway.lifecycle.watcher import Watcher
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings

BOOKKEEPING = "gateway.observability"  # metrics, traces and logs


@dataclass
class Trace:
    """The functions of the gateway that a request entered."""

    calls: Counter[str] = field(default_factory=Counter)  # by module, in the order of first entry
    bookkeeping: list[str] = field(default_factory=list)  # calls into BOOKKEEPING from outside
    # Frames are kept, as a coroutine is entered many times and ids of dead frames are used again.
    _seen: dict[int, FrameType] = field(default_factory=dict, repr=False)

    def profile(self, frame: FrameType, event: str, _: Any) -> None:
        """Record a call, as the callback of `sys.setprofile`."""
        module = _module(frame)
        if event != "call" or not module or id(frame) in self._seen:
            return
        self._seen[id(frame)] = frame
        self.calls[module] += 1
        if module.startswith(BOOKKEEPING) and not _caller(frame).startswith(BOOKKEEPING):
            self.bookkeeping.append(f"{module}:{frame.f_code.co_qualname}")


def _module(frame: FrameType) -> str:
    """Return the module of the gateway that a frame runs; "": another library's."""
    name = str(frame.f_globals.get("__name__", ""))
    return name if name.startswith("gateway.") and name != __name__ else ""


def _caller(frame: FrameType) -> str:
    """Return the nearest module of the gateway above a frame."""
    above = frame.f_back
    while above is not None and not _module(above):
        above = above.f_back
    return "" if above is None else _module(above)


async def trace(app: ASGIApp, body: str) -> Trace:
    """Return what the second of two equal requests enters; the first one fills the caches."""
    found = Trace()
    transport = httpx2.ASGITransport(app=app)
    headers = {"content-type": "application/json"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as http:
        (await http.post("/v1/answer", content=body, headers=headers)).raise_for_status()
        sys.setprofile(found.profile)
        try:
            reply = await http.post("/v1/answer", content=body, headers=headers)
        finally:
            sys.setprofile(None)
    reply.raise_for_status()
    return found


async def _trace_example(repository: Path) -> Trace:
    backend = EmbeddedBackend(repository)
    try:
        service = AnswerService(backend, Settings(model_repository=repository), Metrics())
        service.serving = await preparation.prepare(repository, store.read(repository), backend)
        return await trace(routes.create(service, Watcher(service).readiness), EXAMPLE)
    finally:
        await backend.close()


def _report(found: Trace) -> str:
    lines = [f"{calls:4} calls  {module}" for module, calls in found.calls.items()]
    lines.append(f"{len(found.calls)} modules, {found.calls.total()} calls")
    lines += [f"bookkeeping  {call}" for call in found.bookkeeping]
    return "\n".join([*lines, f"{len(found.bookkeeping)} bookkeeping calls"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m gateway.docs.trace_request", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    print(_report(asyncio.run(_trace_example(parser.parse_args().model_repository))))
