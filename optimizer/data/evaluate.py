"""Scores a variant as it is served: one question at a time, in its length bucket, by the gateway's code.

Scores follow the official SQuAD 2.0 rule. Source: Rajpurkar et al. 2018 and its evaluation script.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from gateway.backends.embedded import open_session, run
from gateway.catalog.schema import Decoding, Precision, Quality
from gateway.qa import codec
from gateway.qa.codec import Reading, SpanEncoder
from gateway.qa.scoring import normalize, token_f1, tokens_of
from optimizer.data import clusters
from optimizer.data.question_sets import Example
from optimizer.study.progress import Progress

WORKERS = 2


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
    return max(float(normalize(found) == normalize(gold)) for gold in _golds(golds))


def f1(found: str, golds: Sequence[str]) -> float:
    """Return the best token F1 against any gold answer; no golds: unanswerable."""
    return max(token_f1(tokens_of(found), tokens_of(gold)) for gold in _golds(golds))


def _golds(golds: Sequence[str]) -> Sequence[str]:
    """Return the gold answers that are not empty after normalization; the official rule drops others."""
    return [gold for gold in golds if normalize(gold)] or [""]


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
    examples: Sequence[Example],
    precision: Precision,
) -> list[Reading]:
    """Return the model's reading of every question, each run alone."""
    return read_timed(model, tokenizer, examples, precision)[0]


def read_timed(
    model: Path,
    tokenizer: Path,
    examples: Sequence[Example],
    precision: Precision,
) -> tuple[list[Reading], list[float]]:
    """Return the readings, and the CPU time of each question's inference, all windows, ms.

    CPU time, because a busy host stretches only the wall's.
    """
    encoder = SpanEncoder.from_file(tokenizer)
    progress = Progress(f"evaluate {model.parent.parent.name}", len(examples))
    sessions = [open_session(model, precision=precision) for _ in range(WORKERS)]

    def work(session: ort.InferenceSession, part: Sequence[Example]) -> list[tuple[Reading, float]]:
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
    session: ort.InferenceSession, encoder: SpanEncoder, example: Example
) -> tuple[Reading, float]:
    question = example.as_question()
    windows = encoder.encode(question)
    began = time.thread_time()
    logits = run(session, windows)
    cpu_ms = (time.thread_time() - began) * 1e3
    return codec.read(windows, logits, question), round(cpu_ms, 3)


def answers_of(readings: Iterable[Reading], how: Decoding) -> list[str]:
    return [codec.answer_of(reading, how).text for reading in readings]


def forced_answers(readings: Iterable[Reading]) -> list[str]:
    """Return the best span of each question, answerable or not."""
    return [reading.spans[0].text if reading.spans else "" for reading in readings]


def quality(
    name: str, sha256: str, examples: Sequence[Example], readings: Sequence[Reading], how: Decoding
) -> Quality:
    """Return a variant's catalog entry for this data, with a confidence interval over clusters."""
    return quality_of(name, sha256, examples, answers_of(readings, how), readings)


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
    examples: Sequence[Example], answers: Sequence[str], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean F1, resampling clusters (articles, or contexts)."""
    sums: dict[str, list[float]] = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        sums[clusters.cluster_of(example)].append(f1(answer, example.answers))
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
