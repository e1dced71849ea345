"""Words of low rank: as near as can be where texts are, and nested."""

from __future__ import annotations

import pytest
import torch

from optimizer.models.lowrank import ThinWords, factors, word_counts
from optimizer.models.student import LowBitEmbedding, ModelError


def words() -> torch.Tensor:  # (V, H)
    """Return a table of full rank whose directions carry less and less."""
    draw = torch.Generator().manual_seed(7)
    return torch.randn(600, 256, generator=draw) * torch.linspace(2.0, 0.2, 256)


def missed(found: torch.Tensor, of: torch.Tensor, weights: torch.Tensor) -> float:
    return float(((found - of).square().sum(1) * weights).sum())


def test_the_whole_rank_is_the_table() -> None:
    """Nothing is lost but digits."""
    made = factors(words(), 256)
    assert torch.allclose(made.left @ made.right.T, words(), atol=1e-4)


@pytest.mark.parametrize("rank", [64, 128])
def test_no_other_product_of_the_rank_is_nearer(rank: int) -> None:
    """As the singular values say."""
    made = factors(words(), rank)
    rest = torch.linalg.svdvals(words().double())[rank:].square().sum()
    assert missed(made.left @ made.right.T, words(), torch.ones(600)) == pytest.approx(
        float(rest), rel=1e-4
    )


def test_frequent_words_come_out_nearer() -> None:
    """Weighted by its occurrences, a word of every text counts more than one of none."""
    counts = torch.zeros(600, dtype=torch.int64)
    counts[:80] = 500
    plain, weighted = factors(words(), 64), factors(words(), 64, counts)
    share = counts + 1.0
    errors = [missed(f.left @ f.right.T, words(), share) for f in (plain, weighted)]
    assert errors[1] < 0.8 * errors[0]


def test_a_lower_rank_is_the_first_columns() -> None:
    """One table serves every rank."""
    thin = ThinWords(factors(words(), 192), 4)
    ids = torch.arange(40)
    low = factors(words(), 64)
    assert torch.allclose(
        thin.left[:, :64].float() @ thin.projection.weight[:, :64].T,
        low.left @ low.right.T,
        atol=2e-2,
    )
    cut = thin.table.first(64)
    assert torch.equal(cut(ids), thin.table(ids)[:, :64])
    assert torch.equal(
        thin(ids, 64), torch.nn.functional.linear(cut(ids), thin.projection.weight[:, :64])
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_cut_to_its_first_columns_says_the_same(bits: int) -> None:
    """Codes are packed anew, and stay what they were."""
    table = LowBitEmbedding(words(), bits)
    ids = torch.arange(600)
    for width in (64, 128, 256):
        part = table.first(width)
        assert torch.equal(part(ids), table(ids)[:, :width])
        assert part.codes.shape == (600, width * bits // 8)
    with pytest.raises(ModelError, match="steps of 64"):
        table.first(96)


def test_a_rank_beyond_the_width_is_refused() -> None:
    """It would only make the table larger."""
    with pytest.raises(ModelError, match="256 wide"):
        factors(words(), 320)


def test_words_are_counted() -> None:
    """Over all rows, padding or not."""
    assert word_counts([[1, 2, 2], [2, 4]], 5).tolist() == [0, 1, 3, 0, 1]
