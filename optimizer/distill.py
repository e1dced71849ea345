"""Losses: gold spans, and a student's outputs and states pulled towards its teacher's.

Legend: B rows, S tokens, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from optimizer.config import DistillConfig
from optimizer.teacher_states import TeacherStates, Told
from optimizer.training import IGNORE, Batch


class Outputs(NamedTuple):
    """What a model says to a batch."""

    start: torch.Tensor  # (B, S), padding IGNORE
    end: torch.Tensor  # (B, S)
    hidden: torch.Tensor  # (B, S, H) of the last layer


Ask = Callable[[torch.nn.Module, Batch], Sequence[Outputs]]  # a model, or several of its slices


def outputs_of(model: torch.nn.Module, batch: Batch) -> Outputs:
    """Return what a Hugging Face model says."""
    out = model(**batch.inputs(), output_hidden_states=True)
    return as_outputs(out.start_logits, out.end_logits, out.hidden_states[-1], batch)


def as_outputs(
    start: torch.Tensor, end: torch.Tensor, hidden: torch.Tensor, batch: Batch
) -> Outputs:
    """Return the outputs with padding set to IGNORE."""
    padding = batch.attention_mask == 0
    return Outputs(
        start.float().masked_fill(padding, IGNORE), end.float().masked_fill(padding, IGNORE), hidden
    )


def label_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy of the gold start and end. Source: Devlin et al. 2019."""
    out = outputs_of(model, batch)
    return (cross_entropy(out.start, batch.start) + cross_entropy(out.end, batch.end)) / 2


class Imitation:
    """A teacher's outputs and last hidden states, mixed with the gold labels.

    No layer of a student is mapped to one of the teacher's: the last states are the span head's
    whole input, whatever came before.
    Source: Hinton et al. 2015, section 2; Jiao et al. 2020 (TinyBERT), equation 8.
    """

    def __init__(
        self,
        teacher: TeacherStates,
        how: DistillConfig,
        ask: Ask = lambda model, batch: [outputs_of(model, batch)],
    ) -> None:
        self._teacher = teacher
        self._how = how
        self._ask = ask

    def __call__(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss of what is asked."""
        told = self._teacher.of(batch)
        losses = [self._loss(out, told, batch) for out in self._ask(model, batch)]
        return torch.stack(losses).mean()

    def _loss(self, out: Outputs, told: Told, batch: Batch) -> torch.Tensor:
        t, label_weight = self._how.temperature, self._how.label_weight
        soft = soft_loss(out.start, told.start, t) + soft_loss(out.end, told.end, t)
        hard = cross_entropy(out.start, batch.start) + cross_entropy(out.end, batch.end)
        spans = ((1 - label_weight) * soft + label_weight * hard) / 2
        if not self._how.hidden_weight:
            return spans
        real = batch.attention_mask == 1
        wanted = told.hidden[real]  # (tokens, H)
        gap = (out.hidden.float()[real] - wanted).square().mean() / wanted.var()
        return spans + self._how.hidden_weight * gap


def soft_loss(found: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the divergence from the wanted distribution, both (B, S) logits, softened alike."""
    t = temperature
    wanted_p = softmax(wanted / t, dim=-1)
    return kl_div(log_softmax(found / t, dim=-1), wanted_p, reduction="batchmean") * t * t
