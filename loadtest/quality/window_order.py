"""How early do the windows that hold the answer come? `python -m loadtest.quality.window_order`

Long contexts are made from the shipped sample: a question's own paragraph among others', at random.
Needs no model: it judges the order in which a long context is asked, not the answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.domain import Ints, Question, Windows
from gateway.qa.codec import SpanEncoder
from gateway.request import long_context
from loadtest.sample import questions
from optimizer.data.question_sets import Example

PARAGRAPHS = (8, 24)
QUESTIONS = 300
SHARES = (0.1, 0.25, 0.5)
SEED = 5


def in_text_order(windows: Windows) -> Ints:
    return np.arange(windows.n_windows)


def spread(windows: Windows) -> Ints:
    """Return the order of bisection: the first, the middle, the quarters, ..."""
    n = windows.n_windows
    bits = max(1, (n - 1).bit_length())
    order = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    return np.array([i for i in order if i < n])


ORDERS: Mapping[str, Callable[[Windows], Ints]] = {
    "text": in_text_order,
    "spread": spread,
    "words of the question": long_context.rank,
}


def places(
    encoder: SpanEncoder, examples: list[Example], n_paragraphs: int
) -> dict[str, list[float]]:
    """Return by order, of each question, the share of the windows that come before one with the answer."""
    rng = random.Random(SEED)
    contexts = sorted({e.context for e in examples})
    found: dict[str, list[float]] = {name: [] for name in ORDERS}
    for example in rng.sample([e for e in examples if e.answers], QUESTIONS):
        others = rng.sample([c for c in contexts if c != example.context], n_paragraphs - 1)
        at = rng.randrange(n_paragraphs)
        before = "".join(f"{c}\n" for c in others[:at])
        whole = "\n".join([*others[:at], example.context, *others[at:]])
        windows = encoder.encode(Question(example.question, whole))
        begin = len(before) + example.starts[0]
        holds = _holds(windows, begin, begin + len(example.answers[0]))
        for name, order in ORDERS.items():
            first = int(np.argmax(holds[order(windows)]))
            found[name].append((first + 1) / windows.n_windows)
    return found


def _holds(windows: Windows, begin: int, end: int) -> Ints:
    """Return 1 for each window with the whole piece, else 0."""
    inside = windows.is_context
    first = np.where(inside, windows.offsets[:, :, 0], end).min(axis=1)
    last = np.where(inside, windows.offsets[:, :, 1], 0).max(axis=1)
    whole: Ints = ((first <= begin) & (last >= end)).astype(np.int64)
    return whole


def main() -> None:
    encoder = SpanEncoder.from_file(Path("model_repository") / store.TOKENIZER)
    table = Table("paragraphs", "order", *(f"answer in the first {s:.0%}" for s in SHARES))
    result = {}
    for n in PARAGRAPHS:
        for name, found in places(encoder, questions(None), n).items():
            shares = [float(np.mean([at <= s for at in found])) for s in SHARES]
            table.add_row(str(n), name, *(f"{100 * s:.1f} %" for s in shares))
            result[f"{n} {name}"] = shares
    Console(width=120).print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
