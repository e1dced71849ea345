"""A call that a lost instance has is asked of another one, and the loss is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.backends.silent_calls import Inquiry, SilentCalls
from gateway.errors import ModelCrashed
from tests.local_triton import wait_until

AMPLE_MS = 60_000.0


class InstanceLost(Exception):
    """What a server says of an instance that has ended."""


class Server:
    """A model server whose calls the test answers."""

    def __init__(self) -> None:
        self.calls: list[asyncio.Future[str]] = []
        self.silent = SilentCalls(lambda exc: str(exc) if isinstance(exc, InstanceLost) else None)

    def send(self, budget_ms: float) -> asyncio.Future[str]:
        call: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        return call

    def ask(
        self, model: str = "small", instances: int = 2, budget_ms: float = AMPLE_MS
    ) -> asyncio.Task[str]:
        inquiry = Inquiry(model, instances, 1.0, self.send)
        return asyncio.create_task(self.silent.ask(inquiry, budget_ms))

    async def until_asked(self, n: int) -> None:
        await wait_until(lambda: len(self.calls) == n)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.silent.close()


async def test_who_answers_is_asked_once(server: Server) -> None:
    """A second question would be work for nothing."""
    answer = server.ask()
    await server.until_asked(1)
    server.calls[0].set_result("first")
    assert await answer == "first"
    assert len(server.calls) == 1


async def test_what_one_instance_leaves_unanswered_another_answers(server: Server) -> None:
    """The caller does not notice; the end of the silent call shows that its instance is lost."""
    answer = server.ask()
    await server.until_asked(2)
    server.calls[1].set_result("second")
    assert await answer == "second"
    assert server.silent.repeated["small"] == 1
    assert not server.silent.lost
    server.calls[0].set_exception(InstanceLost())
    await wait_until(lambda: "small" in server.silent.lost)


async def test_a_silent_call_that_is_answered_after_all_is_no_loss(server: Server) -> None:
    """Its instance was slow; whoever answers first counts."""
    answer = server.ask()
    await server.until_asked(2)
    server.calls[0].set_result("first")
    assert await answer == "first"
    assert server.calls[1].cancelled()
    assert not server.silent.lost


async def test_a_failure_is_no_answer_while_the_other_may_still_come(server: Server) -> None:
    """The lost instance's call often fails before the other one is answered."""
    answer = server.ask()
    await server.until_asked(2)
    server.calls[0].set_exception(InstanceLost("small_0_0"))
    await wait_until(lambda: "small" in server.silent.lost)
    server.calls[1].set_result("second")
    assert await answer == "second"


async def test_an_input_that_ends_two_instances_is_given_up(server: Server) -> None:
    """A third instance, or another model, would end of it, too."""
    answer = server.ask()
    await server.until_asked(2)
    for call, instance in zip(server.calls, ("small_0_0", "small_0_1"), strict=True):
        call.set_exception(InstanceLost(instance))
    with pytest.raises(ModelCrashed):
        await answer


async def test_an_input_that_only_meets_lost_instances_may_be_asked_elsewhere(
    server: Server,
) -> None:
    """They ended at another one; another model may answer it."""
    ending, innocent = server.ask(), server.ask()
    await server.until_asked(4)
    names = ("small_0_0", "small_0_0", "small_0_1", "small_0_1")
    for call, instance in zip(server.calls, names, strict=True):
        call.set_exception(InstanceLost(instance))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    for answer in (ending, innocent):
        with pytest.raises((ModelCrashed, InstanceLost)):
            await answer
    assert {type(ending.exception()), type(innocent.exception())} == {ModelCrashed, InstanceLost}


async def test_the_only_instance_is_not_asked_twice(server: Server) -> None:
    """The second question would wait behind the first."""
    answer, other = server.ask("single", instances=1), server.ask()
    await server.until_asked(3)  # the other one is silent, too, and asked again
    assert server.silent.repeated == {"small": 1}
    server.calls[0].set_result("first")
    server.calls[1].set_result("other")
    assert (await answer, await other) == ("first", "other")


async def test_a_caller_who_leaves_takes_all_questions_along(server: Server) -> None:
    """Nobody reads the answer."""
    answer = server.ask()
    await server.until_asked(2)
    answer.cancel()
    await asyncio.wait([answer])
    await wait_until(lambda: all(call.cancelled() for call in server.calls))


async def test_instances_that_were_started_anew_are_sound(server: Server) -> None:
    """What a call to a replaced instance says is old news."""
    answer = server.ask()
    await server.until_asked(2)
    server.calls[1].set_result("second")
    await answer
    server.silent.forget("small")
    server.calls[0].set_exception(InstanceLost())
    await server.silent.close()
    assert not server.silent.lost
