"""Losses inside a student: its layers' states, and how its tokens attend, beside its teacher's.

Layers are counted from 1; 0 stands for the embeddings. Legend: B rows, S tokens, H hidden width, A width of a
layer's attention (its heads times their size), N relation heads, D = A / N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import kl_div, log_softmax

from optimizer.models.bert import IGNORE
from optimizer.models.student import ModelError, bert_of
from optimizer.study.config import HiddenLoss, IntermediateLoss, RelationLoss
from optimizer.training import processes

STATES = "states"


class Place(NamedTuple):
    """Where in a model something is watched."""

    part: str  # STATES, or `query`, `key` or `value` of its attention
    layer: int


@dataclass(frozen=True, slots=True)
class Inside:
    """What of a model can be compared with another's."""

    hidden: int  # width of its states, before columns were left out
    attention: tuple[int, ...]  # A of each layer
    whole: int  # number of its first layers that see all tokens
    columns: torch.Tensor | None = None  # of its teacher's states that are its own; None: all

    @classmethod
    def of(cls, model: Any) -> Inside:
        layers = list(bert_of(model).encoder.layer)
        drops = getattr(model, "drops", ())
        return cls(
            hidden=int(model.config.hidden_size),
            attention=tuple(layer.attention.self.query.out_features for layer in layers),
            whole=drops[0][0] if drops else len(layers),
            columns=getattr(model, "columns", None),
        )

    @property
    def n_layers(self) -> int:
        return len(self.attention)


@dataclass(frozen=True, slots=True)
class Match:
    """A place in the student and the one in its teacher that it is compared with."""

    student: Place
    teacher: Place
    weight: float
    heads: int = 0  # N; 0: states are compared
    columns: torch.Tensor | None = None  # of the teacher's states; None: all


def matches(how: Sequence[IntermediateLoss], student: Inside, teacher: Inside) -> tuple[Match, ...]:
    """Return what is compared. Raises: ModelError for a student and a teacher that cannot be."""
    found: list[Match] = []
    for loss in how:
        match = _states if isinstance(loss, HiddenLoss) else _relations
        found += match(loss, student, teacher)  # type: ignore[arg-type] # the kind was looked at
    return tuple(found)


def _states(how: HiddenLoss, student: Inside, teacher: Inside) -> list[Match]:
    if student.hidden != teacher.hidden:
        raise ModelError(
            f"loss hidden: the student's states are {student.hidden} wide and the teacher's {teacher.hidden};"
            ' take loss = "relations", which compares attention and needs no equal width'
        )
    pairs = pairs_of(how, student.n_layers, teacher.n_layers)
    for ours, theirs in pairs:
        _check_layer("hidden", student, ours)
        _check_teacher("hidden", teacher, theirs, least=0)
    weight = how.weight / len(pairs)
    return [
        Match(Place(STATES, ours), Place(STATES, theirs), weight, columns=student.columns)
        for ours, theirs in pairs
    ]


def pairs_of(how: HiddenLoss, n_student: int, n_teacher: int) -> Sequence[tuple[int, int]]:
    """Return the layers of a student with those of its teacher.

    `uniform`: m with m * n_teacher / n_student, the embeddings with the embeddings.
    Source: Jiao et al. 2020 (TinyBERT), section 4.1, g(m) = 3 m for 4 of 12 layers; rounding where the
    teacher's number is no multiple is ours. Sun et al. 2020 (MobileBERT), section 3.5, pairs equal
    numbers: `uniform` for a student as deep as its teacher.
    """
    if how.layers == "last":
        return [(n_student, n_teacher)]
    if how.layers == "uniform":
        return [(m, round(m * n_teacher / n_student)) for m in range(n_student + 1)]
    return how.layers


def _relations(how: RelationLoss, student: Inside, teacher: Inside) -> list[Match]:
    ours = student.n_layers if how.student_layer is None else how.student_layer
    theirs = teacher.n_layers if how.teacher_layer is None else how.teacher_layer
    _check_layer("relations", student, ours)
    _check_teacher("relations", teacher, theirs, least=1)
    widths = {"student": student.attention[ours - 1], "teacher": teacher.attention[theirs - 1]}
    for who, width in widths.items():
        if width % how.heads:
            raise ModelError(
                f"loss relations: the {who}'s attention is {width} wide, which {how.heads} relation heads do not"
                f" divide; set heads to a number that divides {' and '.join(map(str, widths.values()))}"
            )
    return [Match(Place(part, ours), Place(part, theirs), how.weight, how.heads) for part in how.of]


def _check_layer(loss: str, student: Inside, layer: int) -> None:
    if layer > student.n_layers:
        raise ModelError(
            f"loss {loss}: the student has no layer {layer}; name one of 1 to {student.n_layers}, or give this"
            " student other layers"
        )
    if layer > student.whole:
        raise ModelError(
            f"loss {loss}: the student's layer {layer} sees fewer tokens than the teacher's; name layers up to"
            f" {student.whole}, or a student that drops no tokens"
        )


