"""Grapheme clusters, the characters that a reader sees: where a text may be cut, and whether it is visible.

Knows no tokens and no models. Source: Unicode Standard Annex 29 (extended grapheme clusters), by the
`regex` package, whose tables follow the Unicode releases.
"""

from __future__ import annotations

import re

import regex

# Every cluster of several code points holds one of these; CR LF apart, where no token begins or ends.
_JOINS = regex.compile(
    r"[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}\p{GCB=Prepend}\p{GCB=Regional_Indicator}"
    r"\p{GCB=L}\p{GCB=V}\p{GCB=T}]"
)
_MAY_JOIN = re.compile(
    "[^\x00-\u02ff]+"
)  # below U+0300, the first accent of its own, nothing joins
# Between two ASCII characters there is a boundary: clusters lie inside of these stretches.
_STRETCH = regex.compile(r"[\x00-\x7f]?(?:[^\x00-\x7f]++[\x00-\x7f]?+)++")
# \X looks back over all flags in a row at each of them; taken in pairs, a row costs its length.
_CLUSTER = regex.compile(
    r"\p{GCB=Prepend}*+\p{GCB=Regional_Indicator}{2}[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}]*+"
    r"|\X"
)
_VISIBLE = regex.compile(
    r"(?V1)[^\p{White_Space}\p{Cc}\p{Default_Ignorable_Code_Point}"
    r"[\p{Cf}--\p{Prepended_Concatenation_Mark}]]"
)


def has_visible(text: str) -> bool:
    """Return whether a text has visible characters, not only space, control and format characters."""
    return _VISIBLE.search(text) is not None


def long_clusters(text: str) -> list[tuple[int, int]]:
    """Return (begin, end) of each grapheme cluster of several code points, in order; CR LF left out."""
    if text.isascii() or not _JOINS.search("".join(_MAY_JOIN.findall(text))):
        return []
    return [
        cluster.span()
        for stretch in _STRETCH.finditer(text)
        if _JOINS.search(text, *stretch.span())
        for cluster in _CLUSTER.finditer(text, *stretch.span())
        if cluster.end() - cluster.start() > 1 and cluster.group() != "\r\n"
    ]
