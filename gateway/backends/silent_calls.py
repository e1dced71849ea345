"""Repeats calls that a lost model instance leaves unanswered, and reports models with a lost instance.

A model with several instances keeps answering when one of them is lost, but every call that the lost one took
waits until its deadline. `instances` finds such silent calls; they are sent again, to another instance. Knows no
protocol: how to send a call, and what its failure means, are arguments.
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
from gateway.backends.instances import InstanceCall, Instances
from gateway.errors import ModelCrashed

log = logging.getLogger(__name__)

LOOK_MS = 50.0  # between checks of the calls in flight
SHARE, BURST = 0.1, 20.0  # calls that may be repeated: share of all, and at once

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Sent(Awaitable[T_co], Protocol[T_co]):
    """A call on its way; a gRPC call is one, and so is a future."""

    def done(self) -> bool: ...

    def cancel(self) -> bool: ...

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> None: ...


Send = Callable[[float], Sent[T]]  # sends a call that has so many ms


@dataclass(frozen=True, slots=True)
class Inquiry(Generic[T]):
    """What to ask a model: its work, and how to send the call."""

    model: str
    instances: int
    work_ms: float  # on an idle host
    send: Send[T]


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    inquiry: Inquiry[T]
    sent: Sent[T]
    call: InstanceCall
    news: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    found_lost: bool = False  # the first call to fail at a lost instance

    def wake(self) -> None:
        """Wake the waiter: the call ended, or is silent."""
        if not self.news.done():
            self.news.set_result(None)


class SilentCalls:
    """The calls in flight at one server; one event loop."""

    def __init__(
        self,
        lost_instance: Callable[[BaseException], str | None],
        clock: Callable[[], float] = lambda: time.perf_counter() * 1e3,
    ) -> None:
        """`lost_instance`: the name of the instance that a call failed at because it is lost; None: it is not."""
        self.lost: dict[str, str] = {}  # by model: why one of its instances counts as lost
        self.repeated: Counter[str] = Counter()  # calls, by model
        self.answered: Counter[str] = Counter()  # calls that the server has run for us, by model
        self._lost_instance = lost_instance
        self._known_lost: dict[str, set[str]] = {}  # instances, by model
        self._clock = clock
        self._models: dict[str, Instances] = {}
        self._followed: dict[InstanceCall, _Flight[Any]] = {}
        self._budget = RetryBudget(SHARE, BURST)
        self._looking = False
        self._witnesses: set[asyncio.Task[None]] = set()

    async def ask(self, inquiry: Inquiry[T], budget_ms: float) -> T:
        """Return the answer. Raises: what the call does; ModelCrashed when two instances ended at it."""
        ends_ms = self._clock() + budget_ms
        self._budget.pay_in()
        first = self._send(inquiry, budget_ms)
        self._followed[first.call] = first
        self._look_soon()
        try:
            await first.news
        except asyncio.CancelledError:
            first.sent.cancel()
            self._end(first, answered=False)
            raise
        if first.sent.done() or not self._may_repeat(inquiry, ends_ms):
            return await self._outcome(first)
        return await self._repeat(first, ends_ms - self._clock())

    @property
    def left(self) -> tuple[float, float]:
        """How many calls may be repeated now, and at most."""
        return self._budget.left

    def forget(self, model: str) -> None:
        """Treat the model's instances as healthy: they were restarted."""
        self.lost.pop(model, None)
        self._models.pop(model, None)
        self._known_lost.pop(model, None)

    async def close(self) -> None:
        """Stop waiting for calls."""
        for witness in self._witnesses:
            witness.cancel()
        await asyncio.gather(*self._witnesses, return_exceptions=True)

    def _may_repeat(self, inquiry: Inquiry[T], ends_ms: float) -> bool:
        in_time = self._clock() + inquiry.work_ms < ends_ms
        return inquiry.instances > 1 and in_time and self._budget.take()

    async def _repeat(self, first: _Flight[T], budget_ms: float) -> T:
        """Repeat a silent call; return the first answer. The silent call continues: its end shows the state of its instance."""
        model = first.inquiry.model
        self.repeated[model] += 1
        log.debug("%s: a call is silent; it is repeated", model)
        second = self._send(first.inquiry, budget_ms)
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
        model = flights[0].inquiry.model
        if all(flight.found_lost for flight in flights):
            log.error("%s: two instances ended at one input; the call is not repeated", model)
            return ModelCrashed(f"{model}: the model crashed on this input; see the log")
        return next(exc for task in reversed(both) if (exc := task.exception()) is not None)

    def _let_go_on(self, calls: Sequence[asyncio.Task[Any]]) -> None:
        for call in calls:
            witness = asyncio.ensure_future(_ended(call))
            self._witnesses.add(witness)
            witness.add_done_callback(self._witnesses.discard)

    def _send(self, inquiry: Inquiry[T], budget_ms: float) -> _Flight[T]:
        count, now = inquiry.instances, self._clock()
        instances = self._models.setdefault(inquiry.model, Instances(count))
        call = instances.begin(inquiry.work_ms, budget_ms, now)
        flight = _Flight(inquiry, inquiry.send(budget_ms), call)
        flight.sent.add_done_callback(lambda _: flight.wake())
        return flight

    async def _outcome(self, flight: _Flight[T]) -> T:
        """Return the answer of one call, and learn from how it ends."""
        try:
            answer = await flight.sent
        except BaseException as exc:
            flight.sent.cancel()
            lost = self._lost_instance(exc)
            if lost:
                known = self._known_lost.setdefault(flight.inquiry.model, set())
                flight.found_lost = lost not in known
                known.add(lost)
            self._end(flight, answered=False, lost=lost is not None)
            raise
        self.answered[flight.inquiry.model] += 1
        self._end(flight, answered=True)
        return answer

    def _end(self, flight: _Flight[T], *, answered: bool, lost: bool = False) -> None:
        self._followed.pop(flight.call, None)
        model = flight.inquiry.model
        instances = self._models.get(model)
        if instances is None or flight.call not in instances:
            return  # the instances were replaced
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
        """Wake the waiters of silent calls."""
        self._looking = False
        now = self._clock()
        for instances in self._models.values():
            for call in instances.silent(now):
                if (flight := self._followed.get(call)) is not None:
                    flight.wake()
        if self._followed:
            self._look_soon()


async def _ended(call: asyncio.Task[Any]) -> None:
    """Return when it has ended, however it did."""
    await asyncio.wait([call])
    if not call.cancelled():
        call.exception()  # looked at: asyncio would complain of it otherwise
