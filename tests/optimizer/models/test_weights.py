"""PyTorch and the graph count kept tokens by one rule, and agree on what a shape's weights are."""

from __future__ import annotations

import pytest

from optimizer.models.weights import (
    FORCED,
    MIN_KEPT,
    Drops,
    GraphShape,
    check,
    n_kept,
    random_weights,
    shares_of,
)

SHAPE = GraphShape(128, (2, 1, 1), 16, (48, 96, 48), 50, embedding_bits=4)
RANKED = GraphShape(128, (2, 1, 1), 16, (48, 96, 48), 50, embedding_bits=4, rank=64)
DROPPING = GraphShape(128, (2, 1, 1), 16, (48, 96, 48), 50, drops=((1, 0.5), (2, 0.25)))


@pytest.mark.parametrize(
    ("keep", "n_tokens", "kept"),
    [
        (0.5, 192, 96),
        (0.5, 193, 97),  # rounded up
        (0.3, 192, 58),  # of 57.6
        (0.3, 200, 60),  # in floats 0.3 * 200 may be a little above 60
        (0.7, 100, 70),
        (0.3, 64, MIN_KEPT),
        (0.3, 20, 20),
        (1.0, 384, 384),
    ],
)
def test_a_share_of_the_padded_length_is_kept(keep: float, n_tokens: int, kept: int) -> None:
    """Integers round alike everywhere; a question and a few tokens more always stay."""
    assert n_kept(keep, n_tokens) == kept
    assert MIN_KEPT > FORCED


def test_a_low_rank_narrows_the_word_table_and_adds_its_projection() -> None:
    """Codes of 4 bits, a scale and an offset per 64 values of the rank, not of the hidden width."""
    weights = random_weights(RANKED)
    table = "bert.embeddings.word_embeddings"
    assert [weights[f"{table}.{p}"].shape for p in ("codes", "low", "scale")] == [
        (50, 32),
        (50, 1),
        (50, 1),
    ]
    assert weights["bert.embeddings.projection.weight"].shape == (128, 64)
    assert random_weights(SHAPE)[f"{table}.codes"].shape == (50, 64)


def test_each_drop_has_an_early_head() -> None:
    """One that drops nothing is a plain student; a single head has the name it has in older files."""
    assert not [name for name in random_weights(SHAPE) if name.startswith("early")]
    weights = random_weights(DROPPING)
    assert {weights[f"early_outputs{i}.weight"].shape for i in ("", "_2")} == {(2, 128)}
    assert "early_outputs_3.weight" not in weights


@pytest.mark.parametrize(
    ("drops", "shares"),
    [
        ((), (1.0, 1.0, 1.0, 1.0)),
        (((2, 0.5),), (1.0, 1.0, 0.5, 0.5)),
        (((1, 0.8), (3, 0.2)), (1.0, 0.8, 0.8, 0.2)),
    ],
)
def test_drops_give_each_layer_its_share(drops: Drops, shares: tuple[float, ...]) -> None:
    """From where a drop is to the next one."""
    assert shares_of(drops, 4) == shares


@pytest.mark.parametrize(
    ("shape", "missing"),
    [
        (RANKED, "bert.embeddings.projection.weight"),
        (DROPPING, "early_outputs.bias"),
        (DROPPING, "early_outputs_2.bias"),
    ],
)
def test_the_new_weights_are_missed_by_name(shape: GraphShape, missing: str) -> None:
    """A student whose projection or early head got lost is not exported."""
    weights = random_weights(shape)
    del weights[missing]
    with pytest.raises(ValueError, match=rf"{missing}: is None, the shape asks for"):
        check(weights, shape)
