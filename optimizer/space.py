"""What a student may look like: every knob is named here, once.

A point of the space is flat: each knob has one value of a fixed list, whatever the others have, as
samplers that model the whole space need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from math import log, prod
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

Choose = Callable[[str, Sequence[Any]], Any]  # a knob's name and its values -> one of them

ANY: Final = "any"  # as the layers of a space: every subset of the teacher's but the empty one


class Precision(StrEnum):
    """How the products of a model are computed."""

    INT8_DYNAMIC = "int8-dynamic"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student's shape, as a part of its teacher's, and how its weights are stored."""

    layers: tuple[int, ...]  # of the teacher, counted from 0
    heads: int  # of every layer, the most important first
    ffn: int  # feed-forward width, the most important neurons first
    embedding_bits: int = 4
    precision: Precision = Precision.INT8_DYNAMIC

    @property
    def label(self) -> str:
        layers = ",".join(map(str, self.layers))
        shape = f"{len(self.layers)} x {self.heads} x {self.ffn} (layers {layers})"
        return f"{shape}, {self.precision}, {self.embedding_bits}-bit words"


class Space(BaseModel):
    """The values of each knob; widths are cut from the teacher's, by importance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Literal["any"] | tuple[tuple[int, ...], ...]
    heads: tuple[int, ...] = Field(min_length=1)
    ffn: tuple[int, ...] = Field(min_length=1)
    embedding_bits: tuple[Literal[4, 8], ...] = Field((4,), min_length=1)
    precision: tuple[Precision, ...] = Field((Precision.INT8_DYNAMIC,), min_length=1)
    teacher_layers: int | None = Field(None, gt=0)  # for `any`; none: filled in by `within`

    @model_validator(mode="after")
    def _makes_sense(self) -> Space:
        if not self.layers:
            raise ValueError('layers: name at least one list of layers, or "any"')
        for layers in self.layers if self.layers != ANY else ():
            if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
                raise ValueError(f"layers {list(layers)}: name each once, from 0, in order")
        for name, widths in (("heads", self.heads), ("ffn", self.ffn)):
            if min(widths) < 1:
                raise ValueError(f"{name} {min(widths)}: at least 1")
        return self

    def within(self, teacher_layers: int) -> Space:
        """Return this space for a teacher of so many layers, which `any` refers to."""
        return self.model_copy(update={"teacher_layers": teacher_layers})

    @property
    def trained(self) -> Space:
        """Return the part that differs in training: what is only rounded afterwards has one value.

        So the elastic student answers no candidate twice a step.
        """
        rounded = {"embedding_bits": self.largest.embedding_bits, "precision": self.precision[0]}
        return self.model_copy(update={name: (value,) for name, value in rounded.items()})

    @property
    def n_layers(self) -> int:
        """Return how many layers of the teacher the space speaks of."""
        if self.layers != ANY:
            return 1 + max(layer for layers in self.layers for layer in layers)
        assert self.teacher_layers, "a space of any layers was not placed within a teacher"
        return self.teacher_layers

    @property
    def subsets(self) -> tuple[tuple[int, ...], ...]:
        """Return the lists of layers; of `any` the shortest and the longest alone."""
        return ((0,), tuple(range(self.n_layers))) if self.layers == ANY else self.layers

    @property
    def smallest(self) -> Candidate:
        """Return the cheapest candidate: what all others contain."""
        return self._extreme(min, Precision.INT8_DYNAMIC)

    @property
    def largest(self) -> Candidate:
        return self._extreme(max, Precision.FP32)

    def _extreme(self, best: Callable[..., Any], precision: Precision) -> Candidate:
        return Candidate(
            layers=best(self.subsets, key=len),
            heads=best(self.heads),
            ffn=best(self.ffn),
            embedding_bits=best(self.embedding_bits),
            precision=precision if precision in self.precision else self.precision[0],
        )

    @property
    def knobs(self) -> dict[str, tuple[Any, ...]]:
        """Return the values of each knob by its name; numbers ascend."""
        return {
            **self._layer_knobs,
            "heads": tuple(sorted(set(self.heads))),
            "ffn": tuple(sorted(set(self.ffn))),
            "embedding_bits": tuple(sorted(set(self.embedding_bits))),
            "precision": tuple(dict.fromkeys(p.value for p in self.precision)),
        }

    @property
    def _layer_knobs(self) -> dict[str, tuple[Any, ...]]:
        if self.layers == ANY:
            return {_layer(i): (False, True) for i in range(self.n_layers)}
        # As text: what an optimizer can take for a category.
        return {"layers": tuple(dict.fromkeys(_text(layers) for layers in self.layers))}

    @property
    def size(self) -> int:
        """Return the number of different candidates."""
        values = prod(len(values) for values in self.knobs.values())
        return values - values // 2**self.n_layers if self.layers == ANY else values

    def candidate(self, choose: Choose) -> Candidate:
        """Return the candidate that `choose` makes, one knob after the other."""
        return self._of({name: choose(name, values) for name, values in self.knobs.items()})

    def _of(self, chosen: Mapping[str, Any]) -> Candidate:
        if self.layers == ANY:
            layers = tuple(i for i in range(self.n_layers) if chosen[_layer(i)]) or (0,)
        else:
            layers = tuple(int(layer) for layer in chosen["layers"].split(","))
        return Candidate(
            layers=layers,
            heads=chosen["heads"],
            ffn=chosen["ffn"],
            embedding_bits=chosen["embedding_bits"],
            precision=Precision(chosen["precision"]),
        )

    def nearest(self, wanted: Candidate) -> Candidate:
        """Return the point of the space that is most like `wanted`, knob by knob."""
        return Candidate(
            layers=self._nearest_layers(wanted.layers),
            heads=_nearest(self.heads, wanted.heads),
            ffn=_nearest(self.ffn, wanted.ffn),
            embedding_bits=_nearest(self.embedding_bits, wanted.embedding_bits),
            precision=wanted.precision if wanted.precision in self.precision else self.precision[0],
        )

    def _nearest_layers(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        if self.layers == ANY:
            return tuple(i for i in wanted if i < self.n_layers) or (0,)

        def unlike(layers: tuple[int, ...]) -> tuple[int, int]:
            return abs(len(layers) - len(wanted)), len(set(layers) ^ set(wanted))

        return min(self.layers, key=unlike)


def _layer(i: int) -> str:
    return f"layer_{i}"


def _text(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(log(value / wanted)))


class Asking(Protocol):
    """What suggests values: an Optuna trial."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


