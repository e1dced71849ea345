"""How a candidate is trained that has a training of its own. Pure."""

from __future__ import annotations

from typing import Any

from optimizer.study.config import DistillConfig, TrainConfig
from optimizer.study.space import DISTILL_KNOBS, TRAIN_KNOBS, Recipe


def applied(
    recipe: Recipe, distill: DistillConfig, train: TrainConfig
) -> tuple[DistillConfig, TrainConfig]:
    """Return what a candidate learns from its teacher and how it is trained."""
    return (
        distill.model_copy(update=part_of(recipe, DISTILL_KNOBS)),
        train.model_copy(update=part_of(recipe, TRAIN_KNOBS)),
    )


def part_of(recipe: Recipe, knobs: tuple[str, ...]) -> dict[str, Any]:
    """Return what a recipe says of these keys."""
    return {name: value for name, value in recipe if name in knobs}
