"""Narrower states: which columns stay, and that a narrow slice says the same wherever it is asked."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from optimizer.models import bert, neurons, student, widths
from optimizer.models.lowrank import ThinWords, factors, with_rank
from optimizer.onnx import export
from optimizer.search.candidates import nearest
from optimizer.search.costs import graph_shape
from optimizer.students import supernet
from optimizer.students.supernet import Supernet
from optimizer.study.config import DistillConfig
from optimizer.study.space import Candidate, Space
from optimizer.training import teacher_outputs
from optimizer.training.loop import batch_of
from optimizer.training.losses import Imitation, outputs_of
from optimizer.training.teacher_outputs import TeacherStates
from tests.optimizer.checkpoints import loud_bert
from tests.optimizer.students.test_supernet import batch
from tests.optimizer.training.test_loop import rows

SPACE = Space(
    layers=((0, 1), (1,), (0,)),
    heads=(1, 2),
    ffn=(32, 96),
    rank=(0, 64),
    keep=(1.0, 0.4),
    drop_after=(1,),
    hidden=(0, 64),
)
NARROW = Candidate((0, 1), 2, 96, hidden=64)
EVERY = list(
    dict.fromkeys(
        replace(NARROW, layers=layers, heads=heads, rank=rank, keep=keep, drop_after=1)
        for layers in SPACE.subsets
        for heads in SPACE.heads
        for rank in SPACE.rank
        for keep in SPACE.keep
    )
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return loud_bert(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def made(teacher: PreTrainedModel) -> Supernet:
    """Return an elastic student with words in full, so that cutting rounds nothing."""
    words = student.bert_of(teacher).embeddings.word_embeddings.weight
    thin = ThinWords(factors(words, SPACE.max_rank), 4)
    made = Supernet(teacher, thin, early=SPACE.drops, narrow=SPACE.narrows)
    for head in made.early.parameters():
        torch.nn.init.normal_(head, std=0.15)
    return made


@pytest.fixture
def net(made: Supernet) -> Supernet:
    """Return one that a test may train."""
    return copy.deepcopy(made)


@pytest.mark.parametrize("candidate", EVERY, ids=str)
@torch.no_grad()
def test_a_narrow_slice_cut_out_says_what_it_said_inside(
    net: Supernet, candidate: Candidate
) -> None:
    """Every reader, writer and normalization is cut alike."""
    batched = batch()
    inside, cut = net(batched, candidate), net.cut(candidate)
    alone = outputs_of(cut, batched)
    seen = batched.attention_mask == 1
    assert torch.allclose(inside.start[seen], alone.start[seen], atol=1e-4)
    assert torch.allclose(inside.end[seen], alone.end[seen], atol=1e-4)
    assert torch.allclose(inside.hidden[seen], alone.hidden[seen], atol=1e-4)
    assert inside.hidden.shape[-1] == bert.width_of(cut) == 64
    assert inside.columns is not None
    assert alone.columns is not None
    assert torch.equal(inside.columns, alone.columns)
    assert not torch.allclose(
        inside.start[seen], net(batched, replace(candidate, hidden=0)).start[seen]
    )


@torch.no_grad()
def test_a_slice_as_wide_as_the_teacher_is_its_own(net: Supernet, teacher: PreTrainedModel) -> None:
    """0 and the teacher's width mean the same."""
    batched = batch()
    wanted = outputs_of(teacher, batched)
    for hidden in (0, 128):
        said = net(batched, replace(NARROW, hidden=hidden))
        assert said.columns is None
        assert torch.allclose(said.start, wanted.start, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 64])
def test_a_narrow_student_passes_every_export_check(
    teacher: PreTrainedModel, tmp_path: Path, rank: int
) -> None:
    """The file says what PyTorch says, and its shape is the one whose cost was measured."""
    whole = export.graph_shape_of(student.with_low_bit_embeddings(copy.deepcopy(teacher), 4))
    narrow = widths.narrowed(copy.deepcopy(teacher), 64, None)
    narrow = bert.with_dropping(with_rank(narrow, rank, 4), ())
    shape = export.graph_shape_of(narrow)
    assert shape == graph_shape(whole, replace(NARROW, rank=rank))
    for name, to in export.TO.items():
        to(narrow, tmp_path / f"{name}.onnx")
    assert student.shape_of(narrow, 4).hidden == 64
    assert not student.has_plain_form(narrow)
    smaller = (tmp_path / "int8-dynamic.onnx").stat().st_size
    export.TO["int8-dynamic"](with_rank(copy.deepcopy(teacher), rank, 4), tmp_path / "whole.onnx")
    assert smaller < 0.8 * (tmp_path / "whole.onnx").stat().st_size


@torch.no_grad()
def test_columns_that_say_nothing_go_first(teacher: PreTrainedModel) -> None:
    """A column that holds one value everywhere is a bias; one that nobody reads is nothing."""
    model = copy.deepcopy(teacher)
    encoder = student.bert_of(model).encoder
    for layer in encoder.layer:
        block = layer.attention.self
        for part in (block.query, block.key, block.value, layer.intermediate.dense):
            part.weight[:, 3] = 0
    model.qa_outputs.weight[:, 3] = 0  # type: ignore[operator, union-attr]
    norms = [student.bert_of(model).embeddings.LayerNorm]
    norms += [layer.output.LayerNorm for layer in encoder.layer]
    norms += [layer.attention.output.LayerNorm for layer in encoder.layer]
    for norm in norms:
        norm.weight[5], norm.bias[5] = 0, 2.0
    found = widths.measure(model, neurons.random_probe(model))
    assert set(found.order[-2:].tolist()) == {3, 5}
    assert torch.allclose(found.means.before[:, 5], torch.tensor(2.0))
    assert torch.allclose(found.means.between[:, 5], torch.tensor(2.0))