def suggest(trial: Asking, space: Space) -> Candidate:
    """Return the candidate that a sampler wants tried."""
    return space.candidate(partial(_suggest, trial))


def _suggest(trial: Asking, name: str, values: Sequence[Any]) -> Any:
    """A number goes in as its place in the list: then the sampler knows which are neighbours."""
    if _ordered(values):
        return values[trial.suggest_int(name, 0, len(values) - 1)]
    return trial.suggest_categorical(name, values)


def parameters_of(candidate: Candidate, space: Space) -> dict[str, Any]:
    """Return what `suggest` must be told to return this candidate, which is one of the space."""
    chosen: dict[str, Any] = {
        "layers": _text(candidate.layers),
        **{_layer(i): i in candidate.layers for i in range(space.n_layers)},
        "heads": candidate.heads,
        "ffn": candidate.ffn,
        "embedding_bits": candidate.embedding_bits,
        "precision": candidate.precision.value,
    }
    return {
        name: values.index(chosen[name]) if _ordered(values) else chosen[name]
        for name, values in space.knobs.items()
    }


def _ordered(values: Sequence[Any]) -> bool:
    return not isinstance(values[0], bool | str)


def seeds(space: Space) -> dict[str, Candidate]:
    """Return what a search looks at first: the ends of the space, and shapes known from elsewhere.

    Each is the nearest the space has; of equal ones the first name stays. Sources: Sanh et al. 2019
    (DistilBERT: every second layer), Jiao et al. 2020 (TinyBERT: 4 layers of 12 heads and width
    1200), Wang et al. 2020 (MiniLM: 6 x 384, width 1536), de Wynter & Perry 2020 (Bort: 4 of 24
    layers, 8 of 16 heads, 768 of 4096 neurons, here as shares).
    """
    whole = replace(space.largest, precision=Precision.INT8_DYNAMIC)
    n = space.n_layers

    def shape(layers: int, heads: float, ffn: float) -> Candidate:
        return replace(whole, layers=_spaced(layers, n), heads=round(heads), ffn=round(ffn))

    wanted = {
        "smallest": space.smallest,
        "largest": space.largest,
        "whole": whole,
        "distilbert": shape(-(-n // 2), whole.heads, whole.ffn),
        "tinybert-4": shape(4, 12, 1200),
        "minilm": shape(6, 12, 1536),
        "bort": shape(round(n * 4 / 24), max(1, whole.heads / 2), max(1, whole.ffn * 768 / 4096)),
    }
    found = {name: space.nearest(candidate) for name, candidate in wanted.items()}
    first = {candidate: name for name, candidate in reversed(found.items())}
    return {name: candidate for name, candidate in found.items() if first[candidate] == name}


def _spaced(n: int, of: int) -> tuple[int, ...]:
    """Return `n` layers of a teacher's `of`, as evenly as they can lie, the first one in."""
    n = min(max(1, n), of)
    return tuple(i * of // n for i in range(n))
