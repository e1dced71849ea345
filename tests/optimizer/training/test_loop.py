"""A training run is killed and goes on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from optimizer.data.items import Feature
from optimizer.models import bert, student
from optimizer.models.weights import Drops
from optimizer.study.config import TrainConfig
from optimizer.training import loop
from optimizer.training.loop import Batch
from optimizer.training.losses import label_loss

CONFIG = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-3)


def rows(n: int = 48) -> list[Feature]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        length = int(rng.integers(8, 20))
        ids = rng.integers(5, 500, length).astype(np.int32)
        found.append(Feature(ids, np.zeros(length, np.int8), ((2, 3),)))
    return found


class Killed(Exception):
    """Stands for a signal."""


def dying_after(steps: int) -> Callable[[torch.nn.Module, Batch], torch.Tensor]:
    left = [steps]

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return label_loss(model, batch)

    return loss


@pytest.mark.parametrize("drops", [(), ((1, 0.5), (2, 0.3))])
def test_a_killed_run_ends_like_one_that_was_not(
    tiny_backbone: Path, tmp_path: Path, drops: Drops
) -> None:
    """A checkpoint holds all that the next steps depend on, also each early head."""

    def untrained() -> PreTrainedModel:
        model = student.cut(student.load(str(tiny_backbone)), (0, 1, 1), None)
        return bert.with_dropping(model, bert.dropping_of(model, drops))

    whole, resumed = untrained(), untrained()
    loop.train(whole, rows(), label_loss, CONFIG, tmp_path / "whole", 1)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        loop.train(resumed, rows(), dying_after(7), CONFIG, folder, 1, checkpoint_every_s=0)
    again = untrained()
    loop.train(again, rows(), label_loss, CONFIG, folder, 1)
    for name, weight in whole.state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e-6), name


def test_an_average_of_the_weights_survives_a_kill(tiny_backbone: Path, tmp_path: Path) -> None:
    """What ends is the average, not the last step, and a checkpoint holds it."""
    config = CONFIG.model_copy(update={"average": 0.9})
    plain, whole, killed, again = (student.load(str(tiny_backbone)) for _ in range(4))
    loop.train(plain, rows(), label_loss, CONFIG, tmp_path / "plain", 1)
    loop.train(whole, rows(), label_loss, config, tmp_path / "whole", 1)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        loop.train(killed, rows(), dying_after(7), config, folder, 1, checkpoint_every_s=0)
    loop.train(again, rows(), label_loss, config, folder, 1)
    name = "qa_outputs.weight"
    assert torch.allclose(whole.get_parameter(name), again.get_parameter(name), atol=1e-6)
    assert not torch.allclose(whole.get_parameter(name), plain.get_parameter(name), atol=1e-5)


def test_a_run_leaves_its_learning_curve(tiny_backbone: Path, tmp_path: Path) -> None:
    """Also a killed one; a resumed one goes on where the checkpoint was, and its seconds count from there."""
    model = student.load(str(tiny_backbone))
    with pytest.raises(Killed):
        loop.train(model, rows(), dying_after(7), CONFIG, tmp_path, 1, checkpoint_every_s=0)
    killed = json.loads((tmp_path / "losses.json").read_text())
    assert (killed["steps"], [p["step"] for p in killed["points"]]) == (12, list(range(1, 8)))
    checkpoint = tmp_path / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"seconds": state["seconds"] + 1000}, checkpoint)
    loop.train(model, rows(), label_loss, CONFIG, tmp_path, 1)
    whole = json.loads((tmp_path / "losses.json").read_text())
    assert whole["points"][:7] == killed["points"]
    assert whole["seconds"] > 1000 > killed["seconds"] > 0
    assert [p["step"] for p in whole["points"]] == list(range(1, 13))


def test_every_row_is_seen_once_an_epoch() -> None:
    """Sorting by length must not drop or repeat a row."""
    plan = loop.batches([5 + i % 30 for i in range(101)], 8, 2, seed=3)
    half = len(plan) // 2
    for epoch in (plan[:half], plan[half:]):
        assert sorted(row for batch in epoch for row in batch) == list(range(101))


def test_training_learns(tiny_backbone: Path, tmp_path: Path) -> None:
    """A loop that cannot learn a constant answer is broken."""
    model = student.load(str(tiny_backbone))
    config = TrainConfig(epochs=6, batch_size=8, learning_rate=3e-3)
    first = float(label_loss(model, loop.batch_of(rows(), range(16))).detach())
    last = loop.train(model, rows(), label_loss, config, tmp_path, 1)
    assert last < 0.5 * first


def test_seconds_a_row_are_those_of_whole_steps(tiny_backbone: Path) -> None:
    """Of short, middle and long rows, after a step that warms up; the weights move as in training."""
    asked: list[tuple[int, int]] = []

    def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        asked.append((len(batch.rows), batch.input_ids.shape[1]))
        return label_loss(model, batch)

    model, before = student.load(str(tiny_backbone)), student.load(str(tiny_backbone))
    assert loop.seconds_a_row(model, rows(), loss, CONFIG, steps=3) > 0
    sizes, lengths = zip(*asked, strict=True)
    assert sizes == (4, 4, 4, 4)
    assert lengths[1] < lengths[2] < lengths[3] == max(len(row.input_ids) for row in rows())
    name = "qa_outputs.weight"
    assert not torch.equal(model.get_parameter(name), before.get_parameter(name))
