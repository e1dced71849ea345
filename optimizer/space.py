"""What a student may look like: every knob is named here, once.

A point of the space is flat: each knob has one value of a fixed list, whatever the others have, as
samplers that model the whole space need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import product
from math import comb, inf, log, prod
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Choose = Callable[[str, Sequence[Any]], Any]  # a knob's name and its values -> one of them

ANY: Final = "any"  # as the layers of a space: every subset of the teacher's but the smallest ones
RANK_STEP: Final = 64  # values of a low-bit row that share a scale
TEACHERS: Final = (0,)  # as the widths of a space: the teacher's alone


class Precision(StrEnum):
    """How the products of a model are computed."""

    INT8_DYNAMIC = "int8-dynamic"
    FP32 = "fp32"
    FP16 = "fp16"  # for a GPU


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student's shape, as a part of its teacher's, and how its weights are stored."""

    layers: tuple[int, ...]  # of the teacher, counted from 0
    heads: int  # of every layer, the most important first
    ffn: int  # feed-forward width, the most important neurons first
    embedding_bits: int = 4
    precision: Precision = Precision.INT8_DYNAMIC
    rank: int = 0  # of the words; 0: as wide as the states
    keep: float = 1.0  # share of the tokens that the layers after the first `drop_after` see
    drop_after: int = 0  # of its own layers; 0: all see all tokens
    hidden: int = 0  # width of the states, the most important columns; 0: the teacher's

    def __post_init__(self) -> None:
        """Equal students are equal candidates: what drops no token says so in one way."""
        if self.keep == 1 or not 0 < self.drop_after < len(self.layers):
            object.__setattr__(self, "keep", 1.0)
            object.__setattr__(self, "drop_after", 0)

    @property
    def drops(self) -> bool:
        """Say whether some layers see fewer tokens."""
        return self.drop_after > 0

    @property
    def label(self) -> str:
        layers = ",".join(map(str, self.layers))
        wide = f" of width {self.hidden}" if self.hidden else ""
        shape = f"{len(self.layers)} x {self.heads} x {self.ffn}{wide} (layers {layers})"
        rank = f" of rank {self.rank}" if self.rank else ""
        words = f"{self.embedding_bits}-bit words{rank}"
        return ", ".join([shape, self.precision, words, *([self.tokens] if self.drops else [])])

    @property
    def tokens(self) -> str:
        """Return which tokens its layers see, in words."""
        return f"{self.keep:.0%} of tokens after {self.drop_after}" if self.drops else "all tokens"


