"""The path under which a proxy offers the gateway: routes know nothing of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class UnderPrefix:
    """Pure ASGI: takes the prefix off a path that has it; a proxy that takes it off itself, and probes, send none."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            rest = scope["path"].removeprefix(self._prefix)
            if rest != scope["path"] and rest[:1] in ("", "/"):
                scope = {**scope, "path": rest or "/"}
        await self._app(scope, receive, send)
