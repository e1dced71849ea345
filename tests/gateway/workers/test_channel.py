"""Messages between two processes, over a real pair of sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.workers.channel import Channel, ChannelClosed


@asynccontextmanager
async def linked(one: Channel, other: Channel) -> AsyncIterator[tuple[asyncio.Task[None], ...]]:
    ends = socket.socketpair()
    tasks = []
    for channel, end in zip((one, other), ends, strict=True):
        await channel.open(end)
        tasks.append(asyncio.create_task(channel.run()))
    try:
        yield tuple(tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_questions_are_answered_and_messages_come_in_order() -> None:
    """A set is prepared before the switch to it, and large sets come whole."""
    seen: list[Any] = []

    async def note(what: Any) -> int:
        seen.append(what)
        return len(seen)

    asking = Channel({})
    async with linked(asking, Channel({"note": note})):
        asking.send("note", "first")
        assert await asking.ask("note", b"x" * 5_000_000, timeout_ms=5_000.0) == 2
    assert seen[0] == "first"


async def test_a_question_that_is_answered_late_holds_up_no_other() -> None:
    """A worker that builds a set still sends its metrics."""
    hold = asyncio.Event()

    async def slow(_: Any) -> str:
        await hold.wait()
        return "slow"

    async def quick(_: Any) -> str:
        return "quick"

    asking = Channel({})
    async with linked(asking, Channel({"slow": slow, "quick": quick})):
        with pytest.raises(ChannelClosed, match="no answer to 'slow' within 50 ms"):
            await asking.ask("slow", timeout_ms=50.0)
        assert await asking.ask("quick", timeout_ms=5_000.0) == "quick"
        hold.set()


async def test_who_waits_for_a_process_that_is_gone_gets_an_error() -> None:
    """A worker may be killed while it is asked."""
    hold = asyncio.Event()

    async def never(_: Any) -> None:
        await hold.wait()

    asking = Channel({})
    async with linked(asking, Channel({"never": never})) as (_, other):
        waiting = asyncio.create_task(asking.ask("never", timeout_ms=60_000.0))
        await asyncio.sleep(0.05)
        other.cancel()
        with pytest.raises(ChannelClosed, match="the other process is gone"):
            await waiting
        with pytest.raises(ChannelClosed):
            await asking.ask("never", timeout_ms=60_000.0)
