"""Positions in a text in the unit that a caller counts in. Pure."""

from __future__ import annotations

from enum import StrEnum


class OffsetUnit(StrEnum):
    """What the offsets of an answer count."""

    CODE_POINTS = "code-points"  # Python, Rust's chars, SQL
    UTF_16 = "utf-16"  # JavaScript, Java, C#
    UTF_8 = "utf-8"  # bytes: Go, Rust, C


def offset(text: str, position: int, unit: OffsetUnit) -> int:
    """Return the position, given in code points, in another unit."""
    if unit is OffsetUnit.CODE_POINTS or text.isascii():
        return position
    if unit is OffsetUnit.UTF_8:
        return len(text[:position].encode())
    return len(text[:position].encode("utf-16-le")) // 2
