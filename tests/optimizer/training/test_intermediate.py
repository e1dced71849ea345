"""What is inside a student is compared with what is inside its teacher, as the papers say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from optimizer.models import bert, student
from optimizer.models.bert import Dropping
from optimizer.models.student import ModelError
from optimizer.study.config import DistillConfig, HiddenLoss, IntermediateLoss, RelationLoss
from optimizer.training import intermediate, loop
from optimizer.training.intermediate import STATES, Inside, Match, Place
from optimizer.training.losses import Imitation, outputs_of
from optimizer.training.teacher_outputs import LiveTeacher
from tests.optimizer.training.test_loop import rows

DEEP, SHALLOW = Inside(64, (64,) * 12, 12), Inside(64, (64,) * 4, 4)


@pytest.fixture
def teacher(tiny_backbone: Path) -> PreTrainedModel:
    return student.load(str(tiny_backbone)).eval()  # type: ignore[no-any-return, no-untyped-call]


def drawn(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    return np.asarray(shares / shares.sum())


def test_relations_are_those_of_minilm() -> None:
    """Token by token and head by head in numpy, for a teacher of another width, without padding."""
    heads, lengths = 3, (5, 4)
    found, wanted = drawn(2, 5, 12, seed=1), drawn(2, 5, 24, seed=2)
    rows_ = []
    for b, n in enumerate(lengths):
        each = []
        for h in range(heads):
            ours = found[b, :n, h * 4 : h * 4 + 4]
            theirs = wanted[b, :n, h * 8 : h * 8 + 8]
            for t in range(n):
                p = softmax(theirs @ theirs[t] / np.sqrt(8))
                q = softmax(ours @ ours[t] / np.sqrt(4))
                each.append(float((p * np.log(p / q)).sum()))
        rows_.append(sum(each) / (heads * n))
    real = torch.tensor([[True] * 5, [True] * 4 + [False]])
    loss = intermediate.relation_loss(tensor(found), tensor(wanted), real, heads)
    assert float(loss) == pytest.approx(np.mean(rows_), rel=1e-5)


def test_states_are_compared_by_their_squares() -> None:
    """Relative to the variance of the teacher's, over the tokens that are there."""
    found, wanted = drawn(2, 3, 4, seed=3), drawn(2, 3, 4, seed=4)
    real = np.array([[True, True, True], [True, False, False]])
    squares = ((found - wanted)[real] ** 2).mean()
    expected = squares / wanted[real].var(ddof=1)
    loss = intermediate.state_loss(tensor(found), tensor(wanted), torch.from_numpy(real), 1.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "n_student", "n_teacher", "pairs"),
    [
        ("last", 4, 12, [(4, 12)]),
        ("uniform", 4, 12, [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]),
        ("uniform", 3, 3, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("uniform", 5, 12, [(0, 0), (1, 2), (2, 5), (3, 7), (4, 10), (5, 12)]),
        (((1, 2), (2, 8)), 4, 12, [(1, 2), (2, 8)]),
    ],
)
def test_layers_are_mapped_by_name(
    layers: Any, n_student: int, n_teacher: int, pairs: list[tuple[int, int]]
) -> None:
    """TinyBERT's map for a shallower student, MobileBERT's for one as deep."""
    how = HiddenLoss(loss="hidden", layers=layers)
    assert list(intermediate.pairs_of(how, n_student, n_teacher)) == pairs


def test_the_weight_of_a_loss_is_shared_by_its_layers() -> None:
    """So that a map of more layers pulls no harder; each relation has the weight of its own."""
    how = (
        HiddenLoss(loss="hidden", layers=((1, 3), (2, 6)), weight=3.0),
        RelationLoss(
            loss="relations", of=("query", "value"), heads=8, teacher_layer=10, weight=0.5
        ),
    )
    assert intermediate.matches(how, SHALLOW, DEEP) == (
        Match(Place(STATES, 1), Place(STATES, 3), 1.5),
        Match(Place(STATES, 2), Place(STATES, 6), 1.5),
        Match(Place("query", 4), Place("query", 10), 0.5, 8),
        Match(Place("value", 4), Place("value", 10), 0.5, 8),
    )


NARROW, FEW = Inside(32, (32,) * 4, 4), Inside(64, (64, 64, 64, 64), 2)
HIDDEN, RELATIONS = HiddenLoss(loss="hidden"), RelationLoss(loss="relations", heads=8)


