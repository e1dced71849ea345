"""The deadline of one request: a context manager around its work."""

from __future__ import annotations

import asyncio
from types import TracebackType

from gateway.errors import DeadlineExceeded


class Deadline:
    """Ends its block with DeadlineExceeded when the deadline passes."""

    def __init__(self, timeout_ms: float, left_ms: float) -> None:
        """`left_ms` of `timeout_ms` are left; none: the block is not entered."""
        self._message = f"the deadline of {timeout_ms:g} ms has passed"
        self._left_ms = left_ms
        self._timer = asyncio.timeout(max(0.0, left_ms) / 1e3)

    async def __aenter__(self) -> None:
        if self._left_ms <= 0:
            raise DeadlineExceeded(self._message)
        await self._timer.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timer.__aexit__(kind, error, trace)
        except TimeoutError as exc:
            raise DeadlineExceeded(self._message) from exc
