"""Which attention heads of a BERT matter, and a block without the others.

Norms of a head's weights say nothing about that: of the teacher's 12 heads the 6 with the largest
norms are worse than 6 at random (docs/experiments). So each head is silenced in turn and what happens to
the logits is measured, on random tokens: they rank heads as well as text does, and need no data.

Legend: B batch, S tokens, H hidden width, N heads, D head size, A = N * D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from optimizer.models import bert, position_bias

PROBE = (4, 128)  # (B, S)
SEED = 17


@dataclass(frozen=True)
class Heads:
    """What was measured of one attention block."""

    importance: torch.Tensor  # (N,) mean squared change of the logits without a head
    mean: torch.Tensor  # (A,) what the heads give the output product, averaged over tokens


@torch.no_grad()
def measure(model: PreTrainedModel, attention: Any) -> Heads:  # attention: a BertAttention in model
    """Silence each head of one block in turn, by its mean.

    Source: mean ablation; Michel et al. 2019, "Are Sixteen Heads Really Better than One?",
    section 3.2, with zeros instead of means.
    """
    size = attention.self.attention_head_size
    mixed: list[torch.Tensor] = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        mixed.append(x)
        return x

    whole = _logits_with(model, attention, watch)
    mean = mixed[0].mean((0, 1))
    changes = []
    for head in range(attention.self.num_attention_heads):
        silence = partial(_silenced, mean=mean, columns=slice(head * size, (head + 1) * size))
        changes.append((_logits_with(model, attention, silence) - whole).square().mean())
    return Heads(torch.stack(changes).cpu(), mean.cpu())


def _logits_with(
    model: PreTrainedModel, attention: Any, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return the logits after a change of what the heads give the output product, (B, S, A)."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (change(inputs[0]),)

    handle = attention.output.dense.register_forward_pre_hook(hook)
    try:
        return _logits(model)
    finally:
        handle.remove()


def _silenced(x: torch.Tensor, mean: torch.Tensor, columns: slice) -> torch.Tensor:
    x = x.clone()
    x[..., columns] = mean[columns]
    return x


def _logits(model: PreTrainedModel) -> torch.Tensor:  # (2, B, S), of a classifier (1, B, L)
    where = next(model.parameters()).device
    ids, types = (x.to(where) for x in random_tokens(model.config.vocab_size))
    was_training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=types)
    model.train(was_training)
    return torch.stack(bert.said_by(out))


def random_tokens(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:  # (B, S) ids and types
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocabulary, PROBE, generator=draw)
    return ids, (torch.arange(PROBE[1]) > PROBE[1] // 8).long().expand(PROBE)


def behead(attention: Any, heads: Heads, n_heads: int) -> None:  # attention: a BertAttention
    """Keep the `n_heads` most important heads, in place; of the others the mean stays, as a bias."""
    keep(attention, heads.importance.topk(n_heads).indices.sort().values, heads.mean)


def keep(attention: Any, kept: torch.Tensor, mean: torch.Tensor) -> None:  # (N',), (A,)
    """Keep these heads of a BertAttention, in place; of the others their mean stays, as a bias."""
    block, out = attention.self, attention.output.dense
    size = block.attention_head_size
    rows = (kept[:, None] * size + torch.arange(size)).reshape(-1)
    gone = torch.ones(out.in_features, dtype=torch.bool)
    gone[rows] = False
    write = out.weight.detach()  # (H, A)
    out.bias = nn.Parameter(out.bias.detach() + write[:, gone] @ mean[gone])
    out.weight = nn.Parameter(write[:, rows].clone())
    for part in (block.query, block.key, block.value):
        part.weight = nn.Parameter(part.weight.detach()[rows].clone())
        part.bias = nn.Parameter(part.bias.detach()[rows].clone())
        part.out_features = len(rows)
    out.in_features = block.all_head_size = len(rows)
    block.num_attention_heads = len(kept)
    position_bias.keep_heads(block, kept)
