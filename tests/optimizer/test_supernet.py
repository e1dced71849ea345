"""The elastic student: every candidate is a slice, and a slice cut out says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from optimizer import student, supernet
from optimizer.space import Candidate, Space
from optimizer.supernet import Supernet
from optimizer.training import Batch

SPACE = Space(layers=((0, 1), (1,)), heads=(1, 2), ffn=(32, 96))
EVERY = [
    Candidate(layers, heads, ffn)
    for layers in SPACE.subsets
    for heads in SPACE.heads
    for ffn in SPACE.ffn
]


@pytest.fixture(scope="module")
def teacher(tiny_backbone: Path) -> PreTrainedModel:
    return student.with_low_bit_embeddings(student.load(str(tiny_backbone)), 4)


@pytest.fixture
def net(teacher: PreTrainedModel) -> Supernet:
    return Supernet(teacher)


def batch() -> Batch:
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(30522, (3, 24), generator=draw)
    mask = (torch.arange(24)[None] < torch.tensor([24, 17, 9])[:, None]).long()
    types = (torch.arange(24)[None] > 6).long() * mask
    zeros = torch.zeros(3, dtype=torch.int64)
    return Batch(ids * mask, mask, types, zeros, zeros, (0, 1, 2))


@pytest.mark.parametrize("candidate", EVERY, ids=str)
@torch.no_grad()
def test_a_candidate_cut_out_says_what_it_said_inside(net: Supernet, candidate: Candidate) -> None:
    """What was trained and searched is what is exported and served."""
    asked = batch()
    inside = net(asked, candidate)
    alone = net.cut(candidate)(**asked.inputs())
    seen = asked.attention_mask == 1
    assert torch.allclose(inside.start[seen], alone.start_logits[seen], atol=1e-5)
    assert torch.allclose(inside.end[seen], alone.end_logits[seen], atol=1e-5)


@torch.no_grad()
def test_the_whole_is_the_teacher(net: Supernet, teacher: PreTrainedModel) -> None:
    """Sorting heads and neurons changes nothing."""
    asked = batch()
    seen = asked.attention_mask == 1
    said = net(asked, SPACE.largest)
    wanted = teacher(**asked.inputs())
    assert torch.allclose(said.start[seen], wanted.start_logits[seen], atol=1e-5)


@torch.no_grad()
def test_every_knob_changes_the_answer(net: Supernet) -> None:
    """A knob that does nothing would be searched in vain."""
    asked = batch()
    said = [net(asked, candidate).start for candidate in EVERY]
    assert all(not torch.equal(a, b) for i, a in enumerate(said) for b in said[i + 1 :])


def test_a_candidate_outside_the_teacher_is_refused(net: Supernet) -> None:
    """A study's space is checked before hours are spent on it."""
    for candidate in (Candidate((0, 2), 1, 32), Candidate((0,), 3, 32), Candidate((0,), 1, 97)):
        with pytest.raises(student.ModelError, match="the teacher has 2 layers of 2 heads"):
            net.check(candidate)


def test_a_sandwich_holds_the_largest_and_the_smallest() -> None:
    """The bounds of the space are trained at every step, what lies between now and then."""
    torch.manual_seed(1)
    drawn = [supernet.sandwich(SPACE, 1) for _ in range(40)]
    assert all(d[:2] == [SPACE.largest, SPACE.smallest] for d in drawn)
    assert {c for d in drawn for c in d} == set(EVERY)


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (-1,)])
def test_a_space_names_layers_in_order(layers: tuple[int, ...]) -> None:
    """A list that cannot be meant is refused when the study file is read."""
    with pytest.raises(ValueError, match="layers"):
        Space(layers=(layers,), heads=(1,), ffn=(8,))