@pytest.mark.parametrize(
    ("how", "ours", "said"),
    [
        (HIDDEN, NARROW, '32 wide and the teacher\'s 64; take loss = "relations"'),
        (HIDDEN, FEW, "layer 4 sees fewer tokens .* name layers up to 2"),
        (HiddenLoss(loss="hidden", layers=((5, 1),)), SHALLOW, "no layer 5; name one of 1 to 4"),
        (HiddenLoss(loss="hidden", layers=((1, 13),)), SHALLOW, "no layer 13; name one of 0 to 12"),
        (RELATIONS.model_copy(update={"heads": 12}), SHALLOW, "12 relation heads do not divide"),
        (RELATIONS.model_copy(update={"student_layer": 3}), FEW, "layer 3 sees fewer tokens"),
        (RELATIONS.model_copy(update={"teacher_layer": 13}), SHALLOW, "has no layer 13"),
    ],
)
def test_what_cannot_be_matched_is_refused(how: IntermediateLoss, ours: Inside, said: str) -> None:
    """Before the training, with the numbers and with what to write instead."""
    with pytest.raises(ModelError, match=said):
        intermediate.matches((how,), ours, DEEP)


def test_attention_needs_no_equal_width() -> None:
    """Why relations are for students of another family."""
    found = intermediate.matches((RELATIONS,), NARROW, DEEP)
    assert [m.student.part for m in found] == ["query", "key", "value"]


@torch.no_grad()
def test_what_is_watched_is_what_the_model_has(teacher: PreTrainedModel) -> None:
    """The states that transformers returns, and the queries that follow from them."""
    batch = loop.batch_of(rows(4), range(4))
    places = [Place(STATES, 0), Place(STATES, 1), Place(STATES, 2), Place("query", 2)]
    states = teacher(**batch.inputs(), output_hidden_states=True).hidden_states
    hooks = [len(module._forward_hooks) for module in teacher.modules()]
    inner = outputs_of(teacher, batch, places).inner
    for layer in range(3):
        assert torch.equal(inner[Place(STATES, layer)], states[layer])
    block = student.bert_of(teacher).encoder.layer[1].attention.self
    assert torch.equal(inner[Place("query", 2)], block.query(states[1]))
    assert [len(module._forward_hooks) for module in teacher.modules()] == hooks


@torch.no_grad()
def test_a_layer_that_runs_twice_is_watched_where_it_is_asked(teacher: PreTrainedModel) -> None:
    """Both runs have the same module, and other states."""
    twice = student.cut(teacher, (0, 0), 96)
    batch = loop.batch_of(rows(4), range(4))
    inner = outputs_of(twice, batch, [Place(STATES, 1), Place(STATES, 2)]).inner
    states = twice(**batch.inputs(), output_hidden_states=True).hidden_states
    assert torch.equal(inner[Place(STATES, 1)], states[1])
    assert torch.equal(inner[Place(STATES, 2)], states[2])


def imitation(
    teacher: PreTrainedModel, model: PreTrainedModel, *how: IntermediateLoss, weight: float = 1.0
) -> Imitation:
    """Return the loss of a student's insides alone, but for the spans."""
    matched = intermediate.matches(how, Inside.of(model), Inside.of(teacher))
    asked = LiveTeacher.of_model(teacher, [match.teacher for match in matched])
    distill = DistillConfig(label_weight=0.0, hidden_weight=0.0, intermediate_weight=weight)
    return Imitation(asked, distill, matched=matched)


@torch.no_grad()
def test_a_student_like_its_teacher_has_no_loss_inside(teacher: PreTrainedModel) -> None:
    """And one whose layers differ has one, by the weight, however alike the answers are."""
    how = (HiddenLoss(loss="hidden", layers="uniform"), RelationLoss(loss="relations", heads=4))
    batch = loop.batch_of(rows(4), range(4))
    other = copy.deepcopy(teacher)
    assert float(imitation(teacher, other, *how)(other, batch)) == pytest.approx(0, abs=1e-4)
    torch.nn.init.normal_(student.bert_of(other).encoder.layer[1].attention.self.key.weight)
    losses = [
        float(imitation(teacher, other, *how, weight=w)(other, batch)) for w in (0.0, 1.0, 2.0)
    ]
    assert losses[1] > losses[0] + 1e-3
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)


def test_a_student_of_fewer_layers_heads_and_tokens_learns_from_inside(
    teacher: PreTrainedModel,
) -> None:
    """Gradients reach the layers that are compared: a real student, and a smaller attention."""
    model = student.cut(teacher, (0, 1), 48, heads=1)
    head = copy.deepcopy(teacher.get_submodule("qa_outputs"))
    assert isinstance(head, torch.nn.Linear)
    model = bert.with_dropping(model, [Dropping(1, 0.5, head)])
    how = (
        HiddenLoss(loss="hidden", layers=((1, 1),)),
        RelationLoss(loss="relations", heads=4, student_layer=1),
    )
    batch = loop.batch_of(rows(4), range(4))
    imitation(teacher, model, *how)(model, batch).backward()  # type: ignore[no-untyped-call]
    query = student.bert_of(model).encoder.layer[0].attention.self.query
    assert query.out_features == 32
    assert float(query.weight.grad.abs().sum()) > 0
    teachers = student.bert_of(teacher).encoder.layer[0].attention.self.query
    assert teachers.weight.grad is None