@torch.no_grad()
def test_a_model_that_drops_tokens_can_become_narrower(teacher: PreTrainedModel) -> None:
    """It is watched with all tokens; the head of a drop after layers that are gone is narrowed, too."""
    model = student.cut(teacher, (0,), 96)
    dropping = bert.with_dropping(model, bert.dropping_of(model, ((2, 0.5),)))
    found = widths.narrowed(dropping, 64, None)
    assert bert.width_of(found) == 64
    (drop,) = bert.as_student(found).dropping
    assert isinstance(drop.head, nn.Linear)
    assert drop.head.in_features == 64


@torch.no_grad()
def test_what_is_left_out_stays_as_a_bias() -> None:
    """A reader of columns that hold their mean gives what it gave."""
    torch.manual_seed(1)
    weight, bias, x = torch.randn(3, 8), torch.randn(3), torch.randn(8)
    width = widths.first(torch.tensor([6, 1, 0, 7, 2, 3, 4, 5]), 4)
    assert width is not None
    assert width.kept.tolist() == [0, 1, 6, 7]
    w, b = widths.reading(weight, bias, width, x)
    assert torch.allclose(w @ x[width.kept] + b, weight @ x + bias, atol=1e-6)


def test_trained_weights_bring_their_columns(net: Supernet, teacher: PreTrainedModel) -> None:
    """A loaded elastic student is not measured anew."""
    thin = copy.deepcopy(net.thin)
    again = Supernet(teacher, thin, early=True, narrow=True, measure=False)
    again.load_state_dict(net.state_dict())
    batched = batch()
    with torch.no_grad():
        assert torch.equal(again(batched, NARROW).start, net(batched, NARROW).start)


def test_a_width_that_was_not_trained_is_refused(net: Supernet, teacher: PreTrainedModel) -> None:
    """The elastic student says which widths it knows."""
    with pytest.raises(student.ModelError, match="trained for no other width"):
        Supernet(teacher).check(NARROW)
    with pytest.raises(student.ModelError, match="is 128 wide"):
        net.check(replace(NARROW, hidden=192))
    with pytest.raises(student.ModelError, match="128 wide"):
        widths.narrowed(copy.deepcopy(teacher), 192, None)
    net.check(NARROW)


def test_narrow_slices_learn_the_teachers_states(
    teacher: PreTrainedModel, net: Supernet, tmp_path: Path
) -> None:
    """Each column is held against the teacher's column that it was."""
    features = rows(6)
    teacher_outputs.write(teacher, features, tmp_path, 128)
    targets = TeacherStates.open(tmp_path, features, 128)
    how = DistillConfig(label_weight=0.0, hidden_weight=1.0)
    batched = batch_of(features, [0, 2, 5])
    torch.manual_seed(1)
    loss = Imitation(targets, how, partial(supernet.ask_sandwich, SPACE, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    first = float(loss(net, batched).detach())
    for _ in range(8):
        optimizer.zero_grad()
        loss(net, batched).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss(net, batched).detach()) < first
    narrow = widths.narrowed(copy.deepcopy(teacher), 64, None)
    outputs = outputs_of(narrow, batched)
    assert outputs.columns is not None
    real = batched.attention_mask == 1
    states = targets.of(batched).hidden
    assert states is not None
    wanted = states[real][:, outputs.columns]
    exact = outputs._replace(hidden=states[..., outputs.columns])
    gap = Imitation(targets, how, lambda *_: [exact])(narrow, batched)
    off = Imitation(targets, how, lambda *_: [outputs])(narrow, batched)
    moved = (outputs.hidden[real] - wanted).square().mean() / wanted.var()
    assert float((off - gap).detach()) == pytest.approx(float(moved.detach()), rel=1e-3)


def test_a_space_says_its_widths() -> None:
    """A knob like the others, and silent where nobody turns it: older results stay valid."""
    assert SPACE.knobs["hidden"] == (64, 0)
    assert (SPACE.smallest.hidden, SPACE.largest.hidden) == (64, 0)
    assert nearest(SPACE, replace(NARROW, hidden=80)).hidden == 64
    assert nearest(SPACE, replace(NARROW, hidden=0)).hidden == 0
    assert "of width 64" in NARROW.label
    silent = SPACE.model_copy(update={"hidden": (0,)})
    assert "hidden" not in silent.knobs
    assert "hidden" not in silent.model_dump()
    assert SPACE.model_dump(mode="json")["hidden"] == [0, 64]
    assert SPACE.size == 2 * silent.size


def test_words_wider_than_the_states_are_refused() -> None:
    """Their projection would cost more than it saves."""
    with pytest.raises(ValidationError, match="rank 128: wider than states of 64"):
        Space(layers=((0,),), heads=(1,), ffn=(32,), rank=(0, 128), hidden=(0, 64))
    with pytest.raises(ValidationError, match="hidden"):
        Space(layers=((0,),), heads=(1,), ffn=(32,), hidden=(100,))
