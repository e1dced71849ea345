"""The shipped sample of real questions, so that every measurement runs without a download.

`python -m loadtest.sample SOURCE` writes it anew from a SQuAD-format file: whole contexts of the
search split, which no model was trained on. With `--split train --size 400 --file
optimizer/studies/smoke.json.xz` it writes the data of the smoke study.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path

from optimizer.data.question_sets import Example, Split, load, split_of

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


def write(source: str, path: Path = SAMPLE, split: Split = Split.SEARCH, size: int = SIZE) -> int:
    """Write a sample of `source`'s split to `path`; return the number of its questions."""
    found = load(source)
    there = [e for e in found if split_of(e, by_article=True, certifies=True) is split]
    contexts = sorted({e.context for e in there})
    random.Random(SEED).shuffle(contexts)
    kept: list[Example] = []
    for context in contexts:
        kept += [e for e in there if e.context == context]
        if len(kept) >= size:
            break
    kept = kept[:size]
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", preset=9) as file:
        json.dump(as_squad(kept), file, ensure_ascii=False)
    return len(kept)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="SQuAD-format file")
    parser.add_argument("--file", type=Path, default=SAMPLE, help="to write")
    parser.add_argument("--split", type=Split, choices=list(Split), default=Split.SEARCH)
    parser.add_argument("--size", type=int, default=SIZE, help="questions")
    args = parser.parse_args()
    n = write(args.source, args.file, args.split, args.size)
    print(f"{n} questions in {args.file}")


if __name__ == "__main__":
    _main()
