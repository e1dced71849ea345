"""Scores an answer against right ones, by the official SQuAD 2.0 rule. Pure.

Source: Rajpurkar et al. 2018 and its evaluation script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Return an answer in lower case, without punctuation and articles."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def tokens_of(text: str) -> list[str]:
    """Return the tokens that F1 counts; none: no answer."""
    return normalize(text).split()


def token_f1(found: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """Return the F1 of tokens, or of anything that stands for them, such as their hashes."""
    if not found or not right:
        return float(list(found) == list(right))
    same = sum((Counter(found) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(right)
    return 2 * precision * recall / (precision + recall)
