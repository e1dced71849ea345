"""What a student may look like: every knob is named here, once.

A point of the space is flat: each knob has one value of a fixed list, whatever the others have, as
samplers that model the whole space need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import comb, inf, prod
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gateway.catalog.schema import Precision

Choose = Callable[[str, Sequence[Any]], Any]  # a knob's name and its values -> one of them
Recipe = tuple[tuple[str, float], ...]  # keys of a training, and their values

ANY: Final = "any"  # as the layers of a space: every subset of the teacher's but the smallest ones
RANK_STEP: Final = 64  # values of a low-bit row that share a scale
NEURON_STEP: Final = 64  # neurons of a layer that stay or go together, where layers differ
TEACHERS: Final = (0,)  # as the widths of a space: the teacher's alone
DISTILL_KNOBS: Final = (
    "temperature",
    "label_weight",
    "hidden_weight",
    "early_weight",
    "intermediate_weight",
)
TRAIN_KNOBS: Final = ("learning_rate", "warmup", "weight_decay")
RECIPE_KNOBS: Final = (*DISTILL_KNOBS, *TRAIN_KNOBS)  # keys of [distill] and of `train`


@dataclass(frozen=True, slots=True)
class Candidate:
    """A student's shape, as a part of its teacher's, and how its weights are stored."""

    layers: tuple[int, ...]  # of the teacher, counted from 0; one named twice runs twice
    heads: int  # of every layer, the most important first
    ffn: int  # feed-forward width, the most important neurons first
    embedding_bits: int = 4
    precision: Precision = Precision.INT8_DYNAMIC
    rank: int = 0  # of the words; 0: as wide as the states
    keep: float = 1.0  # share of the tokens that the layers after the first `drop_after` see
    drop_after: int = 0  # of its own layers; 0: all see all tokens
    hidden: int = 0  # width of the states, the most important columns; 0: the teacher's
    recipe: Recipe = ()  # of its own training, where it has one; what is not named is the study's

    def __post_init__(self) -> None:
        """Equal students are equal candidates: what drops no token says so in one way."""
        if self.keep == 1 or not 0 < self.drop_after < len(self.layers):
            object.__setattr__(self, "keep", 1.0)
            object.__setattr__(self, "drop_after", 0)

    @property
    def drops(self) -> tuple[tuple[int, float], ...]:
        """Return after how many layers tokens are dropped and the share that goes on; (): never."""
        return ((self.drop_after, self.keep),) if self.drop_after else ()

    @property
    def label(self) -> str:
        layers = ",".join(map(str, self.layers))
        wide = f" of width {self.hidden}" if self.hidden else ""
        shape = f"{len(self.layers)} x {self.heads} x {self.ffn}{wide} (layers {layers})"
        rank = f" of rank {self.rank}" if self.rank else ""
        words = f"{self.embedding_bits}-bit words{rank}"
        tokens = [self.tokens] if self.drops else []
        recipe = [f"{name} {value:g}" for name, value in self.recipe]
        return ", ".join([shape, self.precision, words, *tokens, *recipe])

    @property
    def tokens(self) -> str:
        """Return which tokens its layers see, in words."""
        return f"{self.keep:.0%} of tokens after {self.drop_after}" if self.drops else "all tokens"


KNOBS: Final = tuple(
    knob.name for knob in fields(Candidate) if knob.name not in ("layers", "recipe")
)
NUMBERS: Final = tuple(name for name in KNOBS if name != "precision")
DROPPING: Final = ("keep", "drop_after")
UNLIMITED: Final = ("rank", "drop_after", "hidden")  # knobs of which 0 stands for no limit


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
    recipe: dict[str, tuple[float, ...]] = {}  # filled in by `trained_by`

    @model_validator(mode="before")
    @classmethod
    def _says_nothing_of_trainings(cls, given: Any) -> Any:
        """Slices have the weights of one training: there is nothing to choose for each."""
        named = [name for name in RECIPE_KNOBS if isinstance(given, dict) and name in given]
        if named:
            raise ValueError(
                f"{named[0]}: slices are not trained one by one; a search that trains its candidates has"
                f" it under [search.training] space, and the elastic student's own is in [distill] or train"
            )
        return given

    @model_validator(mode="after")
    def _makes_sense(self) -> Space:
        if not self.layers:
            raise ValueError('layers: name at least one list of layers, or "any"')
        for layers in self.layers if self.layers != ANY else ():
            if not layers or list(layers) != sorted(layers) or layers[0] < 0:
                again = "a layer that is named twice runs twice, with the same weights"
                raise ValueError(f"layers {list(layers)}: from 0, in order; {again}")
        for name, widths in (("heads", self.heads), ("ffn", self.ffn)):
            if min(widths) < 1:
                raise ValueError(f"{name} {min(widths)}: at least 1")
        if self.min_layers > 1 and self.layers != ANY:
            raise ValueError(f"min_layers {self.min_layers}: only where layers are {ANY!r}")
        narrowest = min(self.hidden, key=zero_last)
        if self.max_rank > zero_last(narrowest):
            raise ValueError(f"rank {self.max_rank}: wider than states of {narrowest}")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_knobs(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Say nothing of a width that nobody chooses: what was made before it was a knob stays valid."""
        found: dict[str, Any] = whole(self)
        if self.hidden == TEACHERS:
            found.pop("hidden", None)
        if not self.recipe:
            found.pop("recipe", None)
        return found

    def within(self, teacher_layers: int) -> Space:
        """Return this space for a teacher of so many layers, which `any` refers to."""
        return self.model_copy(update={"teacher_layers": teacher_layers})

    def trained_by(self, recipe: Mapping[str, tuple[float, ...]]) -> Space:
        """Return this space for candidates that are trained each by a recipe of these values."""
        return self.model_copy(update={"recipe": dict(recipe)})

    @property
    def usual_recipe(self) -> Recipe:
        """Return the recipe of the candidates that are tried first: the first value of each key."""
        return tuple((name, values[0]) for name, values in self.recipe.items())

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
            precision=precision if precision in self.precision else self.precision[0],
            recipe=self.usual_recipe,
            **{name: best(getattr(self, name), key=_order(name)) for name in NUMBERS},
        )

    @property
    def narrows(self) -> bool:
        """Say whether some candidate has narrower states than the teacher."""
        return self.hidden != TEACHERS

    @property
    def knobs(self) -> dict[str, tuple[Any, ...]]:
        """Return the values of each knob by its name; numbers by what they leave, the least first."""
        names = (name for name in KNOBS if name != "hidden" or self.narrows)
        recipe = {name: tuple(sorted(set(values))) for name, values in self.recipe.items()}
        return self._layer_knobs | {name: self._values(name) for name in names} | recipe

    def _values(self, name: str) -> tuple[Any, ...]:
        values = dict.fromkeys(getattr(self, name))
        if name == "precision":
            return tuple(str(value) for value in values)
        return tuple(sorted(values, key=_order(name)))

    @property
    def _layer_knobs(self) -> dict[str, tuple[Any, ...]]:
        if self.layers == ANY:
            return {layer_knob(i): (False, True) for i in range(self.n_layers)}
        return {"layers": tuple(dict.fromkeys(layers_text(layers) for layers in self.layers))}

    @property
    def size(self) -> int:
        """Return the number of different candidates."""
        knobs = self.knobs.items()
        counted = {*KNOBS, *self.recipe} - set(DROPPING)
        others = prod(len(values) for name, values in knobs if name in counted)
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
            layers = self.completed(i for i in range(self.n_layers) if chosen[layer_knob(i)])
        else:
            layers = tuple(int(layer) for layer in chosen["layers"].split(","))
        others = {name: chosen[name] for name in KNOBS if name in chosen}
        others |= {"precision": Precision(chosen["precision"])}
        recipe = tuple((name, float(chosen[name])) for name in self.recipe)
        return Candidate(layers, recipe=recipe, **others)

    def completed(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Return these layers, and of those they lack the lowest up to `min_layers`."""
        found = set(layers)
        lacking = [i for i in range(self.n_layers) if i not in found]
        return tuple(sorted(found | set(lacking[: max(0, self.min_layers - len(found))])))


def layer_knob(i: int) -> str:
    """Return the name of the switch of one of the teacher's layers."""
    return f"layer_{i}"


def layers_text(layers: Sequence[int]) -> str:
    """Return a list of layers as an optimizer can take it for a category."""
    return ",".join(map(str, layers))


def _order(name: str) -> Callable[[Any], float] | None:
    """Return what sorts a knob's values by what they leave, the least first."""
    return zero_last if name in UNLIMITED else None


def zero_last(value: int) -> float:
    """Order numbers of which 0 stands for no limit."""
    return value or inf


def spaced(n: int, of: int) -> tuple[int, ...]:
    """Return `n` layers of a teacher's `of`, as evenly as they can lie, the first one in."""
    n = min(max(1, n), of)
    return tuple(i * of // n for i in range(n))
