"""A card tells what was cut from a model, and how it is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.catalog.schema import Stratum, Variant
from gateway.catalog.store import Origin
from optimizer.publish.cards import card
from tests.fakes import make_plan, make_variant

ORIGIN = Origin("study", "0", "2026-01-01T00:00:00Z", 1, {"squad_v2": "a" * 64, "dev": "b" * 64})


def card_of(variant: Variant) -> str:
    return " ".join(card(variant, make_plan(variant, 0.5), ORIGIN).split())


def test_a_card_names_what_trained_the_model_whatever_certifies_it() -> None:
    """A floor on your questions does not mean that the model learnt from them."""
    variant = make_variant("small", 5)
    plan = make_plan(variant, 0.5)
    plan = replace(plan, certificate=replace(plan.certificate, data="mine.json"))
    found = " ".join(card(variant, plan, replace(ORIGIN, trained_on=("squad_v2",))).split())
    assert "**Trained on** `squad_v2`. " in found
    assert "like those of `mine.json`" in found


def test_a_card_tells_what_a_floor_counts() -> None:
    """The unit, both scopes, and what always saying "no answer" scores."""
    variant = make_variant("small", 5)
    plan = make_plan(variant, 0.5)
    scopes = (
        Stratum("all clusters", 120, 600, 0.6, 0.55, 70),
        Stratum("unseen titled articles", 60, 300, 0.58, 0.5, 12),
    )
    certificate = replace(plan.certificate, scopes=scopes, n_clusters=70, constant_f1=0.333)
    found = card(variant, replace(plan, certificate=certificate), ORIGIN)
    assert "a context elsewhere (70 in all)" in found
    assert "scores 0.333 there" in found
    assert "| unseen titled articles | 12 | 300 | 0.580 | 0.500 |" in found


def test_a_plain_model_tells_of_no_cuts() -> None:
    """Neither a rank nor dropped tokens are spoken of where there are none."""
    found = card_of(make_variant("plain", 5))
    assert "8-bit embeddings, 5.0 MB. test" in found
    assert "rank" not in found


def test_the_card_states_rank_and_dropped_tokens() -> None:
    """Who chooses a model must know that parts of a text are read by some of its layers only."""
    plain = make_variant("small", 5)
    shape = replace(plain.shape, rank=128, keep=0.3, drop_after=1)
    found = card_of(replace(plain, shape=shape))
    assert "8-bit embeddings of rank 128" in found
    assert "After 1 of its layers only 30% of the tokens go on: the question's" in found
    often = replace(shape, layers=3, keep=0.3, layer_keep=(1.0, 0.75, 0.3))
    found = card_of(replace(plain, shape=often))
    assert "Its layers see 100%, 75%, 30% of the tokens: the question's" in found


def test_the_card_states_the_widths_of_layers_that_differ() -> None:
    """One number would be that of the widest, and of its others nobody would know."""
    plain = make_variant("small", 5)
    shape = replace(plain.shape, layer_ffn=(plain.shape.ffn, 64), layer_heads=(1, 2))
    found = card_of(replace(plain, shape=shape))
    widths = (
        f"feed-forward width {plain.shape.ffn} (by layer: widths {plain.shape.ffn}, 64; heads 1, 2)"
    )
    assert widths in found
    assert "by layer" not in card_of(plain)


@pytest.mark.parametrize(
    ("batched", "said"), [(False, "Served one request at a time"), (True, "Served in batches")]
)
def test_the_card_says_whether_answers_may_be_batched(batched: bool, said: str) -> None:
    """An INT8 model's answers depend on its batch; fp32's and fp16's do not."""
    found = card_of(make_variant("any", 5, batch_invariant=batched))
    assert found.count("**Served") == 1
    assert said in found
