"""An event loop whose time passes only when there is nothing else to do: deadlines without waiting for them.

For code that waits for timers and tasks of its own loop, not for threads or sockets.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time begins at 0 s, and jumps to the next timer."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now_s

    def pass_by(self, s: float) -> None:
        self._now_s += s


class _Jumping(selectors.DefaultSelector):
    """Looks at its sockets, and then lets the time of its next wait pass."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen"
            self._loop.pass_by(max(0.0, timeout))
        return found


def run(work: Callable[[Callable[[], float]], Awaitable[T]]) -> T:
    """Run `work` in a loop of virtual time; it gets the loop's clock, ms."""

    async def main() -> T:
        loop = asyncio.get_running_loop()
        return await work(lambda: loop.time() * 1e3)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
