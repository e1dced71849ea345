"""The elastic student: every candidate is a slice, and a slice cut out says the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from optimizer.models import student
from optimizer.models.bert import StudentBert
from optimizer.models.lowrank import ThinWords, factors
from optimizer.students import supernet
from optimizer.students.supernet import Supernet
from optimizer.study.config import DistillConfig
from optimizer.study.space import Candidate, Space
from optimizer.training.loop import Batch
from optimizer.training.losses import Imitation, outputs_of
from tests.optimizer.checkpoints import loud_bert, loud_mpnet

SPACE = Space(
    layers=((0, 1), (1,)),
    heads=(1, 2),
    ffn=(32, 96),
    rank=(0, 64, 128),
    keep=(1.0, 0.4),
    drop_after=(1,),
)
EVERY = list(
    dict.fromkeys(
        Candidate(layers, heads, ffn, rank=rank, keep=keep, drop_after=1)
        for layers in SPACE.subsets
        for heads in SPACE.heads
        for ffn in SPACE.ffn
        for rank in SPACE.rank
        for keep in SPACE.keep
    )
)
S = 120


@pytest.fixture(scope="module", params=[loud_bert, loud_mpnet])
def teacher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedModel:
    made: PreTrainedModel = request.param(tmp_path_factory.mktemp("teacher"))
    return made


@pytest.fixture(scope="module")
def made(teacher: PreTrainedModel) -> Supernet:
    """Return an elastic student whose early heads differ, as trained ones do."""
    base = copy.deepcopy(teacher)
    words = student.bert_of(base).embeddings.word_embeddings.weight
    thin = ThinWords(factors(words, SPACE.max_rank), 4)
    made = Supernet(student.with_low_bit_embeddings(base, 4), thin, early=SPACE.drops)
    for head in made.early.parameters():
        torch.nn.init.normal_(head, std=0.15)
    return made


@pytest.fixture
def net(made: Supernet) -> Supernet:
    """Return one that a test may train."""
    return copy.deepcopy(made)


def batch() -> Batch:
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(900, (3, S), generator=draw)
    mask = (torch.arange(S)[None] < torch.tensor([S, 97, 60])[:, None]).long()
    types = (torch.arange(S)[None] > 6).long() * mask
    gold = one_hot(torch.tensor([30, 50, 20]), S).bool()
    return Batch(ids * mask, mask, types, gold, gold.roll(2, 1), (0, 1, 2))


@pytest.mark.parametrize("candidate", EVERY[::5], ids=str)  # each value of each knob
@torch.no_grad()
def test_a_candidate_cut_out_says_what_it_said_inside(net: Supernet, candidate: Candidate) -> None:
    """What was trained and searched is what is exported and served."""
    batched = batch()
    inside = net(batched, candidate)
    alone = outputs_of(net.cut(candidate), batched)
    seen = batched.attention_mask == 1
    assert torch.allclose(inside.start[seen], alone.start[seen], atol=1e-4)
    assert torch.allclose(inside.end[seen], alone.end[seen], atol=1e-4)
    assert torch.allclose(inside.hidden[seen], alone.hidden[seen], atol=1e-4)
    assert (inside.kept is None) == (alone.kept is None) == (not candidate.drops)
    if inside.kept is not None and alone.kept is not None:
        assert torch.equal(inside.kept, alone.kept)


@pytest.mark.parametrize("keep", [1.0, 0.4])
@torch.no_grad()
def test_a_layer_that_is_named_twice_runs_twice(net: Supernet, keep: float) -> None:
    """With the same weights, inside as cut out, however much of it is left."""
    test_a_candidate_cut_out_says_what_it_said_inside(
        net, Candidate((0, 1, 1), 1, 32, rank=64, keep=keep, drop_after=2)
    )
    once, twice = (net.cut(Candidate(layers, 1, 32)) for layers in ((0, 1), (0, 1, 1)))
    assert student.parameters_of(once) == student.parameters_of(twice)
    batched = batch()
    assert not torch.allclose(outputs_of(once, batched).start, outputs_of(twice, batched).start)


def test_shared_layers_stay_shared_in_training(net: Supernet) -> None:
    """One step changes both places alike; kept weights come back shared."""
    model = net.cut(Candidate((0, 1, 1), 1, 32))
    outputs_of(model, batch()).start.sum().backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), 0.1).step()
    _, first, second = student.bert_of(model).encoder.layer
    assert first is second
    again = net.cut(Candidate((0, 1, 1), 1, 32))
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        said = [outputs_of(m, batch()).start for m in (model, again)]
    assert torch.equal(*said)
    assert not student.has_plain_form(model)


@torch.no_grad()
def test_the_whole_is_the_teacher(net: Supernet, teacher: PreTrainedModel) -> None:
    """Sorting heads and neurons changes nothing."""
    batched = batch()
    seen = batched.attention_mask == 1
    said = net(batched, SPACE.largest)
    rounded = student.with_low_bit_embeddings(copy.deepcopy(teacher), 4)
    wanted = rounded(**batched.inputs())
    assert torch.allclose(said.start[seen], wanted.start_logits[seen], atol=1e-4)


@torch.no_grad()
def test_every_knob_changes_the_answer(net: Supernet) -> None:
    """A knob that does nothing would be searched in vain."""
    batched = batch()
    said = [net(batched, candidate).start for candidate in EVERY]
    assert all(not torch.equal(a, b) for i, a in enumerate(said) for b in said[i + 1 :])


def test_a_candidate_outside_the_teacher_is_refused(net: Supernet) -> None:
    """A study's space is checked before hours are spent on it."""
    for candidate in (Candidate((0, 2), 1, 32), Candidate((0,), 3, 32), Candidate((0,), 1, 97)):
        with pytest.raises(student.ModelError, match="the teacher has 2 layers of 2 heads"):
            net.check(candidate)


