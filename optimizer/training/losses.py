"""Losses: gold spans or labels, and a student's outputs and states pulled towards its teacher's.

A model says one distribution or two: over the labels, or over the tokens for start and end. Each is held against
gold and teacher alike, and a loss is their mean.

Legend: B rows, S tokens, H hidden width, L labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    kl_div,
    log_softmax,
    one_hot,
    softmax,
)

from optimizer.models.bert import IGNORE, LayersOutput, said_by
from optimizer.study.config import DistillConfig
from optimizer.training import intermediate
from optimizer.training.intermediate import Match, Place, state_loss
from optimizer.training.loop import Batch
from optimizer.training.teacher_outputs import TeacherOutputs

Said = tuple[torch.Tensor, ...]  # start and end logits, (B, S) each, or those of labels, (B, L)


class Outputs(NamedTuple):
    """What a model says to a batch."""

    logits: Said  # padding IGNORE
    hidden: torch.Tensor  # (B, S, H) of the last layer
    early: tuple[Said, ...] = ()  # of each early head, padding IGNORE
    kept: torch.Tensor | None = None  # (B, S) bool, tokens of the last layer; none: all
    columns: torch.Tensor | None = None  # of the teacher's states that `hidden` is; none: all
    inner: Mapping[Place, torch.Tensor] = {}  # what was watched

    @property
    def start(self) -> torch.Tensor:  # (B, S)
        return self.logits[0]

    @property
    def end(self) -> torch.Tensor:  # (B, S)
        return self.logits[1]


class Targets(Protocol):
    """What students are pulled towards: a model's own outputs and states, or mapped answers."""

    def of(self, batch: Batch) -> TeacherOutputs: ...


Ask = Callable[[torch.nn.Module, Batch], Sequence[Outputs]]  # a model, or several of its slices


def outputs_of(model: torch.nn.Module, batch: Batch, places: Sequence[Place] = ()) -> Outputs:
    """Return what a Hugging Face model says, and has at these places."""
    with intermediate.watched(model, places) as inner:
        out = model(**batch.inputs(), output_hidden_states=True)
    said, hidden = said_by(out), out.hidden_states[-1]
    early, kept, columns = (getattr(out, x, None) for x in ("early_logits", "kept", "columns"))
    if len(said) == 1:
        return Outputs((said[0].float(),), hidden, columns=columns, inner=inner)
    layers = LayersOutput(torch.stack(said, dim=-1), hidden, early or (), kept)
    return as_outputs(layers, batch, columns)._replace(inner=inner)


def as_outputs(said: LayersOutput, batch: Batch, columns: torch.Tensor | None = None) -> Outputs:
    """Return the outputs with padding set to IGNORE; `columns`: of the teacher's states, none: all."""
    padding = batch.attention_mask == 0

    def spans(logits: torch.Tensor) -> Said:  # (B, S, 2)
        return logits.float().masked_fill(padding[..., None], IGNORE).unbind(-1)

    early = tuple(spans(logits) for logits in said.early)
    return Outputs(spans(said.logits), said.hidden, early, said.kept, columns)


def as_classes(said: LayersOutput, columns: torch.Tensor | None = None) -> Outputs:
    """Return the outputs of a classifier, read at the first token; `columns` as in `as_outputs`."""
    return Outputs((said.logits[:, 0].float(),), said.hidden, columns=columns)


def label_loss(
    model: torch.nn.Module, batch: Batch, *, answerability_weight: float = 0.0
) -> torch.Tensor:
    """Return the loss of the gold answers or labels, and as said of whether there is an answer.

    Early heads learn the same, by the default weight.
    """

    def loss_of(said: Said) -> torch.Tensor:
        loss = _hard_loss(batch, said)
        if answerability_weight:
            loss = loss + answerability_weight * answerability_loss(batch, said)
        return loss

    return _weighted(outputs_of(model, batch), DistillConfig(), loss_of)


def _hard_loss(batch: Batch, said: Said) -> torch.Tensor:
    pairs = zip(said, _golds(batch, said), strict=True)
    return torch.stack([any_of(logits, gold) for logits, gold in pairs]).mean()


def _golds(batch: Batch, said: Said) -> Said:
    """Return where each distribution should lie, as booleans of its shape."""
    if batch.labels is None:
        return batch.starts, batch.ends
    return (one_hot(batch.labels, said[0].shape[-1]).bool(),)


