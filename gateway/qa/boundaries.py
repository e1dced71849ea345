"""Boundaries in a text: the characters that a reader sees, and the sentence around a piece.

Characters are extended grapheme clusters, which no answer may cut. Sentences are a heuristic for prose. Knows no tokens,
no language and no model. Source: Unicode Standard Annex 29, by the `regex` package, whose tables follow the Unicode
releases.
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
MAX_SENTENCE_CHARS = 2_000  # looked at on either side; a sentence that is longer is cut there
_ABBREVIATIONS = [
    "Mr",
    "Mrs",
    "Ms",
    "Dr",
    "Prof",
    "Rev",
    "Gen",
    "Sen",
    "Rep",
    "St",
    "Mt",
    "Jr",
    "Sr",
    "vs",
    "etc",
    "e.g",
    "i.e",
    "cf",
    "ca",
    "approx",
    "No",
    "Vol",
    "pp",
    "Fig",
    "Inc",
    "Ltd",
    "Co",
]
# Reduced from the annex: a sentence ends at terminators (with the quotes and brackets that close behind them) before white
# space, or at a blank line. It does not end before a lower-case letter (rule SB8), nor behind a single letter (`J. Smith`)
# or a common abbreviation. A row of terminators is looked at from its first two places alone: from each of them it would
# cost its length squared.
_SENTENCE_END = regex.compile(
    r"(?<![.!?…]{2})(?<!\b(?:\p{L}|" + "|".join(map(regex.escape, _ABBREVIATIONS)) + r"))"
    r"[.!?…]++[\p{Pe}\p{Pf}\"']*+\s++(?!\p{Ll})"
    r"|[\u3002\uff01\uff1f]+[\p{Pe}\p{Pf}]*"
    r"|\n\s*\n"
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


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where the sentence of `text[start:end]` begins and ends, without white space around it.

    A piece of several sentences gets all of them.
    """
    low, high = max(0, start - MAX_SENTENCE_CHARS), min(len(text), end + MAX_SENTENCE_CHARS)
    # An end inside of the piece is none: its first half may be an initial.
    ends = [found.end() for found in _SENTENCE_END.finditer(text, low, high)]
    begin = max((at for at in ends if at <= start), default=low)
    close = min((at for at in ends if at >= end), default=high)
    while begin < start and text[begin].isspace():
        begin += 1
    while close > end and text[close - 1].isspace():
        close -= 1
    return begin, close