def test_a_candidate_the_student_was_not_made_for_is_refused(
    net: Supernet, teacher: PreTrainedModel
) -> None:
    """Words of low rank and early heads are there where the space asks for them."""
    plain = Supernet(teacher)
    thin, fewer = Candidate((0,), 1, 32, rank=64), Candidate((0, 1), 1, 32, keep=0.5, drop_after=1)
    for candidate in (thin, fewer):
        net.check(candidate)
        with pytest.raises(student.ModelError, match="rank 0, and no early heads"):
            plain.check(candidate)
    with pytest.raises(student.ModelError, match="rank 128"):
        net.check(Candidate((0,), 1, 32, rank=192))


@torch.no_grad()
def test_each_layer_has_an_early_head_of_its_own(net: Supernet) -> None:
    """What a state says depends on how far it came: here one of three layers is left out."""
    three = copy.deepcopy(net)
    encoder = student.bert_of(three.model).encoder
    encoder.layer.append(copy.deepcopy(encoder.layer[1]))
    three.register_buffer("mean_2", three.get_buffer("mean_1"))
    three.register_buffer("neuron_mean_2", three.get_buffer("neuron_mean_1"))
    heads = [torch.nn.Linear(128, 2) for _ in range(3)]
    three.early = torch.nn.ModuleList(heads)
    cut = three.cut(Candidate((0, 2, 1), 2, 96, keep=0.4, drop_after=2))
    assert isinstance(cut, StudentBert)
    assert cut.early_outputs is not None
    assert torch.equal(cut.early_outputs.weight, heads[2].weight)
    assert cut.drops == ((2, 0.4),)


def test_a_sandwich_trains_heads_and_projection_but_no_table(net: Supernet) -> None:
    """All that is sliced learns, and rounded words stay as they are."""
    torch.manual_seed(1)
    codes = {name: tensor.clone() for name, tensor in net.named_buffers()}
    before = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    how = DistillConfig(labels_only=True)
    loss = Imitation(None, how, partial(supernet.ask_sandwich, SPACE, 1))
    batch_ = batch()
    first = float(loss(net, batch_).detach())
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(12):  # each draws candidates of its own
        optimizer.zero_grad()
        loss(net, replace(batch_, seed=step)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(loss(net, batch_).detach()) < first
    learned = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert {"early.0.weight", "thin.projection.weight"} <= learned
    assert all(torch.equal(tensor, codes[name]) for name, tensor in net.named_buffers())


@torch.no_grad()
def test_a_space_may_be_smaller_than_its_teacher(net: Supernet) -> None:
    """Its largest is then a slice, too."""
    space = SPACE.model_copy(update={"heads": (1,), "ffn": (48, 32)})
    assert space.largest.ffn == 48
    net.check(space.largest)
    batched = batch()
    seen = batched.attention_mask == 1
    inside, alone = net(batched, space.largest), outputs_of(net.cut(space.largest), batched)
    assert torch.allclose(inside.start[seen], alone.start[seen], atol=1e-4)
    assert student.heads_of(net.cut(space.largest)) == (1, 1)


def test_a_sandwich_holds_the_largest_and_the_smallest() -> None:
    """The bounds of the space are trained at every step, what lies between now and then."""
    drawn = [supernet.sandwich(SPACE, 1, step) for step in range(600)]
    assert SPACE.smallest == Candidate((1,), 1, 32, rank=64)
    assert all(d[:2] == [SPACE.largest, SPACE.smallest] for d in drawn)
    assert {c for d in drawn for c in d} == set(EVERY)


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 2, 1), (-1,)])
def test_a_space_names_layers_in_order(layers: tuple[int, ...]) -> None:
    """A list that cannot be meant is refused when the study file is read."""
    with pytest.raises(ValueError, match="layers"):
        Space(layers=(layers,), heads=(1,), ffn=(8,))
