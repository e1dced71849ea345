"""Which pages in a browser may call the gateway and read its answers (CORS). Off without an origin in the settings.

Cookies are never allowed: a key travels in `Authorization`.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from gateway.frontends.http.openapi import RESPONSE_HEADERS

METHODS = ("GET", "HEAD", "POST")
EXPOSED = (
    *(name for name, _, _ in RESPONSE_HEADERS),
    *("RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"),
    "Inference-Header-Content-Length",
)
MAX_AGE_S = 600  # a browser asks again for leave after this long


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return the app for pages of these origins; no origins: the app itself.

    Any request header is allowed, so that a misspelt one gets the gateway's own explanation.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=("*",),
        expose_headers=EXPOSED,
        max_age=MAX_AGE_S,
    )
