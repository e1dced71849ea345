"""Members of a search's Pareto front that are trained on their own, and the effect of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np

from gateway.catalog.schema import Precision
from optimizer.data import evaluate
from optimizer.data.items import Item
from optimizer.evaluation import decoding
from optimizer.study import pareto, recipes, store, trials
from optimizer.study.config import (
    ELASTIC,
    ConfigError,
    ElasticConfig,
    FinishConfig,
    StudentConfig,
    search_folder,
)
from optimizer.study.space import DISTILL_KNOBS, TRAIN_KNOBS
from optimizer.study.trials import MEGABYTE

SUFFIX = {Precision.INT8_DYNAMIC: "", Precision.FP16: "-fp16"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A member of the Pareto front: its F1 as a slice and once finished."""

    name: str
    slice_f1: float  # on the search's last rung
    f1: float  # on the whole search split, threshold fitted alike


def members(
    run_folder: Path,
    elastics: Sequence[ElasticConfig],
    how: FinishConfig,
    taken: Collection[str] = (),
    *,
    trained: bool = False,
    task: str | None = None,
) -> dict[str, tuple[StudentConfig, float]]:
    """Return the students to finish, with their F1 in the search: they represent each Pareto front best.

    `taken`: names of the study's other variants, which no member gets. None without a Pareto front. FP32 is not finished: it shows what rounding costs.
    `trained`: the search trained its candidates; a member is cut as they were, and has its recipe.
    `task`: of a classification, which the members' names begin with.
    Raises: ConfigError when not even the smallest fit into `max_total_mb`.
    """
    found = (
        _members_of(run_folder, elastic, how, taken, trained=trained, task=task)
        for elastic in elastics
    )
    return {student.name: (student, f1) for part in found for student, f1 in part}


def front_file(run_folder: Path, elastic: ElasticConfig) -> Path:
    return run_folder / search_folder(elastic.name) / "front.json"


def _members_of(
    run_folder: Path,
    elastic: ElasticConfig,
    how: FinishConfig,
    taken: Collection[str],
    *,
    trained: bool,
    task: str | None,
) -> list[tuple[StudentConfig, float]]:
    front = front_file(run_folder, elastic)
    if run_store := store.of(front):
        run_store.fetch_file(front)
    rows = json.loads(front.read_text()) if front.exists() else []
    rows = [row for row in rows if row["candidate"]["precision"] != Precision.FP32]
    points = np.array([[-row["f1"], row["p95_ms"], row["size_bytes"]] for row in rows], np.float64)
    points = points.reshape(-1, 3)
    budget = np.inf if how.max_total_mb is None else how.max_total_mb
    n = elastic.members or how.members
    try:
        kept = pareto.subset(points, n, points[:, 2] / MEGABYTE, budget)
    except ValueError as error:
        raise ConfigError(
            f"[finish] max_total_mb: {error} MB; fewer members, or more room"
        ) from error
    picked = [rows[i] for i in kept]
    names = _names([row["candidate"] for row in picked], _family(elastic, task), taken)
    made = _trained_student if trained else _student
    return [
        (made(row["candidate"], name, elastic, how), float(row["f1"]))
        for row, name in zip(picked, names, strict=True)
    ]


def _family(elastic: ElasticConfig, task: str | None) -> str:
    """Return the first words of the members' names: another task's members have others."""
    alone = elastic.name == ELASTIC
    if task is None:
        return "bert" if alone else elastic.name
    return task if alone else f"{task}-{elastic.name}"


def _names(candidates: Sequence[dict[str, Any]], family: str, taken: Collection[str]) -> list[str]:
    """Return short names: family and number of layers; where a name is taken the next get b, c, ..."""
    found: list[str] = []
    for candidate in candidates:
        suffix = SUFFIX[Precision(candidate["precision"])]
        plain = f"{family}-{len(candidate['layers'])}{suffix}"
        names = (plain, *(f"{plain}-{letter}" for letter in ascii_lowercase[1:]))
        found.append(next(name for name in names if name not in (*taken, *found)))
    return found


def _student(
    candidate: dict[str, Any], name: str, elastic: ElasticConfig, how: FinishConfig
) -> StudentConfig:
    return StudentConfig(
        name=name,
        start=elastic.name,
        layers=tuple(candidate["layers"]),
        heads=candidate["heads"],
        ffn=candidate["ffn"],
        embedding_bits=candidate["embedding_bits"],
        rank=candidate.get("rank", 0),  # older searches did not write the following keys
        keep=candidate.get("keep", 1.0),
        drop_after=candidate.get("drop_after", 0),
        hidden=candidate.get("hidden", 0) or None,
        precision=Precision(candidate["precision"]),
        train=elastic.finish or how.train,
    )


def _trained_student(
    candidate: dict[str, Any], name: str, elastic: ElasticConfig, how: FinishConfig
) -> StudentConfig:
    """Return the student of a trained candidate: the same recipe, trained for longer."""
    recipe = tuple((key, value) for key, value in candidate["recipe"])
    plain = _student(candidate, name, elastic, how)
    assert plain.train is not None, "members are trained"
    changed = {
        "start": None,
        "base": elastic.base,
        "train": plain.train.model_copy(update=recipes.part_of(recipe, TRAIN_KNOBS)),
        "distill": recipes.part_of(recipe, DISTILL_KNOBS) or None,
    }
    return plain.model_copy(update=changed)


def check(
    found: dict[str, tuple[StudentConfig, float]],
    run_folder: Path,
    elastics: Sequence[ElasticConfig],
) -> None:
    """Raises: ConfigError when there is nothing to finish."""
    if not found:
        fronts = ", ".join(str(front_file(run_folder, elastic)) for elastic in elastics)
        raise ConfigError(
            f"{fronts}: no INT8 or FP16 candidate to finish; 'bertier-optimize search' writes it"
        )


def f1_of(examples: Sequence[Item], readings: Sequence[Any]) -> float:
    """Return F1 or accuracy with the decoding fitted on the same questions or texts, as for slices."""
    how = decoding.fit(examples, readings)
    return evaluate.mean_value(examples, evaluate.texts_of(examples, readings, how))


def rank_correlation(found: Sequence[Finished]) -> float | None:
    """Return the rank correlation of the F1 as slices and the F1 finished; None for too few."""
    return trials.rank_correlation([f.slice_f1 for f in found], [f.f1 for f in found])
