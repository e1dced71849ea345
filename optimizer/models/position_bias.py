"""Relative position bias: what an attention score gains by how far the key is from the query.

One table serves all layers, `bert.encoder.relative_attention_bias.weight`, as in MPNet. A layer that
has not all of its heads, or has them in another order, says in the buffer
`bert.encoder.layer.{i}.attention.self.bias_heads` which columns of the table are its heads'; without
the buffer, all are, in order.

Legend: B batch, S tokens, N heads of the table, M heads of a layer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, scaled_dot_product_attention, softmax

from optimizer.models.relative_position import BUCKETS, buckets_to

HIDDEN = -1e9  # the score of what is not there: padding, dropped tokens
MAX_POSITIONS = 512


def attach(encoder: Any, table: torch.Tensor) -> None:  # a BertEncoder, (BUCKETS, N)
    """Give an encoder a bias, in place; every layer has all of its heads."""
    encoder.relative_attention_bias = nn.Embedding(BUCKETS, table.shape[1])
    encoder.relative_attention_bias.weight = nn.Parameter(table.detach().clone())
    for layer in encoder.layer:
        layer.attention.self.bias_columns = table.shape[1]
        layer.attention.self.register_buffer("bias_heads", None)


def bias_of(encoder: Any) -> nn.Embedding | None:
    """Return the table of an encoder; None: it has no bias."""
    table: nn.Embedding | None = getattr(encoder, "relative_attention_bias", None)
    return table


def heads_of(block: Any) -> torch.Tensor | None:  # a BertSelfAttention; -> (M,)
    """Return which columns of the table are the heads of a layer; None: all, in order."""
    heads: torch.Tensor | None = getattr(block, "bias_heads", None)
    return heads


def number_heads(block: Any) -> None:
    """Give a layer of an encoder with a bias the buffer, in place, so that its heads may move."""
    if getattr(block, "bias_columns", 0) and block.bias_heads is None:
        block.bias_heads = torch.arange(block.bias_columns, device=block.query.weight.device)


def first_heads(block: Any, n: int) -> torch.Tensor:  # -> (n,)
    """Return the first `n` heads of a layer, those of the table's first columns before others."""
    heads = heads_of(block)
    return torch.arange(n) if heads is None else heads[:n].argsort().cpu()


def keep_heads(block: Any, kept: torch.Tensor) -> None:  # (M',) of the layer's heads
    """Say that a layer has these of its heads alone, in place; without a bias, do nothing."""
    n = getattr(block, "bias_columns", 0)
    if not n:
        return
    number_heads(block)
    left = block.bias_heads[kept.to(block.bias_heads.device)]
    block.bias_heads = None if torch.equal(left.cpu(), torch.arange(n)) else left


class Added:
    """What is added to the attention scores of all layers that see the same tokens.

    The bias is computed once, and its sum with the mask once for all layers with all heads.
    """

    def __init__(
        self,
        attention_mask: torch.Tensor,  # (B, S)
        like: torch.Tensor,  # states that are attended to
        table: nn.Embedding | None = None,
        positions: torch.Tensor | None = None,  # (B or 1, S) of the tokens; None: 0, 1, ...
    ) -> None:
        dtype = _dtype(like)
        self._mask = (1.0 - attention_mask[:, None, None, :].to(dtype)) * HIDDEN  # (B, 1, 1, S)
        if positions is None:
            positions = torch.arange(attention_mask.shape[1], device=like.device)[None]
        self._bias = None if table is None else _bias(table, positions).to(dtype)
        self._whole: torch.Tensor | None = None

    def to(self, heads: torch.Tensor | None) -> torch.Tensor:  # -> (B, 1 or M, 1 or S, S)
        """Return what a layer with these heads of the table adds; None: with all."""
        if self._bias is None:
            return self._mask
        if heads is not None:
            return self._mask + self._bias.index_select(1, heads)
        if self._whole is None:
            self._whole = self._mask + self._bias
        return self._whole


def _dtype(like: torch.Tensor) -> torch.dtype:
    """Return what scores are in: fused attention on a GPU wants the mask as its other inputs."""
    if like.is_cuda and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return like.dtype


def _bias(table: nn.Embedding, positions: torch.Tensor) -> torch.Tensor:
    """Return (B or 1, N, S, S) of tokens at these positions, (B or 1, S)."""
    distance = positions[:, None, :] - positions[:, :, None]  # key less query
    bucket = _buckets(positions.device)[distance + MAX_POSITIONS - 1]
    return embedding(bucket, table.weight).permute(0, 3, 1, 2).contiguous()


@lru_cache
def _buckets(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(buckets_to(MAX_POSITIONS)).to(device)


def attend(
    query: torch.Tensor,  # (B, M, S, D)
    key: torch.Tensor,
    value: torch.Tensor,
    added: torch.Tensor,  # (B, 1 or M, 1 or S, S)
) -> torch.Tensor:  # (B, M, S, D)
    """Return attention's output, on a GPU without its scores in memory."""
    if query.is_cuda:
        return scaled_dot_product_attention(query, key, value, attn_mask=added)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + added
    return softmax(scores, dim=-1) @ value


def kernels(table: nn.Embedding | None, x: torch.Tensor) -> AbstractContextManager[Any]:
    """Return the context in which attention with a bias runs: kernels that have its gradient."""
    if table is None or not x.is_cuda:
        return nullcontext()
    found: AbstractContextManager[Any] = sdpa_kernel(
        [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )
    return found
