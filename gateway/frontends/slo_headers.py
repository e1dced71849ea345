"""What both frontends share: SLO headers, request ids, and what surrounds a question.

Knows no protocol: names and values in, names and values out.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from gateway import slo
from gateway.auth import access
from gateway.domain import Served, SloRequest, Timings
from gateway.errors import InvalidHeader
from gateway.observability.observer import Observer, RequestRecord
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.slo import Lookup

T = TypeVar("T")
R = TypeVar("R")

MAX_ID_CHARS = 256  # of a question's id
MAX_PLAN_TOKENS = 1_000_000
REQUEST_ID = re.compile(r"[!-~]{1,128}")
ENVOY_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
SLO_NAMES = (
    *("slo-latency-ms", "slo-min-f1", "slo-max-f1-loss", "slo-class", "slo-policy"),
    *("slo-min-answerable-f1", "slo-variant", "slo-explain", "priority"),
)
_SERVER_TIMING = ", ".join(f"{name};dur=%.3f" for name in Timings._fields)
SLO_PREFIXES = ("slo-", "x-slo-")  # every header with such a prefix must be a known SLO header
# Every accepted spelling of an SLO header, with its canonical name.
SLO_HEADERS = {
    **{name: name for name in (*SLO_NAMES, ENVOY_TIMEOUT)},
    **{f"x-{name}": name for name in SLO_NAMES},
}


def request_id(given: str | None) -> str:
    """Return the caller's request id where it is fit for a header, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def slo_headers(answered: Served[Any]) -> dict[str, str]:
    """Return the SLO headers of an answer, by lower-case name."""
    loss = answered.option.certified_loss
    return {
        "slo-plan": answered.option.plan.name,
        "slo-variant": answered.variant,
        "slo-f1": f"{answered.option.certified_f1:.4f}",
        **({} if loss is None else {"slo-f1-loss": f"{loss:.4f}"}),
        "slo-predicted-ms": f"{answered.option.predicted_ms:.3f}",
        "slo-met": answered.met,
        **({} if answered.served_by is None else {"slo-catalog": answered.served_by.value}),
        **({} if answered.age_ms is None else {"age": str(int(answered.age_ms / 1e3))}),
        "server-timing": server_timing(answered.timings),
    }


def server_timing(timings: Timings) -> str:
    """Return the stages as a Server-Timing value, ms."""
    return _SERVER_TIMING % timings


def spent_before_routing_ms(timings: Timings) -> float:
    later = timings.route + timings.queue + timings.infer + timings.decode
    return max(0.0, timings.total - later)


def slo_lookup(pairs: Iterable[tuple[str, str]]) -> Lookup:
    """Return the SLO headers of a request, by lower-case name.

    Raises: InvalidHeader when one occurs twice (also as its `x-` alias) or has an unknown name.
    """
    found: dict[str, str] = {}
    for given, value in pairs:
        name = SLO_HEADERS.get(given)
        if name is None:
            if given.startswith(SLO_PREFIXES):
                raise InvalidHeader(given, value, f"the headers {', '.join(SLO_NAMES)}")
            continue
        if name in found:
            raise InvalidHeader(name, value, "one value; it was sent twice")
        found[name] = value
    return found.get


def of_caller(request: SloRequest) -> SloRequest:
    """Return the request with the limits of its caller."""
    tightest = access.tightest_class()
    return request if tightest is None else replace(request, tightest_class=tightest)


def raise_if_full(service: AnswerService, frontend: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Raise Overloaded where `max_in_flight` is reached; invalid headers are reported later."""
    found = [(name, value) for name, value in pairs if name in SLO_HEADERS]
    try:
        request = of_caller(slo.parse(slo_lookup(found)))
    except InvalidHeader:
        request = SloRequest()
    service.raise_if_full(request, frontend)


def overlay(lookup: Lookup, fields: Mapping[str, object]) -> Lookup:
    """Return a lookup in which the message's own SLO fields win over the headers.

    `fields` are named like the headers, in snake case. Raises: InvalidHeader for an unknown name.
    """
    own = {name.replace("_", "-"): _text(name, value) for name, value in fields.items()}
    unknown = [name for name in own if name not in SLO_NAMES]
    if unknown:
        raise InvalidHeader(unknown[0], own[unknown[0]], "the names " + ", ".join(SLO_NAMES))
    return lambda name: own[name] if name in own else lookup(name)


def _text(name: str, value: object) -> str:
    """Return a typed value as header text; an invalid one is refused by the parser."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.9f}"
    if name == "priority" and not str(value).startswith("u="):
        return f"u={value}"
    return str(value)


def class_label(name: str | None, settings: Settings) -> str:
    """Return the SLO class as a bounded metric label."""
    name = settings.default_class if name is None else name
    return name if name in settings.classes else slo.UNKNOWN_CLASS


@contextmanager
def observed(
    observer: Observer, frontend: str, slo_class: str, task: str | None, n: int = 1
) -> Iterator[RequestRecord]:
    """Record the request of the block, and take its n questions off the caller's quota.

    `task` None: the service notes it. Raises: QuotaExceeded.
    """
    with observer.request(frontend, slo_class, task) as record:
        access.take(n)
        yield record


@contextmanager
def refused_whole(observer: Observer, frontend: str, slo_class: str, task: str) -> Iterator[None]:
    """Record a request of many questions that is refused as a whole.

    If it is not refused, each question is recorded on its own.
    """
    try:
        yield
    except Exception as exc:
        with observer.request(frontend, slo_class, task, unread=True):
            raise exc  # noqa: TRY201 (to be seen by the block around it)


async def is_ready(service: AnswerService) -> bool:
    """Return whether a question can be answered now."""
    serving = service.serving
    if service.leaving:
        return False
    return serving is not None and bool(serving.plans()) and await service.backend.is_ready()


async def map_in_order(
    items: AsyncIterable[T],
    work: Callable[[T], Awaitable[R]],
    write: Callable[[R], Awaitable[None]],
    limit: int,
) -> None:
    """Write `work(item)` in the order of the items; at most `limit` are begun and unwritten.

    Reading stops while nothing is taken at the other end. Cancelled: all work is.
    """
    slots = asyncio.Semaphore(limit)
    begun: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()

    async def finish() -> None:
        while (task := await begun.get()) is not None:
            await write(await task)
            slots.release()

    async def run(item: T) -> R:
        return await work(item)

    async with asyncio.TaskGroup() as group:
        group.create_task(finish())
        async for item in items:
            await slots.acquire()
            begun.put_nowait(group.create_task(run(item)))
        begun.put_nowait(None)
