"""Scores a variant as it is served: one question or text at a time, in its length bucket, by the gateway's code.

Scores of answers follow the official SQuAD 2.0 rule. Source: Rajpurkar et al. 2018 and its evaluation script.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from gateway.backends.embedded import open_session
from gateway.catalog.schema import Decoding, Metric, Precision, Quality
from gateway.qa import codec
from gateway.qa.codec import Reading, SpanEncoder
from gateway.qa.scoring import normalize
from optimizer.data import class_scores, clusters, question_sets
from optimizer.data.items import AnyReading, Item
from optimizer.data.labelled_texts import LabelledText
from optimizer.data.question_sets import Example, scored_golds
from optimizer.study.progress import Progress

WORKERS = 2
f1 = question_sets.f1  # of one answer


@dataclass(frozen=True, slots=True)
class Scores:
    """Exact match and F1, 0..1; NaN for a part without questions."""

    n: int
    exact: float
    f1: float
    has_answer_n: int
    has_answer_exact: float
    has_answer_f1: float
    no_answer_n: int
    no_answer_f1: float


def as_dict(scores: Scores, forced: Scores | None = None) -> dict[str, float | None]:
    """Return the scores as plain numbers for JSON; missing ones are None."""
    found = {k: _known(v) for k, v in asdict(scores).items()}
    return found | {"forced_f1": forced.f1 if forced else None}


def _known(value: float) -> float | None:
    return None if value != value else value


def exact(found: str, golds: Sequence[str]) -> float:
    return max(float(normalize(found) == normalize(gold)) for gold in scored_golds(golds))


def score(examples: Sequence[Example], answers: Sequence[str]) -> Scores:
    """Return the scores of one answer per question, in the same order."""
    exacts = np.array([exact(a, e.answers) for a, e in zip(answers, examples, strict=True)])
    f1s = np.array([f1(a, e.answers) for a, e in zip(answers, examples, strict=True)])
    has = np.array([e.answerable for e in examples], dtype=bool)
    return Scores(
        n=len(examples),
        exact=_mean(exacts),
        f1=_mean(f1s),
        has_answer_n=int(has.sum()),
        has_answer_exact=_mean(exacts[has]),
        has_answer_f1=_mean(f1s[has]),
        no_answer_n=int((~has).sum()),
        no_answer_f1=_mean(f1s[~has]),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def read_all(
    model: Path,
    tokenizer: Path,
    examples: Sequence[Item],
    precision: Precision,
) -> list[Any]:
    """Return the model's reading of every item, each run alone: `Reading`, of labelled texts `LabelReading`."""
    return read_timed(model, tokenizer, examples, precision)[0]


def read_timed(
    model: Path,
    tokenizer: Path,
    examples: Sequence[Item],
    precision: Precision,
) -> tuple[list[Any], list[float]]:
    """Return the readings, and the CPU time of each item's inference, all windows, ms.

    CPU time, because a busy host stretches only the wall's.
    """
    encoder = SpanEncoder.from_file(tokenizer)
    progress = Progress(f"evaluate {model.parent.parent.name}", len(examples))
    sessions = [open_session(model, precision=precision) for _ in range(WORKERS)]

    def work(session: ort.InferenceSession, part: Sequence[Item]) -> list[tuple[AnyReading, float]]:
        found = []
        for example in part:
            found.append(_read(session, encoder, example))
            progress.step()
        return found

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = [examples[i::WORKERS] for i in range(WORKERS)]
        done = list(pool.map(work, sessions, parts))
    found = [done[i % WORKERS][i // WORKERS] for i in range(len(examples))]
    return [reading for reading, _ in found], [cpu_ms for _, cpu_ms in found]


def _read(
    session: ort.InferenceSession, encoder: SpanEncoder, example: Item
) -> tuple[AnyReading, float]:
    windows = example.windows(encoder)
    began = time.thread_time()
    logits = example.ask(session, windows)
    cpu_ms = (time.thread_time() - began) * 1e3
    return example.read(windows, logits), round(cpu_ms, 3)


def answers_of(readings: Iterable[Reading], how: Decoding) -> list[str]:
    return [codec.answer_of(reading, how).text for reading in readings]


def texts_of(examples: Sequence[Item], readings: Iterable[Any], how: Decoding) -> list[str]:
    """Return the answer, or the label, to each item."""
    return [e.answer_of(r, how).text for e, r in zip(examples, readings, strict=True)]


def mean_value(examples: Sequence[Item], texts: Sequence[str]) -> float:
    """Return the mean F1 of answers, or the accuracy of labels."""
    return _mean(np.array([e.value_of(t) for e, t in zip(examples, texts, strict=True)]))


def forced_answers(readings: Iterable[Reading]) -> list[str]:
    """Return the best span of each question, answerable or not."""
    return [reading.spans[0].text if reading.spans else "" for reading in readings]


def quality(
    name: str, sha256: str, examples: Sequence[Any], readings: Sequence[Any], how: Decoding
) -> Quality:
    """Return a variant's catalog entry for this data, with a confidence interval over clusters."""
    texts = texts_of(examples, readings, how)
    if how.temperature is not None:
        return _labelled_quality(name, sha256, examples, texts)
    return quality_of(name, sha256, examples, texts, readings)


def _labelled_quality(
    name: str, sha256: str, examples: Sequence[LabelledText], texts: Sequence[str]
) -> Quality:
    found = class_scores.scores(examples, texts)
    low, high = bootstrap_interval(examples, texts)
    return Quality(
        data=name,
        sha256=sha256,
        n=found.n,
        exact=found.accuracy,
        f1=found.accuracy,
        f1_low=low,
        f1_high=high,
        has_answer_f1=None,
        no_answer_f1=None,
        forced_f1=None,
        metrics=tuple(Metric(name, value) for name, value in found.others.items()),
    )


def quality_of(
    name: str,
    sha256: str,
    examples: Sequence[Example],
    answers: Sequence[str],
    readings: Sequence[Reading],
) -> Quality:
    """Return the same for given answers."""
    scores = score(examples, answers)
    answerable = [i for i, e in enumerate(examples) if e.answerable]
    forced = forced_answers(readings)
    forced_scores = score([examples[i] for i in answerable], [forced[i] for i in answerable])
    low, high = bootstrap_interval(examples, answers)
    return Quality(
        data=name,
        sha256=sha256,
        n=scores.n,
        exact=scores.exact,
        f1=scores.f1,
        f1_low=low,
        f1_high=high,
        has_answer_f1=_known(scores.has_answer_f1),
        no_answer_f1=_known(scores.no_answer_f1),
        forced_f1=_known(forced_scores.f1),
    )


def bootstrap_interval(
    examples: Sequence[Item], answers: Sequence[str], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean F1 or accuracy, resampling clusters (articles, or contexts)."""
    sums: dict[str, list[float]] = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        sums[clusters.cluster_of(example)].append(example.value_of(answer))
    totals = np.array([sum(v) for v in sums.values()])
    counts = np.array([len(v) for v in sums.values()])
    return resampled_interval(totals, counts, resamples, seed)


def resampled_interval(
    totals: np.ndarray,  # (k,) sum of the values of each cluster
    counts: np.ndarray,  # (k,) number of values of each cluster
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Return the 95 % interval of the mean, resampling whole clusters.

    Source: Efron & Tibshirani 1993, chapter 13 (percentile interval).
    """
    generator, means = np.random.default_rng(seed), np.empty(resamples)
    for i in range(resamples):
        picked = generator.integers(0, len(totals), len(totals))
        means[i] = totals[picked].sum() / counts[picked].sum()
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high
