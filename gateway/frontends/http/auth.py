"""Authentication of the HTTP frontend: the API key, before the body is read."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api_keys import Scope as KeyScope
from gateway.auth.access import CALLER, Access

OPEN = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")  # for probes
METRICS = "/metrics"
DEBUG_STATE = "/debug/state"


class AuthMiddleware:
    """Pure ASGI; RequestFrame around it turns errors into responses."""

    def __init__(self, app: ASGIApp, access: Access, pages: Collection[str] = ()) -> None:
        """`pages`: paths that a browser may GET without a key, as they tell nothing of this gateway."""
        self._app = app
        self._access = access
        self._pages = frozenset(pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] in OPEN:
            self._access.meet(_authorization(scope))
            await self._app(scope, receive, send)
            return
        if scope["method"] == "GET" and scope["path"] in self._pages:
            await self._app(scope, receive, send)
            return
        wanted = KeyScope.METRICS if scope["path"] in (METRICS, DEBUG_STATE) else KeyScope.ANSWER
        CALLER.set(self._access.admit("http", _authorization(scope), wanted))
        await self._app(scope, receive, send)


def _authorization(scope: Scope) -> str | None:
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    return found[0].decode("latin-1") if len(found) == 1 else None
