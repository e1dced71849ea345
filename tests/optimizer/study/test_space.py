"""The space of candidates: what may be asked for, and what is looked at first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from gateway.catalog.schema import Precision
from optimizer.search.candidates import nearest
from optimizer.study.space import Candidate, Space

LISTED = Space(
    layers=((0, 1, 2, 3, 4, 5), (0, 2, 4), (5,)),
    heads=(12, 4, 8),
    ffn=(1536, 256, 768),
    embedding_bits=(8, 4),
    precision=(Precision.INT8_DYNAMIC, Precision.FP32),
)
ANY_LAYERS = LISTED.model_copy(update={"layers": "any"}).within(6)
DROPPING: dict[str, Any] = {
    "heads": (12, 4),
    "ffn": (1536,),
    "rank": (0, 64, 128),
    "keep": (1.0, 0.5, 0.3),
    "drop_after": (3, 1, 2),
}
DROPPING_LISTED = Space(layers=((0, 1, 2, 3, 4, 5), (0, 2, 4), (5,)), **DROPPING)
DROPPING_ANY = Space(layers="any", min_layers=2, **DROPPING).within(6)
ALWAYS_DROPPING = Space(layers="any", **DROPPING | {"keep": (0.5, 0.3)}).within(3)
TRAINED = DROPPING_LISTED.trained_by({"temperature": (2.0, 1.0), "learning_rate": (1e-4, 3e-4)})
SPACES = {
    "trained": TRAINED,
    "listed": LISTED,
    "any": ANY_LAYERS,
    "dropping": DROPPING_LISTED,
    "dropping-any": DROPPING_ANY,
    "always-dropping": ALWAYS_DROPPING,
}


def every(space: Space) -> list[Candidate]:
    points = product(*space.knobs.values())
    return list(dict.fromkeys(chosen(space, iter(point)) for point in points))


def chosen(space: Space, values: Iterator[Any]) -> Candidate:
    return space.candidate(lambda _name, _values: next(values))


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_the_size_counts_different_candidates(space: Space) -> None:
    """A search of a small space ends when all of it is known."""
    assert space.size == len(every(space))


def test_the_space_is_flat() -> None:
    """A Gaussian process models only the knobs that every trial has."""
    assert list(ANY_LAYERS.knobs)[:6] == [f"layer_{i}" for i in range(6)]
    widths = ["heads", "ffn", "embedding_bits", "precision", "rank", "keep", "drop_after"]
    assert list(LISTED.knobs) == ["layers", *widths]


def test_no_layer_at_all_is_one() -> None:
    """Six switches can all be off, a model without layers cannot be."""
    off = {name: values[0] for name, values in ANY_LAYERS.knobs.items()}
    assert ANY_LAYERS.candidate(lambda name, _: off[name]).layers == (0,)


def test_the_ends_of_the_space_hold_all_between() -> None:
    """They are trained at every step, and tried first."""
    assert ANY_LAYERS.smallest == Candidate((0,), 4, 256, 4, Precision.INT8_DYNAMIC)
    assert ANY_LAYERS.largest == Candidate(tuple(range(6)), 12, 1536, 8, Precision.FP32)


def test_the_ends_of_a_space_of_tokens_and_ranks() -> None:
    """The least is a low rank and few tokens, after as few layers as there can be."""
    least = Candidate((0, 3), 4, 1536, rank=64, keep=0.3, drop_after=1)
    assert DROPPING_ANY.smallest == least
    assert DROPPING_ANY.largest == Candidate(tuple(range(6)), 12, 1536)
    assert ALWAYS_DROPPING.largest == Candidate((0, 1, 2), 12, 1536)
    always = DROPPING_LISTED.model_copy(update={"rank": (64, 128), "keep": (0.5,)})
    assert always.largest == Candidate(tuple(range(6)), 12, 1536, rank=128, keep=0.5, drop_after=3)


@pytest.mark.parametrize(("keep", "after"), [(1.0, 2), (0.5, 0), (0.5, 3), (0.5, 4)])
def test_equal_students_are_equal_candidates(keep: float, after: int) -> None:
    """What has no effect is not distinguished, or a search would try one student twice."""
    same = Candidate((0, 1, 2), 2, 64)
    assert Candidate((0, 1, 2), 2, 64, keep=keep, drop_after=after) == same
    assert replace(same, keep=keep, drop_after=after) == same
    assert replace(same, keep=0.5, drop_after=2) != same


def test_a_candidate_has_as_many_layers_as_are_asked_for() -> None:
    """The lowest of those it lacks are added."""
    off = {name: values[0] for name, values in DROPPING_ANY.knobs.items()}
    one = off | {"layer_4": True}
    assert DROPPING_ANY.candidate(lambda name, _: off[name]).layers == (0, 1)
    assert DROPPING_ANY.candidate(lambda name, _: one[name]).layers == (0, 4)
    assert nearest(DROPPING_ANY, Candidate((5,), 4, 256)).layers == (0, 5)


def test_a_file_without_the_new_knobs_means_what_it_meant() -> None:
    """Spaces that were written before there were ranks and tokens."""
    old = {"layers": [[0, 1, 2]], "heads": [12, 6], "ffn": [1536, 512]}
    space = Space.model_validate(old)
    shapes = {(c.heads, c.ffn, c.rank, c.keep, c.drop_after) for c in every(space)}
    assert shapes == {(h, f, 0, 1.0, 0) for h in (6, 12) for f in (512, 1536)}
    assert not space.drops
    assert space.max_rank == 0


def test_what_is_dropped_is_in_the_label() -> None:
    """And nothing is said where there is nothing to say."""
    shape = Candidate((0, 1, 2), 2, 64, rank=128, keep=0.5, drop_after=2)
    assert shape.label.endswith("4-bit words of rank 128, 50% of tokens after 2")
    assert Candidate((0, 1), 2, 64).label.endswith("4-bit words")


def test_what_is_only_rounded_is_not_trained_twice() -> None:
    """Bits and precision change no training step, so the sandwich must not draw them."""
    trained = ANY_LAYERS.trained
    assert len(trained.knobs["embedding_bits"]) == len(trained.knobs["precision"]) == 1
    assert trained.layers == "any"


def test_a_recipe_is_a_part_of_the_candidate() -> None:
    """Two trainings of one shape are two candidates; the first value named is tried first."""
    assert TRAINED.size == 4 * DROPPING_LISTED.size
    usual = TRAINED.largest
    assert usual.recipe == (("temperature", 2.0), ("learning_rate", 1e-4))
    assert usual != replace(usual, recipe=(("temperature", 1.0), ("learning_rate", 1e-4)))
    assert usual.label.endswith("temperature 2, learning_rate 0.0001")
    assert replace(usual, recipe=()) == DROPPING_LISTED.largest
    assert "recipe" not in DROPPING_LISTED.model_dump()


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
        ({"rank": (100,)}, "rank"),
        ({"keep": (0.0,)}, "keep"),
        ({"keep": (1.1,)}, "keep"),
        ({"drop_after": (-1,)}, "drop_after"),
        ({"layers": ((0,),), "min_layers": 2}, "min_layers 2"),
        ({"hidden": (100,)}, "hidden"),
        ({"width": (384,)}, "width"),
        ({"temperature": (1.0, 2.0)}, r"temperature: slices are not trained .*\[search.training\]"),
    ],
)
def test_an_impossible_space_is_refused(wrong: dict[str, Any], said: str) -> None:
    """When the study file is read, and by the name of the knob."""
    right: dict[str, Any] = {"layers": "any", "heads": (1,), "ffn": (8,)}
    with pytest.raises(ValueError, match=said):
        Space.model_validate(right | wrong)
