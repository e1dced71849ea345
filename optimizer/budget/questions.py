"""The user's questions: which files, and whether each part of a study gets enough of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from optimizer.budget.schedule import BudgetError, Counts
from optimizer.data import clusters, question_files, question_sets
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.data.splits import StudyQuestions
from optimizer.study.config import DataConfig

MIN_ANSWERABLE = 50  # training questions with an answer
MIN_SEARCH = 20  # questions that fit no-answer thresholds and tell candidates apart
MIN_CLUSTERS = 10  # articles or contexts, as for `certify --data`: fewer give useless floors

Splits = Mapping[Split, Sequence[Example]]


def sources_of(path: Path) -> tuple[DataConfig, ...]:
    """Return each question file as a source of a study that certifies, split by article where known.

    Raises: DataError.
    """
    files = [file.resolve() for file in question_files.files_of(path)]
    return tuple(DataConfig(source=str(f), by_article=True, certifies=True) for f in files)


def refuse_labelled(path: Path, teacher: str) -> None:
    """Raises: BudgetError for a file of labelled texts: studies of questions alone are chosen."""
    if not path.is_file() or not _is_labelled(path):
        return
    raise BudgetError(
        f"--data {path}: holds labelled texts, and --budget chooses studies of questions alone. Write a study file with"
        f' [task] and [[data]] source = "{path.name}" (complete example: docs/how-to/classify.md), then:'
        f" bertier-optimize run --study mine.toml --data-dir {path.parent} --teacher {teacher} (if that is a finished"
        " classifier; for an encoder use --backbone)"
    )


def _is_labelled(path: Path) -> bool:
    """Return whether a file is tab-separated, or its first row has a label and no context."""
    if ".tsv" in path.suffixes:
        return True
    try:
        if ".parquet" in path.suffixes:
            first = next(iter(question_files.parquet_rows(path)), None)
        elif set(path.suffixes) & {".jsonl", ".ndjson"}:
            with question_sets.OPENERS.get(path.suffix, open)(path, "rb") as file:
                first = json.loads(file.readline())
        else:
            return False
    except (OSError, EOFError, ValueError, DataError):
        return False  # who reads its questions says what is wrong with it
    return isinstance(first, dict) and "label" in first and "context" not in first


def splits_of(questions: StudyQuestions) -> dict[Split, list[Example]]:
    """Return the questions by split, as the study splits them. Raises: DataError."""
    trained = questions.train() if any(s[Split.TRAIN] for s in questions.by_source.values()) else []
    held = {split: questions.certifying(split) for split in (Split.SEARCH, Split.CALIBRATE)}
    return {Split.TRAIN: trained, **held}


def counts_of(path: Path, splits: Splits) -> Counts:
    """Return how many questions each part of a study has. Raises: DataError when one has too few."""
    calibrate = splits[Split.CALIBRATE]
    found = {
        "questions with an answer to train on": (
            sum(e.answerable for e in splits[Split.TRAIN]),
            MIN_ANSWERABLE,
        ),
        "questions to fit no-answer thresholds and compare candidates": (
            len(splits[Split.SEARCH]),
            MIN_SEARCH,
        ),
        "articles (or contexts, where the article is not known) to certify floors from": (
            len({clusters.cluster_of(e) for e in calibrate}),
            MIN_CLUSTERS,
        ),
    }
    if short := {what: pair for what, pair in found.items() if pair[0] < pair[1]}:
        raise DataError(_too_few(path, sum(map(len, splits.values())), short))
    certify = int(clusters.counted(calibrate).sum())
    return Counts(len(splits[Split.TRAIN]), len(splits[Split.SEARCH]), certify)


def _too_few(path: Path, n: int, short: Mapping[str, tuple[int, int]]) -> str:
    parts = "; ".join(f"{has} of at least {needed} {what}" for what, (has, needed) in short.items())
    times = max(needed / max(1, has) for has, needed in short.values())
    return (
        f"{path}: too few questions. Of {n} questions the split leaves {parts}. Whole articles are split"
        f" (a context where no title is given), so give about {ceil(n * times / 10) * 10} questions, on"
        f" {times:.2g} times as many different texts"
    )
