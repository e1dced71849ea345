"""Members of a search's Pareto front that are trained on their own, and the effect of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gateway.catalog.schema import Precision
from optimizer.data import evaluate
from optimizer.data.question_sets import Example
from optimizer.evaluation import decoding
from optimizer.study import pareto, trials
from optimizer.study.config import ELASTIC, ConfigError, FinishConfig, StudentConfig
from optimizer.study.trials import MEGABYTE

SUFFIX = {Precision.INT8_DYNAMIC: "int8", Precision.FP16: "fp16"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A member of the Pareto front: its F1 as a slice and once finished."""

    name: str
    slice_f1: float  # on the search's last rung
    f1: float  # on the whole search split, threshold fitted alike


def members(front: Path, how: FinishConfig) -> dict[str, tuple[StudentConfig, float]]:
    """Return the students to finish, with their F1 as slices: they represent the Pareto front best.

    None without a front. FP32 is not finished: it shows what rounding costs.
    Raises: ConfigError when not even the smallest fit into `max_total_mb`.
    """
    rows = json.loads(front.read_text()) if front.exists() else []
    rows = [row for row in rows if row["candidate"]["precision"] != Precision.FP32]
    points = np.array([[-row["f1"], row["p95_ms"], row["size_bytes"]] for row in rows], np.float64)
    points = points.reshape(-1, 3)
    budget = np.inf if how.max_total_mb is None else how.max_total_mb
    try:
        kept = pareto.subset(points, how.members, points[:, 2] / MEGABYTE, budget)
    except ValueError as error:
        raise ConfigError(
            f"[finish] max_total_mb: {error} MB; fewer members, or more room"
        ) from error
    students = [(_student(rows[i]["candidate"], how), float(rows[i]["f1"])) for i in kept]
    return {student.name: (student, f1) for student, f1 in students}


def _student(candidate: dict[str, Any], how: FinishConfig) -> StudentConfig:
    layers, bits = candidate["layers"], candidate["embedding_bits"]
    shape = f"h{candidate['heads']}-f{candidate['ffn']}-w{bits}"
    rank = candidate.get("rank", 0)  # older searches did not write the following keys
    keep, drop_after = candidate.get("keep", 1.0), candidate.get("drop_after", 0)
    hidden = candidate.get("hidden", 0)
    shape += f"-d{hidden}" if hidden else ""
    shape += f"-r{rank}" if rank else ""
    shape += f"-k{keep:g}.{drop_after}" if drop_after else ""
    precision = Precision(candidate["precision"])
    return StudentConfig(
        name=f"bert-l{'.'.join(map(str, layers))}-{shape}-{SUFFIX[precision]}",
        start=ELASTIC,
        layers=tuple(layers),
        heads=candidate["heads"],
        ffn=candidate["ffn"],
        embedding_bits=bits,
        rank=rank,
        keep=keep,
        drop_after=drop_after,
        hidden=hidden or None,
        precision=precision,
        train=how.train,
    )


def check(found: dict[str, tuple[StudentConfig, float]], front: Path) -> None:
    """Raises: ConfigError when there is nothing to finish."""
    if not found:
        raise ConfigError(
            f"{front}: names no INT8 or FP16 candidate to finish; 'bertier-optimize search' writes it"
        )


def f1_of(examples: Sequence[Example], readings: Sequence[Any]) -> float:
    """Return F1 with the threshold fitted on the same questions, as for slices."""
    answers = evaluate.answers_of(readings, decoding.fit(examples, readings))
    return evaluate.score(examples, answers).f1


def rank_correlation(found: Sequence[Finished]) -> float | None:
    """Return the rank correlation of the F1 as slices and the F1 finished; None for too few."""
    return trials.rank_correlation([f.slice_f1 for f in found], [f.f1 for f in found])
