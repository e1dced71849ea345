"""The generated questions of a study: one stage; every training reads its file.

Sources that ask for a larger share of unanswerable questions than they have get the rest made
(`optimizer.data.augmentation`), apart for training and for search, so that no paragraph crosses a split.
"""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog import store
from optimizer.data import augmentation, evaluate
from optimizer.data.augmentation import Judge, Made
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.study import stages
from optimizer.study.config import StudyConfig

FILE = "made.json.xz"
SPLITS = (Split.TRAIN, Split.SEARCH)
SAMPLED = 300  # original questions that measure the judge's usual confidence

BySource = Mapping[str, Mapping[Split, Sequence[Example]]]


def made(
    config: StudyConfig, by_source: BySource, hashes: Mapping[str, str], folder: Path
) -> dict[Split, list[Example]]:
    """Return the generated questions of every split, as stored in `folder`."""
    wanted = {d.source: d.unanswerable for d in config.data if d.unanswerable}
    if not wanted:
        return {split: [] for split in SPLITS}
    inputs = {
        "augment": config.augment.model_dump(),
        "data": [d.model_dump() for d in config.data],
        "hashes": dict(hashes),
    }
    stages.run_stage(folder, inputs, lambda: _make(config, wanted, by_source, folder))
    return _read(folder / FILE)


def _make(
    config: StudyConfig, wanted: Mapping[str, float], by_source: BySource, folder: Path
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    table: dict[str, Any] = {}
    for source, splits in by_source.items():
        for split in SPLITS:
            examples = splits[split]
            judge = _judge(config.augment.judge_folder, examples, config.augment.seed)
            share = wanted.get(source, 0.0)
            found = (
                augmentation.balanced(examples, share, config.augment.seed, judge) if share else []
            )
            rows += [_row(one, split) for one in found]
            if split == Split.TRAIN:
                table[source] = _counts(examples, found)
    with lzma.open(folder / FILE, "wt", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False)
    return {"sources": table, "source_auc": source_auc(table)}


def _counts(examples: Sequence[Example], found: Sequence[Made]) -> dict[str, Any]:
    kinds: Counter[str] = Counter(str(one.kind) for one in found)
    given = sum(not e.answerable for e in examples)
    if given:
        kinds["given"] = given
    return {"rows": len(examples) + len(found), "unanswerable": dict(kinds)}


def source_auc(table: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the AUC of the source of a question as a predictor of unanswerable; 0.5: no information."""
    rows = np.array([entry["rows"] for entry in table.values()], float)
    nulls = np.array([sum(entry["unanswerable"].values()) for entry in table.values()], float)
    order = np.argsort(nulls / np.maximum(rows, 1))
    nulls, answers = nulls[order], (rows - nulls)[order]
    if not nulls.sum() or not answers.sum():
        return 0.5
    below = np.concatenate([[0.0], np.cumsum(answers)[:-1]])
    return float((nulls * (below + answers / 2)).sum() / (nulls.sum() * answers.sum()))


def _row(one: Made, split: Split) -> dict[str, Any]:
    e = one.example
    return {
        "id": e.id,
        "question": e.question,
        "context": e.context,
        "title": e.title,
        "kind": one.kind,
        "split": split,
    }


def _read(path: Path) -> dict[Split, list[Example]]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    found: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for row in rows:
        example = Example(row["id"], row["question"], row["context"], (), (), row["title"])
        found[Split(row["split"])].append(example)
    return found


def _judge(folder: Path | None, examples: Sequence[Example], seed: int) -> Judge | None:
    """Return a judge that finds an answer when it is as confident as on most original questions.

    Raises: DataError when its model is not there.
    """
    if folder is None or not examples:
        return None
    model, tokenizer = folder / "1" / "model.onnx", folder.parent / "tokenizer.json"
    if not model.exists():
        raise DataError(f"[augment] judge: {model} is not there; name a folder of a repository")

    precision = store.read(folder.parent).variant(folder.name).precision

    def sureness(asked: Sequence[Example]) -> np.ndarray:  # (n, 2): against null, among spans
        readings = evaluate.read_all(model, tokenizer, asked, precision)
        mass = [sum(s.probability for s in r.spans) for r in readings]
        best = [r.spans[0].probability if r.spans else 0.0 for r in readings]
        share = np.array(best) / np.maximum(mass, 1e-9)
        return np.stack([[-r.difference for r in readings], share], axis=1)

    def judge(asked: Sequence[Example]) -> Sequence[bool]:
        answerable = [e for e in examples if e.answerable]
        picks = np.random.default_rng(seed).permutation(len(answerable))[:SAMPLED]
        usual = np.median(sureness([answerable[i] for i in picks]), axis=0)
        sure: list[bool] = (sureness(asked) >= usual).all(axis=1).tolist()
        return sure

    return judge
