"""What a sampler may ask for, and what is looked at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.schema import Precision
from optimizer.search.candidates import nearest, parameters_of, seeds, suggest
from optimizer.study.space import Candidate, Space
from tests.optimizer.study.test_space import (
    ANY_LAYERS,
    DROPPING_ANY,
    DROPPING_LISTED,
    LISTED,
    SPACES,
    every,
)


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


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_every_candidate_can_be_suggested(space: Space) -> None:
    """Seeds and retried trials are told to Optuna as parameters, and must come back the same."""
    for candidate in every(space):
        assert suggest(Sampler(parameters_of(candidate, space)), space) == candidate


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
    keep=st.sampled_from((1.0, 0.45, 0.1)),
)
def test_the_nearest_point_is_in_the_space(
    layers: tuple[int, ...], heads: int, ffn: int, keep: float
) -> None:
    """Whatever a known shape asks for."""
    for space in SPACES.values():
        wanted = Candidate(layers, heads, ffn, rank=100, keep=keep, drop_after=2)
        found = nearest(space, wanted)
        assert suggest(Sampler(parameters_of(found, space)), space) == found
        assert nearest(space, found) == found


def test_ranks_and_tokens_of_others_are_tried_where_there_are_such() -> None:
    """Each knob once alone, so that its price is known early."""
    found = seeds(DROPPING_ANY)
    whole = DROPPING_ANY.largest
    assert found["albert"] == Candidate(whole.layers, whole.heads, whole.ffn, rank=128)
    few = Candidate(whole.layers, whole.heads, whole.ffn, keep=0.5, drop_after=2)
    assert found["power-bert"] == few
    assert not {"albert", "power-bert"} & set(seeds(ANY_LAYERS))


def test_the_nearest_to_full_words_is_the_highest_rank() -> None:
    """0 stands for no limit, so it is near to the most and far from the least."""
    space = DROPPING_LISTED.model_copy(update={"rank": (64, 192, 128), "drop_after": (1, 3)})
    whole = Candidate((0, 1, 2, 3, 4, 5), 12, 1536)
    assert nearest(space, whole).rank == 192
    late = Candidate((0, 1, 2, 3, 4, 5), 12, 1536, keep=0.5, drop_after=5)
    assert nearest(space, late).drop_after == 3
