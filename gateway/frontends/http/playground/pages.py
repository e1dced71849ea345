"""The pages for a browser: playground, live view, API reference. They are files of this folder, sent as they are.

The pages hold no data of the gateway: they ask the API for it, with the caller's key where one is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.settings import Settings
from gateway.slo import SloClass

FOLDER = Path(__file__).parent
PREFIX = "/playground/"
SETTINGS = f"{PREFIX}settings.json"  # behind keys, unlike the files
PAGES = {"/": "index.html", "/live": "live.html", "/docs": "docs.html"}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Everything comes from this host; text becomes markup nowhere: trusted types forbid `innerHTML` and its like.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # ask again each time: the ETag says whether it changed
}


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is sent."""

    body: bytes
    media_type: str
    etag: str

    async def respond(self, request: Request) -> Response:
        """Return the file, or 304 where the caller has it."""
        headers = {**HEADERS, "etag": self.etag}
        if self._is_among(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers={**headers, "content-type": self.media_type})

    def _is_among(self, given: str) -> bool:
        tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
        return self.etag in tags or tags == ["*"]


def read() -> Mapping[str, File]:
    """Return every file by the path of its URL: a page has its own, all else is below `PREFIX`."""
    found = {path.name: _file(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}
    pages = {path: found.pop(name) for path, name in PAGES.items()}
    return pages | {f"{PREFIX}{name}": file for name, file in found.items()}


def settings_for_pages(settings: Settings, classes: Mapping[str, SloClass]) -> dict[str, Any]:
    """Return what the pages need to offer the right choices."""
    return {
        "default_class": settings.default_class,
        "classes": {name: asdict(slo_class) for name, slo_class in classes.items()},
        "max_top_k": settings.max_top_k,
        "max_question_chars": settings.max_question_chars,
        "max_context_chars": settings.max_context_chars,
        "metrics": settings.metrics_port is None,
    }


def _file(path: Path) -> File:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return File(body, MEDIA_TYPES[path.suffix], etag)
