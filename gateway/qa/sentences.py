"""The sentence around a piece of a text. A heuristic for prose; knows no language and no model.

Source: Unicode Standard Annex 29, sentence boundaries, reduced: a sentence ends at terminators (with the quotes and
brackets that close behind them) before white space, or at a blank line. It does not end before a lower-case letter
(rule SB8), nor behind a single letter (`J. Smith`) or a common abbreviation.
"""

from __future__ import annotations

import regex

MAX_CHARS = 2_000  # looked at on either side; a sentence that is longer is cut there
_ABBREVIATIONS = (
    *("Mr", "Mrs", "Ms", "Dr", "Prof", "Rev", "Gen", "Sen", "Rep", "St", "Mt", "Jr", "Sr"),
    *(
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
    ),
)
# A row of terminators is looked at from its first two places alone: from each of them it would cost its length squared.
_END = regex.compile(
    r"(?<![.!?…]{2})(?<!\b(?:\p{L}|" + "|".join(map(regex.escape, _ABBREVIATIONS)) + r"))"
    r"[.!?…]++[\p{Pe}\p{Pf}\"']*+\s++(?!\p{Ll})"
    r"|[\u3002\uff01\uff1f]+[\p{Pe}\p{Pf}]*"
    r"|\n\s*\n"
)


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Return where the sentence of `text[start:end]` begins and ends, without white space around it.

    A piece of several sentences gets all of them.
    """
    low, high = max(0, start - MAX_CHARS), min(len(text), end + MAX_CHARS)
    # An end inside of the piece is none: its first half may be an initial.
    ends = [found.end() for found in _END.finditer(text, low, high)]
    begin = max((at for at in ends if at <= start), default=low)
    close = min((at for at in ends if at >= end), default=high)
    while begin < start and text[begin].isspace():
        begin += 1
    while close > end and text[close - 1].isspace():
        close -= 1
    return begin, close
