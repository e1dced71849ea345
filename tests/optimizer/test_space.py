"""The space of candidates: what may be asked for, and what is looked at first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.space import Candidate, Precision, Space, parameters_of, seeds, suggest

LISTED = Space(
    layers=((0, 1, 2, 3, 4, 5), (0, 2, 4), (5,)),
    heads=(12, 4, 8),
    ffn=(1536, 256, 768),
    embedding_bits=(8, 4),
    precision=(Precision.INT8_DYNAMIC, Precision.FP32),
)
ANY_LAYERS = LISTED.model_copy(update={"layers": "any"}).within(6)


def every(space: Space) -> list[Candidate]:
    points = product(*space.knobs.values())
    return list(dict.fromkeys(chosen(space, iter(point)) for point in points))


def chosen(space: Space, values: Iterator[Any]) -> Candidate:
    return space.candidate(lambda _name, _values: next(values))


class Sampler:
    """Suggests what it was given."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters

    def suggest_int(self, name: str, low: int, high: int) -> int:
        assert low <= self.parameters[name] <= high
        return int(self.parameters[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        assert self.parameters[name] in choices
        return self.parameters[name]


@pytest.mark.parametrize("space", [LISTED, ANY_LAYERS], ids=["listed", "any"])
def test_every_candidate_can_be_suggested(space: Space) -> None:
    """Seeds and retried trials are told to Optuna as parameters, and must come back the same."""
    for candidate in every(space):
        assert suggest(Sampler(parameters_of(candidate, space)), space) == candidate


@pytest.mark.parametrize("space", [LISTED, ANY_LAYERS], ids=["listed", "any"])
def test_the_size_counts_different_candidates(space: Space) -> None:
    """A search of a small space ends when all of it is known."""
    assert space.size == len(every(space))


def test_the_space_is_flat() -> None:
    """A Gaussian process models only the knobs that every trial has."""
    assert list(ANY_LAYERS.knobs)[:6] == [f"layer_{i}" for i in range(6)]
    assert list(LISTED.knobs) == ["layers", "heads", "ffn", "embedding_bits", "precision"]


def test_no_layer_at_all_is_one() -> None:
    """Six switches can all be off, a model without layers cannot be."""
    off = {name: values[0] for name, values in ANY_LAYERS.knobs.items()}
    assert ANY_LAYERS.candidate(lambda name, _: off[name]).layers == (0,)


def test_the_ends_of_the_space_hold_all_between() -> None:
    """They are trained at every step, and tried first."""
    assert ANY_LAYERS.smallest == Candidate((0,), 4, 256, 4, Precision.INT8_DYNAMIC)
    assert ANY_LAYERS.largest == Candidate(tuple(range(6)), 12, 1536, 8, Precision.FP32)


def test_known_shapes_are_tried_first() -> None:
    """Where others have found good students, ours may be too."""
    found = seeds(ANY_LAYERS)
    int8 = Precision.INT8_DYNAMIC
    assert found == {
        "smallest": ANY_LAYERS.smallest,
        "largest": ANY_LAYERS.largest,
        "whole": Candidate(tuple(range(6)), 12, 1536, 8, int8),
        "distilbert": Candidate((0, 2, 4), 12, 1536, 8, int8),
        "tinybert-4": Candidate((0, 1, 3, 4), 12, 1536, 8, int8),
        "bort": Candidate((0,), 8, 256, 8, int8),
    }  # and no "minilm": it is the whole


def test_known_shapes_are_taken_from_the_list() -> None:
    """With layers listed, the nearest list stands for a shape."""
    assert seeds(LISTED)["distilbert"].layers == (0, 2, 4)
    assert all(candidate in every(LISTED) for candidate in seeds(LISTED).values())


@given(
    layers=st.sets(st.integers(0, 11), min_size=1).map(sorted).map(tuple),
    heads=st.integers(1, 16),
    ffn=st.integers(1, 4096),
)
def test_the_nearest_point_is_in_the_space(layers: tuple[int, ...], heads: int, ffn: int) -> None:
    """Whatever a known shape asks for."""
    for space in (LISTED, ANY_LAYERS):
        nearest = space.nearest(Candidate(layers, heads, ffn))
        assert suggest(Sampler(parameters_of(nearest, space)), space) == nearest
        assert space.nearest(nearest) == nearest


def test_what_is_only_rounded_is_not_trained_twice() -> None:
    """Bits and precision change no training step, so the sandwich must not draw them."""
    trained = ANY_LAYERS.trained
    assert len(trained.knobs["embedding_bits"]) == len(trained.knobs["precision"]) == 1
    assert trained.layers == "any"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": ()}, "at least one list"),
        ({"layers": "some"}, "any"),
        ({"layers": ((1, 0),)}, "in order"),
        ({"heads": ()}, "heads"),
        ({"ffn": (0, 8)}, "ffn 0"),
        ({"embedding_bits": (2,)}, "embedding_bits"),
        ({"precision": ("int4",)}, "precision"),
        ({"hidden": (384,)}, "hidden"),
    ],
)
def test_an_impossible_space_is_refused(wrong: dict[str, Any], said: str) -> None:
    """When the study file is read, and by the name of the knob."""
    right: dict[str, Any] = {"layers": "any", "heads": (1,), "ffn": (8,)}
    with pytest.raises(ValueError, match=said):
        Space.model_validate(right | wrong)
