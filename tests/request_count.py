"""How many function calls one served request takes: a measure of its CPU time that a busy machine does not change.

`python -m tests.request_count` prints the counts, with `--record` it writes them beside as the numbers to keep.
A `POST /v1/answer` goes through the whole HTTP app in the event loop that serves; a fake answers at the seam to the model server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from gateway.app import new_loop
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.asgi import QUESTION_BODY, Caller, make_app
from tests.fakes import FakeBackend, serving_set, small_and_large

RECORDED = Path(__file__).parent / "gateway" / "request_count.json"
# A target that a slow host meets, too: on a busy one the decision must not become another.
HEADERS = {"content-type": "application/json", "accept-encoding": "gzip", "slo-latency-ms": "60000"}
WARM_UP, COUNTED = 50, 31  # predictions have settled by then
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # another one inlines other calls


def count() -> dict[str, int]:
    """Return the calls of one request: of functions in Python, and of those in C."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_count())


async def _count() -> dict[str, int]:
    service = AnswerService(FakeBackend(), Settings(), Metrics(), draw=lambda: 1.0)
    service.serving = serving_set(small_and_large())
    app = make_app(service)
    for _ in range(WARM_UP):
        await _ask(app)
    found = [await _counted(app) for _ in range(COUNTED)]
    return {
        name: int(statistics.median(each[event] for each in found))
        for name, event in (("python", "call"), ("c", "c_call"))
    }


async def _counted(app: Any) -> Counter[str]:
    calls: Counter[str] = Counter()

    def note(_: FrameType, event: str, __: Any) -> None:
        calls[event] += 1

    sys.setprofile(note)
    try:
        await _ask(app)
    finally:
        sys.setprofile(None)
    return calls


async def _ask(app: Any) -> None:
    caller = Caller("/v1/answer", HEADERS)
    caller.send(json.dumps(QUESTION_BODY).encode())
    await app(caller.scope, caller.inbox.get, caller.sent.put)
    assert caller.sent.get_nowait()["status"] == 200


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.request_count", description=__doc__)
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    found = count()
    print(json.dumps({PYTHON: found}))
    if parser.parse_args().record:
        known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        RECORDED.write_text(json.dumps(known | {PYTHON: found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
