"""How a number of neurons or heads is spread over layers: what matters most, wherever it is, stays.

Pure: importance in, widths out. A layer keeps whole blocks of its units, and never none of them: a
product of width 0 cannot be exported.

Legend: U units (neurons or heads) of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

NEURONS: Final = 64  # of a layer, kept or left out together: what INT8 products are fast at
HEADS: Final = 1


@dataclass(frozen=True, slots=True)
class Mean:
    """A width that layers have on average; how important their units are decides on each."""

    width: float


Widths = int | Sequence[int] | Mean  # of all layers, of each, or on average


def spread(importance: Sequence[torch.Tensor], mean: float, block: int) -> tuple[int, ...]:
    """Return how many units each layer keeps: its best blocks, by the mean importance of their units.

    `importance`: (U,) of each layer, the same measure in all. Widths are multiples of `block`, or all
    of a layer's; their mean is at most `mean`, which is at least `block`. A layer keeps its first
    block whatever it is worth (`clamped`).
    Source: for one ranking over all layers, Michel et al. 2019, section 4.1; Xia et al. 2022 (CoFi),
    section 3.1, whose masks are learned instead.
    """
    assert mean >= block, "less than a block of each layer"
    ranked = _ranked(importance, block)
    firsts = [part for part in ranked if not part.first]
    return _taken(firsts, [part for part in ranked if part.first], len(importance) * mean)


def clamped(importance: Sequence[torch.Tensor], mean: float, block: int) -> list[int]:
    """Return the layers that keep their first block although all of it matters less than others'."""
    alone = _taken([], _ranked(importance, block), len(importance) * mean, len(importance))
    return [layer for layer, width in enumerate(alone) if not width]


def best(importance: torch.Tensor, n: int) -> torch.Tensor:  # (U,) -> (n,) ascending
    """Return the most important units."""
    return importance.topk(n).indices.sort().values


class _Block(NamedTuple):
    layer: int
    first: int  # of its units, in the order of importance
    size: int
    importance: float  # of a unit, on average


def _ranked(importance: Sequence[torch.Tensor], block: int) -> list[_Block]:
    """Return the blocks of all layers, the most important first; those of a layer stay in order."""
    found = [
        _Block(layer, first, len(part), float(part.mean()))
        for layer, units in enumerate(importance)
        for first, part in _blocks(units, block)
    ]
    return sorted(found, key=lambda part: (-part.importance, part.first, part.layer))


def _blocks(units: torch.Tensor, block: int) -> list[tuple[int, torch.Tensor]]:
    """Return the blocks of a layer, the most important units first, with the place of each."""
    ordered = units.double().sort(descending=True).values
    return [(first, ordered[first : first + block]) for first in range(0, len(ordered), block)]


def _taken(
    certain: Sequence[_Block], ranked: Sequence[_Block], room: float, n_layers: int = 0
) -> tuple[int, ...]:
    """Return the widths of the layers with the certain blocks, and the first others that fit."""
    kept = [0] * (n_layers or len(certain))
    for part in certain:
        kept[part.layer] += part.size
    room -= sum(kept)
    for part in ranked:
        if part.size > room:
            break
        kept[part.layer] += part.size
        room -= part.size
    return tuple(kept)
