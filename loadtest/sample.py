"""The shipped sample of real questions, so that every measurement runs without a download.

`python -m loadtest.sample SOURCE` writes it anew from a SQuAD-format file: whole contexts of the
search split, which no model was trained on.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from optimizer.data import Example, Split, load, split_of

SAMPLE = Path(__file__).parent / "data" / "squad_sample.json.xz"
SIZE = 1_000
SEED = 17
LICENCE = "CC BY-SA 4.0; from SQuAD 2.0 (Rajpurkar et al. 2018), https://rajpurkar.github.io/SQuAD-explorer/"


def questions(source: str | None, limit: int | None = None) -> list[Example]:
    """Return the questions of `source`, else of the shipped sample."""
    return load(source or str(SAMPLE))[:limit]


def as_squad(examples: Sequence[Example]) -> dict[str, object]:
    """Return the examples as a SQuAD 2.0 document that names its licence."""
    articles: dict[str, dict[str, list[Example]]] = {}
    for example in examples:
        articles.setdefault(example.title, {}).setdefault(example.context, []).append(example)
    data = [
        {
            "title": title,
            "paragraphs": [
                {"context": context, "qas": [_qa(e) for e in asked]}
                for context, asked in contexts.items()
            ],
        }
        for title, contexts in articles.items()
    ]
    return {"version": "v2.0", "licence": LICENCE, "data": data}


def _qa(example: Example) -> dict[str, object]:
    answers = [
        {"text": text, "answer_start": start}
        for text, start in zip(example.answers, example.starts, strict=True)
    ]
    return {
        "id": example.id,
        "question": example.question,
        "answers": answers,
        "is_impossible": not answers,
    }


def write(source: str) -> int:
    """Write the sample from `source`; return the number of its questions."""
    found = load(source)
    split = [e for e in found if split_of(e, by_article=True, certifies=True) is Split.SEARCH]
    contexts = sorted({e.context for e in split})
    random.Random(SEED).shuffle(contexts)
    kept: list[Example] = []
    for context in contexts:
        kept += [e for e in split if e.context == context]
        if len(kept) >= SIZE:
            break
    kept = kept[:SIZE]
    SAMPLE.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(SAMPLE, "wt", preset=9) as file:
        json.dump(as_squad(kept), file, ensure_ascii=False)
    return len(kept)


if __name__ == "__main__":
    print(f"{write(sys.argv[1])} questions in {SAMPLE}")
