"""Asks a second time where the model instance that has a call answers nothing, and tells which models are ill.

A model with several instances goes on answering when one of them is lost, but every call that the lost one
takes waits until its deadline. Such a call is found by its silence (instances.py) and asked again: another
instance takes it. Knows no protocol: how a call is sent, and what its failure means, is given.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from gateway.backends.breaker import RetryBudget
from gateway.backends.instances import Call, Instances
from gateway.errors import ModelCrashed

log = logging.getLogger(__name__)

LOOK_MS = 50.0  # how often calls in flight are looked at
SHARE, BURST = 0.1, 20.0  # calls that may be asked a second time: of all, and at once

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Sent(Awaitable[T_co], Protocol[T_co]):
    """A call on its way; a gRPC call is one, and so is a future."""

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> None: ...


Send = Callable[[float], Sent[T]]  # sends a call that has so many ms


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """What one question is about: its model, the work that it is, and how to send it."""

    model: str
    instances: int
    work_ms: float  # on an idle host
    send: Send[T]


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    asked: Asked[T]
    sent: Sent[T]
    call: Call
    news: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    found_lost: bool = False  # it was the first to fail at an instance that is lost

    def tell(self) -> None:
        """Wake whoever waits: it ended, or is silent."""
        if not self.news.done():
            self.news.set_result(None)


class SecondAsking:
    """The calls in flight at one server; one event loop."""

    def __init__(
        self,
        lost_instance: Callable[[BaseException], str | None],
        clock: Callable[[], float] = lambda: time.perf_counter() * 1e3,
    ) -> None:
        """`lost_instance`: the name of the instance that a call failed at because it is lost; None: it is not."""
        self.lost: dict[str, str] = {}  # by model: why one of its instances is taken for lost
        self.asked_again: Counter[str] = Counter()  # calls, by model
        self.answered: Counter[str] = Counter()  # calls that the server has run for us, by model
        self._lost_instance = lost_instance
        self._known_lost: dict[str, set[str]] = {}  # instances, by model
        self._clock = clock
        self._models: dict[str, Instances] = {}
        self._followed: dict[Call, _Flight[Any]] = {}
        self._budget = RetryBudget(SHARE, BURST)
        self._looking = False
        self._witnesses: set[asyncio.Task[None]] = set()

    async def ask(self, asked: Asked[T], budget_ms: float) -> T:
        """Return the answer. Raises: what the call does; ModelCrashed when two instances ended at it."""
        ends_ms = self._clock() + budget_ms
        self._budget.pay_in()
        first = self._send(asked, budget_ms)
        self._followed[first.call] = first
        self._look_soon()
        try:
            await first.news
        except asyncio.CancelledError:
            first.sent.cancel()
            self._end(first, answered=False)
            raise
        if first.sent.done() or not self._may_ask_again(asked, ends_ms):
            return await self._outcome(first)
        return await self._ask_again(first, ends_ms - self._clock())

    def forget(self, model: str) -> None:
        """Take the model's instances for sound: they were started anew."""
        self.lost.pop(model, None)
        self._models.pop(model, None)
        self._known_lost.pop(model, None)

    async def close(self) -> None:
        """Wait for nothing any more."""
        for witness in self._witnesses:
            witness.cancel()
        await asyncio.gather(*self._witnesses, return_exceptions=True)

    def _may_ask_again(self, asked: Asked[T], ends_ms: float) -> bool:
        in_time = self._clock() + asked.work_ms < ends_ms
        return asked.instances > 1 and in_time and self._budget.take()

    async def _ask_again(self, first: _Flight[T], budget_ms: float) -> T:
        """Return the first answer; the silent call goes on alone: its end tells of its instance."""
        model = first.asked.model
        self.asked_again[model] += 1
        log.debug("%s: a call is silent; it is asked again", model)
        second = self._send(first.asked, budget_ms)
        both = [asyncio.ensure_future(self._outcome(each)) for each in (first, second)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if all(task.exception() for task in both if task.done()):
                await asyncio.wait(both)
            for task in both:
                if task.done() and task.exception() is None:
                    return task.result()
            raise self._why_neither((first, second), both)
        except asyncio.CancelledError:
            both[0].cancel()
            raise
        finally:
            if both[1].cancel():
                self.answered[model] += 1  # the server may run it all the same
            self._let_go_on(both)

    def _why_neither(
        self, flights: Sequence[_Flight[T]], both: Sequence[asyncio.Task[T]]
    ) -> BaseException:
        model = flights[0].asked.model
        if all(flight.found_lost for flight in flights):
            log.error("%s: two instances ended at one input; it is not asked again", model)
            return ModelCrashed(f"{model}: the model ended when it was asked this; see the log")
        return next(exc for task in reversed(both) if (exc := task.exception()) is not None)

    def _let_go_on(self, calls: Sequence[asyncio.Task[Any]]) -> None:
        for call in calls:
            witness = asyncio.ensure_future(_ended(call))
            self._witnesses.add(witness)
            witness.add_done_callback(self._witnesses.discard)

    def _send(self, asked: Asked[T], budget_ms: float) -> _Flight[T]:
        count, now = asked.instances, self._clock()
        instances = self._models.setdefault(asked.model, Instances(count))
        call = instances.begin(asked.work_ms, budget_ms, now)
        flight = _Flight(asked, asked.send(budget_ms), call)
        flight.sent.add_done_callback(lambda _: flight.tell())
        return flight

    async def _outcome(self, flight: _Flight[T]) -> T:
        """Return the answer of one call, and learn from how it ends."""
        try:
            answer = await flight.sent
        except BaseException as exc:
            flight.sent.cancel()
            lost = self._lost_instance(exc)
            if lost:
                known = self._known_lost.setdefault(flight.asked.model, set())
                flight.found_lost = lost not in known
                known.add(lost)
            self._end(flight, answered=False, lost=lost is not None)
            raise
        self.answered[flight.asked.model] += 1
        self._end(flight, answered=True)
        return answer

    def _end(self, flight: _Flight[T], *, answered: bool, lost: bool = False) -> None:
        self._followed.pop(flight.call, None)
        model = flight.asked.model
        instances = self._models.get(model)
        if instances is None or flight.call not in instances:
            return  # the instances are others now
        hangs = instances.end(flight.call, self._clock(), answered=answered)
        if lost:
            self.lost.setdefault(model, "an instance has ended, or hangs")
        elif hangs:
            self.lost.setdefault(model, "an instance answers nothing while another does")

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(LOOK_MS / 1e3, self._look)

    def _look(self) -> None:
        """Wake those whose call is silent."""
        self._looking = False
        now = self._clock()
        for instances in self._models.values():
            for call in instances.silent(now):
                if (flight := self._followed.get(call)) is not None:
                    flight.tell()
        if self._followed:
            self._look_soon()


async def _ended(call: asyncio.Task[Any]) -> None:
    """Return when it has ended, however it did."""
    await asyncio.wait([call])
    if not call.cancelled():
        call.exception()  # looked at: asyncio would complain of it otherwise