class Space(BaseModel):
    """The values of each knob; widths are cut from the teacher's, by importance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Literal["any"] | tuple[tuple[int, ...], ...]
    heads: tuple[int, ...] = Field(min_length=1)
    ffn: tuple[int, ...] = Field(min_length=1)
    embedding_bits: tuple[Literal[4, 8], ...] = Field((4,), min_length=1)
    precision: tuple[Precision, ...] = Field((Precision.INT8_DYNAMIC,), min_length=1)
    rank: tuple[Annotated[int, Field(ge=0, multiple_of=RANK_STEP)], ...] = Field((0,), min_length=1)
    keep: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((1.0,), min_length=1)
    drop_after: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    hidden: tuple[Annotated[int, Field(ge=0, multiple_of=RANK_STEP)], ...] = Field(
        TEACHERS, min_length=1
    )
    min_layers: int = Field(1, ge=1)  # of `any`; a candidate with fewer gets the lowest it lacks
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
        if self.min_layers > 1 and self.layers != ANY:
            raise ValueError(f"min_layers {self.min_layers}: only where layers are {ANY!r}")
        narrowest = min(self.hidden, key=_zero_last)
        if self.max_rank > _zero_last(narrowest):
            raise ValueError(f"rank {self.max_rank}: wider than states of {narrowest}")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_knobs(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of a width that nobody chooses: what was made before it was a knob stays valid."""
        found: dict[str, Any] = whole(self)
        if self.hidden == TEACHERS:
            found.pop("hidden", None)
        return found

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
        """Return the lists of layers; of `any` a shortest, spread evenly, and the longest alone."""
        if self.layers != ANY:
            return self.layers
        return spaced(self.min_layers, self.n_layers), tuple(range(self.n_layers))

    @property
    def max_rank(self) -> int:
        return max(self.rank)

    @property
    def drops(self) -> bool:
        """Say whether some candidate may drop tokens."""
        return min(self.keep) < 1 and max(self.drop_after) > 0

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
            rank=best(self.rank, key=_zero_last),
            keep=best(self.keep),
            drop_after=best(self.drop_after, key=_zero_last),
            hidden=best(self.hidden, key=_zero_last),
        )

    @property
    def narrows(self) -> bool:
        """Say whether some candidate has narrower states than the teacher."""
        return self.hidden != TEACHERS

    @property
    def knobs(self) -> dict[str, tuple[Any, ...]]:
        """Return the values of each knob by its name; numbers by what they leave, the least first."""
        return {
            **self._layer_knobs,
            "heads": tuple(sorted(set(self.heads))),
            "ffn": tuple(sorted(set(self.ffn))),
            "embedding_bits": tuple(sorted(set(self.embedding_bits))),
            "precision": tuple(dict.fromkeys(p.value for p in self.precision)),
            "rank": tuple(sorted(set(self.rank), key=_zero_last)),
            "keep": tuple(sorted(set(self.keep))),
            "drop_after": tuple(sorted(set(self.drop_after), key=_zero_last)),
            **({"hidden": tuple(sorted(set(self.hidden), key=_zero_last))} if self.narrows else {}),
        }

    @property
    def _layer_knobs(self) -> dict[str, tuple[Any, ...]]:
        if self.layers == ANY:
            return {layer_knob(i): (False, True) for i in range(self.n_layers)}
        return {"layers": tuple(dict.fromkeys(layers_text(layers) for layers in self.layers))}

    @property
    def size(self) -> int:
        """Return the number of different candidates."""
        knobs = self.knobs
        widths = ("heads", "ffn", "embedding_bits", "precision", "rank", "hidden")
        others = prod(len(knobs[name]) for name in widths if name in knobs)
        return others * sum(n * self._n_droppings(layers) for layers, n in self._by_depth.items())

    @property
    def _by_depth(self) -> dict[int, int]:
        """Return how many lists of layers there are of each length."""
        if self.layers == ANY:
            least = min(self.min_layers, self.n_layers)
            return {k: comb(self.n_layers, k) for k in range(least, self.n_layers + 1)}
        found = Counter(len(layers) for layers in set(self.layers))
        return dict(found)

    def _n_droppings(self, layers: int) -> int:
        """Return in how many ways a student of so many layers can drop tokens, or not."""
        when = {after for after in self.drop_after if 0 < after < layers}
        kept = {keep for keep in self.keep if keep < 1}
        not_at_all = 1.0 in self.keep or when != set(self.drop_after)
        return len(when) * len(kept) + not_at_all

    def candidate(self, choose: Choose) -> Candidate:
        """Return the candidate that `choose` makes, one knob after the other."""
        return self._of({name: choose(name, values) for name, values in self.knobs.items()})

    def _of(self, chosen: Mapping[str, Any]) -> Candidate:
        if self.layers == ANY:
            layers = self._completed(i for i in range(self.n_layers) if chosen[layer_knob(i)])
        else:
            layers = tuple(int(layer) for layer in chosen["layers"].split(","))
        return Candidate(
            layers=layers,
            heads=chosen["heads"],
            ffn=chosen["ffn"],
            embedding_bits=chosen["embedding_bits"],
            precision=Precision(chosen["precision"]),
            rank=chosen["rank"],
            keep=chosen["keep"],
            drop_after=chosen["drop_after"],
            hidden=chosen.get("hidden", 0),
        )

    def _completed(self, layers: Iterable[int]) -> tuple[int, ...]:
        found = set(layers)
        lacking = [i for i in range(self.n_layers) if i not in found]
        return tuple(sorted(found | set(lacking[: max(0, self.min_layers - len(found))])))

    def nearest(self, wanted: Candidate) -> Candidate:
        """Return the point of the space that is most like `wanted`, knob by knob."""
        layers = self._nearest_layers(wanted.layers)
        keep, drop_after = self._nearest_dropping(wanted, len(layers))
        return Candidate(
            layers=layers,
            heads=_nearest(self.heads, wanted.heads),
            ffn=_nearest(self.ffn, wanted.ffn),
            embedding_bits=_nearest(self.embedding_bits, wanted.embedding_bits),
            precision=wanted.precision if wanted.precision in self.precision else self.precision[0],
            rank=min(self.rank, key=partial(_apart, wanted.rank)),
            keep=keep,
            drop_after=drop_after,
            hidden=min(self.hidden, key=partial(_apart, wanted.hidden)),
        )

    def _nearest_dropping(self, wanted: Candidate, layers: int) -> tuple[float, int]:
        """Return the share kept, and after how many layers; what drops tokens stays so if it can."""

        def unlike(pair: tuple[float, int]) -> tuple[bool, float, float]:
            keep, after = pair
            drops = keep < 1 and 0 < after < layers
            return drops != wanted.drops, abs(keep - wanted.keep), _apart(wanted.drop_after, after)

        return min(product(self.keep, self.drop_after), key=unlike)

    def _nearest_layers(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        if self.layers == ANY:
            return self._completed(i for i in wanted if i < self.n_layers)

        def unlike(layers: tuple[int, ...]) -> tuple[int, int]:
            return abs(len(layers) - len(wanted)), len(set(layers) ^ set(wanted))

        return min(self.layers, key=unlike)


def layer_knob(i: int) -> str:
    """Return the name of the switch of one of the teacher's layers."""
    return f"layer_{i}"


def layers_text(layers: Sequence[int]) -> str:
    """Return a list of layers as an optimizer can take it for a category."""
    return ",".join(map(str, layers))


def _zero_last(value: int) -> float:
    """Order numbers of which 0 stands for no limit."""
    return value or inf


def _apart(a: int, b: int) -> float:
    return abs(1 / _zero_last(a) - 1 / _zero_last(b))


def _nearest(values: Sequence[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(log(value / wanted)))


def spaced(n: int, of: int) -> tuple[int, ...]:
    """Return `n` layers of a teacher's `of`, as evenly as they can lie, the first one in."""
    n = min(max(1, n), of)
    return tuple(i * of // n for i in range(n))
