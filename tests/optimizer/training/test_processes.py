"""Two processes of torchrun train what one does, and a killed one costs no finished step."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.models.student import ModelError
from optimizer.study.stages import CHECKPOINT
from optimizer.training import loop, teacher_outputs
from optimizer.training.teacher_outputs import TeacherStates
from tests import training_together
from tests.training_together import KILLED_AT, train

KILLED_AT_STEP = KILLED_AT - 1  # the last one that all finished

# A softmax does not see them: Adam makes whole steps of what rounding leaves of their gradient.
WITHOUT_GRADIENT = ("key.bias", "qa_outputs.bias", "early.0.bias")


def torchrun(backbone: Path, folder: Path, *kinds: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes that speak by gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.training_together", str(backbone), str(folder), *kinds]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def assert_learned_the_same(one: Path, other: Path) -> None:
    first, second = (loop.weights(folder / "weights.pt") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        if not name.endswith(WITHOUT_GRADIENT):
            assert torch.allclose(weight.float(), second[name].float(), atol=1e-4), name


@pytest.mark.usefixtures("float32")
def test_parts_of_a_batch_teach_what_the_batch_does(tiny_backbone: Path, tmp_path: Path) -> None:
    """Fewer rows in memory at once change nothing but the time."""
    whole = train("teacher", str(tiny_backbone), tmp_path / "whole")
    parts = train("teacher", str(tiny_backbone), tmp_path / "parts", at_once=2)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert_learned_the_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(("n_rows", "size", "at_once"), [(6, 2, None), (7, 3, 2), (1, 4, 1)])
def test_every_row_of_a_batch_is_in_one_part(n_rows: int, size: int, at_once: int | None) -> None:
    """Each process has as many parts as the others: they meet after every one."""
    parts = [loop.parts_of(range(n_rows), rank, size, at_once) for rank in range(size)]
    assert len({len(p) for p in parts}) == 1
    assert sorted(row for p in parts for part in p for row in part) == list(range(n_rows))
    assert all(len(part) <= (at_once or n_rows) for p in parts for part in p)


@pytest.mark.usefixtures("float32")
@pytest.mark.timeout(900)  # s: six processes that import PyTorch
def test_two_processes_learn_what_one_does(tiny_backbone: Path, tmp_path: Path) -> None:
    """With dropped tokens, hidden states, sampled shapes, masks, and one row for two; also after a kill."""
    kinds = ("elastic", "student", "pruned", "sparse")
    alone, together = tmp_path / "alone", tmp_path / "together"
    losses = {kind: train(kind, str(tiny_backbone), alone / kind) for kind in kinds}
    killed = together / "elastic"
    killed.mkdir(parents=True)
    (killed / "kill").touch()

    lost = torchrun(tiny_backbone, together, *kinds)
    assert lost.returncode != 0
    assert "run the same torchrun command again" in lost.stderr
    assert "SIGKILL" in lost.stderr, "torchrun names the process that ended"
    assert not (killed / "weights.pt").exists()
    assert len(torch.load(killed / CHECKPOINT)["losses"]) == KILLED_AT_STEP

    again = torchrun(tiny_backbone, together, *kinds)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {KILLED_AT_STEP}" in again.stderr
    lines = again.stdout.splitlines()
    assert len(lines) == 1, "the first process alone prints the result"
    assert json.loads(lines[0]) == pytest.approx(losses, rel=1e-4)
    for kind in kinds:
        assert_learned_the_same(alone / kind, together / kind)


def test_hidden_states_reach_another_process_by_their_file(tmp_path: Path) -> None:
    """They have gigabytes; on a machine without the file the message says what to do."""
    features = training_together.rows()
    states = TeacherStates.open(tmp_path, features, width=4, mode="w+")
    states.logits[:] = 2
    sent = pickle.dumps(states)
    assert len(sent) < states.logits.nbytes + 10_000
    found = pickle.loads(sent)
    assert found.hidden.shape == (len(states.logits), 4)
    assert np.array_equal(found.logits, states.logits)
    (tmp_path / teacher_outputs.HIDDEN).unlink()
    with pytest.raises(ModelError, match="share the run folder"):
        pickle.loads(sent)
