"""Word embeddings as a product of two thin matrices, so made that its first columns do for a lower rank.

Legend: V vocabulary, H hidden width, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from optimizer.models.bert import linear_of, rank_of, with_thin_words, words_of
from optimizer.models.student import LowBitEmbedding, ModelError, bert_of, with_low_bit_embeddings

SPREAD = 0.5  # power of a column's size that moves into the projection


class Factors(NamedTuple):
    """Words are about `left @ right.T`; of a lower rank, the first columns of both."""

    left: torch.Tensor  # (V, r)
    right: torch.Tensor  # (H, r)


@torch.no_grad()
def factors(
    words: torch.Tensor,  # (V, H)
    rank: int,
    counts: torch.Tensor | None = None,  # (V,) how often each word occurs; none: all alike
    spread: float = SPREAD,
) -> Factors:
    """Return the factors that change least of what texts are made of.

    Rows are weighted by the root of count + 1, and directions come by what they carry. A part of
    each column's size moves to the right, so that those coded together are of like range.
    Source: Eckart & Young 1936, with rows weighted as in Chen et al. 2018 (GroupReduce), section 3.
    Raises: ModelError for a rank beyond the width.
    """
    if not 0 < rank <= words.shape[1]:
        raise ModelError(f"rank {rank}: words are {words.shape[1]} wide")
    exact = words.detach().double().cpu()
    share = torch.ones(len(exact)) if counts is None else counts.cpu() + 1
    weighted = exact * (share / share.sum()).double().sqrt()[:, None]
    power, directions = torch.linalg.eigh(weighted.T @ weighted)  # ascending
    right = directions.flip(1)[:, :rank]
    size = power.flip(0)[:rank].clamp(min=1e-12).sqrt()
    size = (size / size.mean()) ** spread
    return Factors((exact @ right / size).float(), (right * size).float())


class ThinWords(nn.Module):
    """Words of every rank up to the highest: a frozen low-bit table, and a projection to train."""

    left: torch.Tensor  # (V, r) float16, the table before it was rounded

    def __init__(self, made: Factors, bits: int) -> None:
        super().__init__()
        self.register_buffer("left", made.left.half())
        self.table = LowBitEmbedding(made.left, bits)
        self.projection = linear_of(made.right)

    def forward(self, input_ids: torch.Tensor, rank: int) -> torch.Tensor:  # (..) -> (.., H)
        return linear(self.table(input_ids)[..., :rank], self.projection.weight[:, :rank])

    def cut(self, model: PreTrainedModel, rank: int) -> PreTrainedModel:
        """Give a model the words of one rank, in place; return it as a `StudentBert`."""
        right = self.projection.weight.detach()[:, :rank]
        return with_thin_words(model, self.table.first(rank), right)

    def exact(self, rank: int) -> torch.Tensor:  # -> (V, rank)
        """Return the table of one rank as it was before rounding."""
        return self.left[:, :rank].float()


def with_rank(
    model: PreTrainedModel, rank: int, bits: int, counts: torch.Tensor | None = None
) -> PreTrainedModel:
    """Give a model words of this rank, 0 for full width, and of so many bits, in place."""
    if rank_of(model) == rank:
        return with_low_bit_embeddings(model, bits)
    embeddings = bert_of(model).embeddings
    words = words_of(embeddings, torch.arange(model.config.vocab_size)).detach()  # (V, H)
    if rank:
        made = factors(words, rank, counts)
        return with_thin_words(model, LowBitEmbedding(made.left, bits), made.right)
    embeddings.word_embeddings, embeddings.projection = LowBitEmbedding(words, bits), None
    return model


def word_counts(rows: Iterable[npt.ArrayLike], vocabulary: int) -> torch.Tensor:  # -> (V,)
    """Return how often each word occurs in rows of input ids."""
    counts = np.zeros(vocabulary, np.int64)
    for ids in rows:
        counts += np.bincount(np.asarray(ids), minlength=vocabulary)
    return torch.from_numpy(counts)
