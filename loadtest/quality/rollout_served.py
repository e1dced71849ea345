"""A rollout in a real gateway under load: what becomes of a candidate, after how many requests, and what was lost."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from gateway.catalog import store
from gateway.catalog.schema import Certificate
from gateway.catalog.store import Catalog
from loadtest.stack import Stack, fresh_stack
from optimizer.data.question_sets import Example

SERVED = ("minilm-2", "minilm-6")
MIN_F1 = "0.42"  # the floor of minilm-6, the largest of SERVED
PATIENT = {"SLO-Latency-Ms": "10000", "SLO-Min-F1": MIN_F1}
POLL_S = 0.1
PAUSE_S = 0.05  # between two requests: room for comparisons


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate and how it ended."""

    name: str
    result: str  # `withdrawn` or `promoted`; `open`: neither in time
    requests: int
    of_candidate: int
    lost: int  # requests without an answer
    seconds: float
    reason: str
    outcomes: Counter[str] = field(default_factory=Counter)


def only(catalog: Catalog, names: Sequence[str]) -> Catalog:
    """Return a catalog of these variants and the plans that need no other."""
    plans = tuple(p for p in catalog.plans if set(p.variants) <= set(names))
    kept = tuple(replace(p, agreement=None, certificate=_alone(p.certificate)) for p in plans)
    variants = tuple(v for v in catalog.variants if v.name in names)
    return replace(catalog, variants=variants, plans=kept)


def _alone(certificate: Certificate) -> Certificate:
    return replace(certificate, paired=None)  # to a variant that may not be there


def boasting(catalog: Catalog, name: str, floor: float) -> Catalog:
    """Return a catalog of one variant that claims a floor it does not keep."""
    alone = only(catalog, [name])
    direct = alone.direct(name)
    f1 = max(direct.certificate.f1, floor)
    claim = replace(direct.certificate, floor=floor, f1=f1, strata=())
    return replace(alone, plans=(replace(direct, certificate=claim),))


@contextmanager
def gateway_on(
    source: Path, folder: Path, *flags: str, variables: Mapping[str, str]
) -> Iterator[Stack]:
    """Serve some of the models of `source` from a repository in `folder` that may be written."""
    catalog = only(store.read_questions(source), SERVED)
    shutil.copy(source / store.TOKENIZER, folder)
    for variant in catalog.variants:
        shutil.copytree(source / variant.name, folder / variant.name)
    store.write(folder, catalog)
    with fresh_stack(folder, *flags, variables=variables) as stack:
        yield stack


async def tried(
    stack: Stack,
    name: str,
    publish: Callable[[], None],
    examples: Sequence[Example],
    most_s: float,
    headers: Mapping[str, str] = PATIENT,
) -> Trial:
    """Ask one question after the other until the published candidate has ended or the time is up."""
    each_anew = aiohttp.TCPConnector(force_close=True)  # of several workers all answer
    async with aiohttp.ClientSession(stack.http_url, connector=each_anew) as client:
        publish()
        await _until(client, lambda found: bool(found and found["tried"]), most_s)
        began, found = time.monotonic(), Counter[str]()
        ended = asyncio.create_task(
            _until(client, lambda found: bool(found and found["decided"]), most_s)
        )
        questions = itertools.cycle(examples)
        while not ended.done():
            await _ask(client, next(questions), found, headers)
            await asyncio.sleep(PAUSE_S)
        state = ended.result() or {}
    decided = state.get("decided") or ""
    result = decided.partition(":")[0] or "open"
    return Trial(
        name,
        result,
        found.total(),
        found["candidate"],
        found["lost"],
        time.monotonic() - began,
        decided,
        found,
    )


async def _ask(
    client: aiohttp.ClientSession,
    example: Example,
    found: Counter[str],
    headers: Mapping[str, str],
) -> None:
    payload = {"question": example.question, "context": example.context}
    try:
        async with client.post("/v1/answer", json=payload, headers=headers) as reply:
            await reply.read()
            answered = reply.status == 200
            found[reply.headers.get("SLO-Catalog", "current") if answered else "lost"] += 1
    except aiohttp.ClientError:
        found["lost"] += 1


async def _until(
    client: aiohttp.ClientSession, reached: Callable[[dict[str, Any] | None], bool], most_s: float
) -> dict[str, Any] | None:
    """Return what /readyz says of the candidate once that is reached; None: not in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(most_s):
            while True:
                async with client.get("/readyz") as reply:
                    state: dict[str, Any] | None = (await reply.json())["candidate"]
                if reached(state):
                    return state
                await asyncio.sleep(POLL_S)
    return None
