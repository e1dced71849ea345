"""The request header `Cache-Control`, as metadata over gRPC: what a caller says of kept answers."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.request.response_cache import ANYTHING, CONTROL, CacheControl


def receive(pairs: Iterable[tuple[bytes | str, bytes | str]]) -> None:
    """Note for the current request what its headers say, given with lower-case names."""
    said = [value for name, value in pairs if name in (b"cache-control", "cache-control")]
    texts = [value if isinstance(value, str) else value.decode("latin-1") for value in said]
    CONTROL.set(parse(",".join(texts)) if texts else ANYTHING)


def parse(header: str) -> CacheControl:
    """Return the directives that concern us; others are ignored, as RFC 9111 has it."""
    said = {}
    for part in header.lower().split(","):
        name, _, value = part.partition("=")
        said[name.strip()] = value.strip().strip('"')
    age = said.get("max-age")
    return CacheControl(
        reads=not {"no-store", "no-cache"} & said.keys(),
        stores="no-store" not in said,
        max_age_ms=None if age is None else _whole_ms(age),
    )


def _whole_ms(seconds: str) -> float:
    """Return a number of seconds in ms; one that cannot be read allows no age at all."""
    return 1e3 * int(seconds[:9]) if seconds.isascii() and seconds.isdecimal() else 0.0
