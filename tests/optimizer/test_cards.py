"""A card tells what was cut from a model, and how it is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.published import Variant
from optimizer.cards import card
from tests.fakes import make_plan, make_variant


def told(variant: Variant) -> str:
    return " ".join(card(variant, make_plan(variant, 0.5), ["squad_v2"]).split())


def test_a_plain_model_tells_of_no_cuts() -> None:
    """Neither a rank nor dropped tokens are spoken of where there are none."""
    found = told(make_variant("plain", 5))
    assert "8-bit embeddings, 5.0 MB. test" in found
    assert "rank" not in found


def test_the_rank_and_the_dropped_tokens_are_told() -> None:
    """Who chooses a model must know that parts of a text are read by some of its layers only."""
    plain = make_variant("small", 5)
    shape = replace(plain.shape, rank=128, keep=0.3, drop_after=1)
    found = told(replace(plain, shape=shape))
    assert "8-bit embeddings of rank 128" in found
    assert "After 1 of its layers only 30% of the tokens go on" in found


@pytest.mark.parametrize(
    ("batched", "said"), [(False, "Served one request at a time"), (True, "Served in batches")]
)
def test_only_what_may_be_batched_is_said_to_be(batched: bool, said: str) -> None:
    """An INT8 model's answers depend on its batch; fp32's and fp16's do not."""
    found = told(make_variant("any", 5, batch_invariant=batched))
    assert found.count("**Served") == 1
    assert said in found
