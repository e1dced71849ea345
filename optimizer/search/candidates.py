"""What is tried of a space: what a sampler asks for, and what is looked at before it."""

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
    """What suggests values: an Optuna trial."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def suggest(trial: SuggestsValues, space: Space) -> Candidate:
    """Return the candidate that a sampler wants tried."""
    return space.candidate(partial(_suggest, trial))


def _suggest(trial: SuggestsValues, name: str, values: Sequence[Any]) -> Any:
    """A number goes in as its place in the list: then the sampler knows which are neighbours."""
    if _ordered(values):
        return values[trial.suggest_int(name, 0, len(values) - 1)]
    return trial.suggest_categorical(name, values)


def parameters_of(candidate: Candidate, space: Space) -> dict[str, Any]:
    """Return what `suggest` must be told to return this candidate, which is one of the space."""
    chosen: dict[str, Any] = {
        **{name: getattr(candidate, name) for name in KNOBS},
        **{layer_knob(i): i in candidate.layers for i in range(space.n_layers)},
        "layers": layers_text(candidate.layers),
        **_dropping(candidate, space),
    }
    return {
        name: values.index(chosen[name]) if _ordered(values) else chosen[name]
        for name, values in space.knobs.items()
    }


def _dropping(candidate: Candidate, space: Space) -> dict[str, float | int]:
    """Return values of the space that mean what the candidate does, who may say it in another way."""
    pairs = product(sorted(space.keep, reverse=True), space.drop_after)
    for keep, after in pairs:
        if replace(candidate, keep=keep, drop_after=after) == candidate:
            return {"keep": keep, "drop_after": after}
    raise ValueError(f"{candidate.label}: is not in the space, which keeps {space.keep}")


def _ordered(values: Sequence[Any]) -> bool:
    return not isinstance(values[0], bool | str)


def seeds(space: Space) -> dict[str, Candidate]:
    """Return what a search looks at first: the ends of the space, and shapes known from elsewhere.

    Each is the nearest the space has; of equal ones the first name stays. Sources: Sanh et al. 2019
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
    """Return the point of the space that is most like `wanted`, knob by knob."""
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
        **widths,
    )


def _nearest_dropping(space: Space, wanted: Candidate, layers: int) -> tuple[float, int]:
    """Return the share kept, and after how many layers; what drops tokens stays so if it can."""

    def unlike(pair: tuple[float, int]) -> tuple[bool, float, float]:
        keep, after = pair
        drops = keep < 1 and 0 < after < layers
        return drops != wanted.drops, abs(keep - wanted.keep), _apart(wanted.drop_after, after)

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