def any_of(logits: torch.Tensor, gold: torch.Tensor) -> torch.Tensor:  # (B, S or L), the same, bool
    """Return the mean of -log of the probability that all gold positions have together.

    Source: Clark & Gardner 2018, section 2.2 (summed objective); with one gold, cross-entropy.
    """
    found = logits.masked_fill(~gold, IGNORE).logsumexp(-1)
    return (logits.logsumexp(-1) - found).mean()


def answerability_loss(batch: Batch, said: Said) -> torch.Tensor:
    """Return the cross-entropy of the decision to abstain, by the difference that decoding uses.

    The no-answer score at position 0 against all that the context offers: a verifier without
    weights of its own, so that a served model looks like any other.
    Source: Zhang et al. 2021 (Retro-Reader), section 3.2, for a loss of answerability beside the spans.
    """
    start, end = said
    elsewhere = batch.token_type_ids != 1
    spans = sum(x.masked_fill(elsewhere, IGNORE).logsumexp(-1) for x in (start, end))  # (B,)
    null = start[:, 0] + end[:, 0]
    return binary_cross_entropy_with_logits(null - spans, batch.starts[:, 0].float())


def _weighted(
    out: Outputs, how: DistillConfig, loss_of: Callable[[Said], torch.Tensor]
) -> torch.Tensor:
    """Return the loss of the final logits, plus the weighted mean of the early heads'."""
    loss = loss_of(out.logits)
    if not out.early:
        return loss
    return loss + how.early_weight * torch.stack([loss_of(said) for said in out.early]).mean()


def _ask_whole(
    model: torch.nn.Module, batch: Batch, places: Sequence[Place] = ()
) -> Sequence[Outputs]:
    return [outputs_of(model, batch, places)]


class Imitation:
    """A teacher's outputs and last hidden states, mixed with the gold labels.

    No other layer of a student is mapped to one of the teacher's, unless it is asked for: the last states
    are the head's whole input, whatever came before.
    Source: Hinton et al. 2015, section 2; Jiao et al. 2020 (TinyBERT), equation 8.
    """

    def __init__(
        self,
        teacher: Targets | None,
        how: DistillConfig,
        ask: Ask | None = None,
        matched: Sequence[Match] = (),
    ) -> None:
        """`teacher`: None when students learn from labels alone.

        `ask`: None: the whole model. `matched`: what is compared inside the model and its teacher.
        """
        assert how.labels_only or teacher is not None, "there is nobody to imitate"
        self._teacher = teacher
        self._how = how
        self._matched = tuple(matched)
        self._ask = ask or partial(_ask_whole, places=tuple(m.student for m in self._matched))

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of the outputs that `ask` returned."""
        targets = None if self._teacher is None else self._teacher.of(batch)
        losses = [self._loss(out, targets, batch) for out in self._ask(model, batch)]
        return torch.stack(losses).mean()

    def _loss(self, out: Outputs, targets: TeacherOutputs | None, batch: Batch) -> torch.Tensor:
        if targets is None or self._how.labels_only:
            return _weighted(out, self._how, partial(_hard_loss, batch))
        said = _weighted(out, self._how, partial(self._mixed_loss, batch, targets))
        if self._matched:
            real, share = batch.attention_mask == 1, batch.share
            inside = intermediate.loss_of(self._matched, out.inner, targets.inner, real, share)
            said = said + self._how.intermediate_weight * inside
        wide = out.columns is not None  # a part of the teacher's width
        if (
            not self._how.hidden_weight
            or targets.hidden is None
            or (not wide and out.hidden.shape[-1] != targets.hidden.shape[-1])
        ):
            return said
        real = batch.attention_mask == 1
        if out.kept is not None:
            real &= out.kept
        wanted = targets.hidden  # (B, S, H)
        if out.columns is not None:
            wanted = wanted[..., out.columns]
        return said + self._how.hidden_weight * state_loss(
            out.hidden.float(), wanted, real, batch.share
        )

    def _mixed_loss(self, batch: Batch, targets: TeacherOutputs, said: Said) -> torch.Tensor:
        t, label_weight = self._how.temperature, self._how.label_weight
        pairs = zip(said, targets.logits, strict=True)
        soft = torch.stack([soft_loss(ours, theirs, t) for ours, theirs in pairs]).mean()
        return (1 - label_weight) * soft + label_weight * _hard_loss(batch, said)


def soft_loss(found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the divergence from the wanted distribution, both (B, S) or (B, L) logits, softened alike."""
    t = temperature
    wanted_p = softmax(wanted / t, dim=-1)
    return kl_div(log_softmax(found / t, dim=-1), wanted_p, reduction="batchmean") * t * t
