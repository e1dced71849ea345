"""Candidates of a space: those that a sampler suggests, and seeded ones that are tried first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import log
from typing import Any, Protocol

from gateway.catalog.schema import Precision
from optimizer.study.space import (
    ANY,
    DROPPING,
    KNOBS,
    NUMBERS,
    UNLIMITED,
    Candidate,
    Space,
    layer_knob,
    layers_text,
    spaced,
    zero_last,
)


class SuggestsValues(Protocol):
    """An Optuna trial, as far as it suggests values."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def suggest(trial: SuggestsValues, space: Space) -> Candidate:
    """Return the candidate that the sampler suggests."""
    return space.candidate(partial(_suggest, trial))


def _suggest(trial: SuggestsValues, name: str, values: Sequence[Any]) -> Any:
    """Suggest a number by its index in the list, so that the sampler knows which values are neighbours."""
    if is_ordered(values):
        return values[trial.suggest_int(name, 0, len(values) - 1)]
    return trial.suggest_categorical(name, values)


def parameters_of(candidate: Candidate, space: Space) -> dict[str, Any]:
    """Return the Optuna parameters for which `suggest` returns this candidate of the space."""
    chosen: dict[str, Any] = {
        **{name: getattr(candidate, name) for name in KNOBS},
        **{layer_knob(i): i in candidate.layers for i in range(space.n_layers)},
        "layers": layers_text(candidate.layers),
        **_dropping(candidate, space),
        **dict(candidate.recipe),
    }
    return {
        name: values.index(chosen[name]) if is_ordered(values) else chosen[name]
        for name, values in space.knobs.items()
    }


def _dropping(candidate: Candidate, space: Space) -> dict[str, float | int]:
    """Return the space's values that are equivalent to the candidate's token dropping."""
    pairs = product(sorted(space.keep, reverse=True), space.drop_after)
    for keep, after in pairs:
        if replace(candidate, keep=keep, drop_after=after) == candidate:
            return {"keep": keep, "drop_after": after}
    raise ValueError(f"{candidate.label}: not in the space, whose values of keep are {space.keep}")


def is_ordered(values: Sequence[Any]) -> bool:
    """Return whether a sampler chooses a knob by the index of its value."""
    return not isinstance(values[0], bool | str)


def seeds(space: Space) -> dict[str, Candidate]:
    """Return the seeded candidates by name: the ends of the space, and shapes of published models.

    Each is the nearest point of the space; of equal points the first name is kept. Sources: Sanh et al. 2019
    (DistilBERT: every second layer), Jiao et al. 2020 (TinyBERT: 4 layers of 12 heads and width
    1200), Wang et al. 2020 (MiniLM: 6 x 384, width 1536), de Wynter & Perry 2020 (Bort: 4 of 24
    layers, 8 of 16 heads, 768 of 4096 neurons, here as shares), Lan et al. 2020 (ALBERT: words of
    rank 128), Goyal et al. 2020 (PoWER-BERT: fewer tokens from layer to layer, here once).
    """
    whole = replace(space.largest, precision=Precision.INT8_DYNAMIC)
    n = space.n_layers

    def shape(layers: int, heads: float, ffn: float) -> Candidate:
        return replace(whole, layers=spaced(layers, n), heads=round(heads), ffn=round(ffn))

    wanted = {
        "smallest": space.smallest,
        "largest": space.largest,
        "whole": whole,
        "distilbert": shape(-(-n // 2), whole.heads, whole.ffn),
        "tinybert-4": shape(4, 12, 1200),
        "minilm": shape(6, 12, 1536),
        "bort": shape(round(n * 4 / 24), max(1, whole.heads / 2), max(1, whole.ffn * 768 / 4096)),
        "albert": replace(whole, rank=128),
        "power-bert": replace(whole, keep=0.5, drop_after=-(-n // 3)),
    }
    found = {name: nearest(space, candidate) for name, candidate in wanted.items()}
    first = {candidate: name for name, candidate in reversed(found.items())}
    return {name: candidate for name, candidate in found.items() if first[candidate] == name}


def nearest(space: Space, wanted: Candidate) -> Candidate:
    """Return the point of the space nearest to `wanted`, knob by knob."""
    layers = _nearest_layers(space, wanted.layers)
    keep, drop_after = _nearest_dropping(space, wanted, len(layers))
    widths = {
        name: _nearest(name, getattr(space, name), getattr(wanted, name))
        for name in NUMBERS
        if name not in DROPPING
    }
    return Candidate(
        layers=layers,
        precision=wanted.precision if wanted.precision in space.precision else space.precision[0],
        keep=keep,
        drop_after=drop_after,
        recipe=wanted.recipe or space.usual_recipe,
        **widths,
    )


def _nearest_dropping(space: Space, wanted: Candidate, layers: int) -> tuple[float, int]:
    """Return the nearest `keep` and `drop_after`; prefers values that also drop tokens, or also do not."""

    def unlike(pair: tuple[float, int]) -> tuple[bool, float, float]:
        keep, after = pair
        drops = keep < 1 and 0 < after < layers
        return (
            drops != bool(wanted.drops),
            abs(keep - wanted.keep),
            _apart(wanted.drop_after, after),
        )

    return min(product(space.keep, space.drop_after), key=unlike)


def _nearest_layers(space: Space, wanted: tuple[int, ...]) -> tuple[int, ...]:
    if space.layers == ANY:
        return space.completed(i for i in wanted if i < space.n_layers)

    def unlike(layers: tuple[int, ...]) -> tuple[int, int]:
        return abs(len(layers) - len(wanted)), len(set(layers) ^ set(wanted))

    return min(space.layers, key=unlike)


def _nearest(name: str, values: Sequence[int], wanted: int) -> int:
    return min(values, key=partial(_apart if name in UNLIMITED else _ratio, wanted))


def _apart(a: int, b: int) -> float:
    return abs(1 / zero_last(a) - 1 / zero_last(b))


def _ratio(a: int, b: int) -> float:
    return abs(log(b / a))