def _check_teacher(loss: str, teacher: Inside, layer: int, *, least: int) -> None:
    if layer > teacher.n_layers:
        raise ModelError(
            f"loss {loss}: the teacher has no layer {layer}; name one of {least} to {teacher.n_layers}"
        )


@contextmanager
def watched(model: Any, places: Sequence[Place]) -> Iterator[dict[Place, torch.Tensor]]:
    """Collect what a model has at these places while it runs once."""
    seen: dict[Place, torch.Tensor] = {}
    with ExitStack() as stack:
        for place in dict.fromkeys(places):
            module, nth = _module_of(bert_of(model), place)
            hook = module.register_forward_hook(_keeping(seen, place, nth))
            stack.callback(hook.remove)
        yield seen


def _keeping(
    seen: dict[Place, torch.Tensor], place: Place, nth: int
) -> Callable[[Any, Any, torch.Tensor], None]:
    """Return a hook that keeps what the module gave when it ran for the nth time, from 0."""
    runs = iter(range(nth + 1))

    def keep(_module: Any, _inputs: Any, given: torch.Tensor) -> None:
        if next(runs, None) == nth:
            seen[place] = given

    return keep


def _module_of(bert: Any, place: Place) -> tuple[torch.nn.Module, int]:
    """Return the module of a place, and how often it runs before: a shared layer runs several times."""
    if place.layer == 0:
        embeddings: torch.nn.Module = bert.embeddings
        return embeddings, 0
    layers = list(bert.encoder.layer)
    layer = layers[place.layer - 1]
    before = sum(other is layer for other in layers[: place.layer - 1])
    if place.part == STATES:
        return layer, before
    projection: torch.nn.Module = getattr(layer.attention.self, place.part)
    return projection, before


def loss_of(
    matched: Sequence[Match],
    student: Mapping[Place, torch.Tensor],
    teacher: Mapping[Place, torch.Tensor],
    real: torch.Tensor,  # (B, S) bool, tokens that count
    share: float,
) -> torch.Tensor:
    """Return the weighted sum of all losses; of a part of a batch, the results times its share add up."""
    return torch.stack(
        [
            m.weight * _between(m, student[m.student], teacher[m.teacher], real, share)
            for m in matched
        ]
    ).sum()


def _between(
    match: Match, found: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor, share: float
) -> torch.Tensor:
    found, wanted = found.float(), wanted.float()
    if match.heads:
        return relation_loss(found, wanted, real, match.heads)
    if match.columns is not None:
        wanted = wanted[..., match.columns]
    return state_loss(found, wanted, real, share)


def state_loss(
    found: torch.Tensor,  # (B, S, H)
    wanted: torch.Tensor,  # (B, S, H)
    real: torch.Tensor,  # (B, S) bool, tokens that count
    share: float,
) -> torch.Tensor:
    """Return the mean squared difference relative to the variance of what is wanted.

    Both are of the tokens of all processes: of a part, the result times its share of the batch adds up.
    Source: Jiao et al. 2020 (TinyBERT), equation 8, without its projection; Sun et al. 2020 (MobileBERT),
    equation 2. That it is relative to the variance is ours: so a weight means the same in every layer.
    """
    others = ~real[..., None]
    squares = (found - wanted).square().masked_fill(others, 0.0).sum()
    states = wanted.masked_fill(others, 0.0)
    exact = torch.float64
    sums = [real.sum(dtype=exact) * wanted.shape[-1]]
    sums += [states.sum(dtype=exact), states.square().sum(dtype=exact)]
    moments = torch.stack(sums) * (share > 0)
    n, first, second, all_shares = processes.summed(
        torch.cat([moments, moments.new_tensor([share])])
    )
    variance = (second - first * first / n) / (n - 1)
    weight = all_shares / share if share else 0.0
    scale: torch.Tensor = weight / (n * variance)
    return squares * scale.to(squares.dtype)


def relation_loss(
    found: torch.Tensor,  # (B, S, A) queries, keys or values of all heads
    wanted: torch.Tensor,  # (B, S, A'), of a teacher; A' may differ from A
    real: torch.Tensor,  # (B, S) bool, tokens that count
    heads: int,  # N, divides A and A'
) -> torch.Tensor:
    """Return how far the tokens' relations diverge from the teacher's, as a mean over rows.

    A relation is softmax(X X^T / sqrt(D)), X being the queries (or keys, or values) of a relation head;
    the divergence is KL(teacher, student), mean over relation heads and tokens.
    Source: Wang et al. 2021 (MiniLMv2), section 3.1, equations 6 to 9.
    """
    ours, theirs = (_relations_of(x, real, heads) for x in (found, wanted))
    each = kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)  # (B, N, S)
    tokens = each.masked_fill(~real[:, None, :], 0.0).sum((1, 2))  # (B,)
    return (tokens / (heads * real.sum(-1))).mean()


def _relations_of(x: torch.Tensor, real: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the log of the relations of tokens, (B, N, S, S)."""
    parts = x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # (B, N, S, D)
    scores = parts @ parts.transpose(-1, -2) * parts.shape[-1] ** -0.5
    return log_softmax(scores.masked_fill(~real[:, None, None, :], IGNORE).float(), dim=-1)
