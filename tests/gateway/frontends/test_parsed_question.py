"""Offsets in other units, and what a caller may say in `Cache-Control`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.frontends.parsed_question import OffsetUnit, offset
from gateway.request.response_cache import CacheControl, parse_control
from tests.texts import TEXT


@given(TEXT.filter(lambda text: text.isprintable()), st.data())
def test_offsets_cut_the_same_piece_in_every_unit(text: str, data: st.DataObject) -> None:
    """JavaScript and Go cut the piece that Python does."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    utf_16, utf_8 = text.encode("utf-16-le"), text.encode()
    a, b = (2 * offset(text, at, OffsetUnit.UTF_16) for at in (start, end))
    assert utf_16[a:b].decode("utf-16-le") == text[start:end]
    a, b = (offset(text, at, OffsetUnit.UTF_8) for at in (start, end))
    assert utf_8[a:b].decode() == text[start:end]
    assert offset(text, start, OffsetUnit.CODE_POINTS) == start


@pytest.mark.parametrize(
    ("header", "control"),
    [
        ("", CacheControl()),
        ("public, immutable", CacheControl()),
        ("No-Store", CacheControl(reads=False, stores=False)),
        ("no-cache", CacheControl(reads=False)),
        ("max-age=0", CacheControl(max_age_ms=0.0)),
        ('x, max-age="60"', CacheControl(max_age_ms=60_000.0)),
        ("max-age=soon", CacheControl(max_age_ms=0.0)),
        ("max-age=" + "9" * 5_000, CacheControl(max_age_ms=999_999_999_000.0)),
    ],
)
def test_directives_are_read_as_http_has_them(header: str, control: CacheControl) -> None:
    """Unknown ones are ignored; an age that cannot be read allows none."""
    assert parse_control(header) == control
