"""A student of low rank that drops tokens: which tokens stay, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import BertForQuestionAnswering, PreTrainedModel

from optimizer.models import bert, student
from optimizer.models.bert import Dropping, StudentBert, kept_positions, rank_of
from optimizer.models.lowrank import with_rank
from optimizer.models.weights import FORCED, MIN_KEPT, n_kept
from optimizer.training.loop import Batch
from optimizer.training.losses import label_loss, outputs_of

S = 160
LENGTHS = (160, 121, 70)  # tokens of the rows that are no padding


def batch(lengths: tuple[int, ...] = LENGTHS, n_tokens: int = S, question: int = 9) -> Batch:
    """Return random rows; the same tokens stand in a row whatever the others are."""
    rows = [torch.randint(1000, 30000, (n_tokens,), generator=_draw(n)) for n in lengths]
    at = torch.arange(n_tokens)[None]
    mask = (at < torch.tensor(lengths)[:, None]).long()
    gold = one_hot(torch.tensor([40 + 3 * i for i in range(len(lengths))]), n_tokens).bool()
    types = (at >= question).long() * mask
    return Batch(
        torch.stack(rows) * mask, mask, types, gold, gold.roll(2, 1), tuple(range(len(lengths)))
    )


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def plain(tiny_backbone: Path) -> PreTrainedModel:
    """Return a BERT loud enough that tokens and heads differ."""
    found = student.load(str(tiny_backbone)).eval()  # type: ignore[no-untyped-call]
    torch.manual_seed(2)
    for name, parameter in found.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return found  # type: ignore[no-any-return]


def dropping(model: PreTrainedModel, keep: float = 0.4) -> PreTrainedModel:
    torch.manual_seed(4)
    head = torch.nn.Linear(64, 2)
    return bert.with_dropping(model, Dropping(1, keep, head))


@torch.no_grad()
def test_a_student_that_drops_nothing_says_what_bert_says(plain: PreTrainedModel) -> None:
    """The forward pass is our own; the model is transformers'."""
    batched = batch()
    seen = batched.attention_mask == 1
    wanted = outputs_of(plain, batched)
    found = outputs_of(bert.as_student(plain), batched)
    assert torch.allclose(found.start[seen], wanted.start[seen], atol=1e-5)
    assert torch.allclose(found.hidden[seen], wanted.hidden[seen], atol=1e-5)
    assert found.early is None
    assert found.kept is None


@torch.no_grad()
def test_dropping_no_token_changes_nothing(plain: PreTrainedModel) -> None:
    """A short window is worth less than the least that is kept."""
    batched = batch((48, 30), n_tokens=MIN_KEPT)
    wanted = outputs_of(plain, batched)
    found = outputs_of(dropping(plain, 0.1), batched)
    seen = batched.attention_mask == 1
    assert found.kept is not None
    assert found.kept.all()
    assert torch.allclose(found.end[seen], wanted.end[seen], atol=1e-5)


@torch.no_grad()
def test_dropped_tokens_keep_their_early_logits(plain: PreTrainedModel) -> None:
    """And kept ones get new ones."""
    found = outputs_of(dropping(plain), batch())
    assert found.early is not None
    assert found.kept is not None
    late = found.start != found.early[0]
    assert not late[~found.kept].any()
    assert late[found.kept & (batch().attention_mask == 1)].all()
    assert found.kept.sum(1).tolist() == [n_kept(0.4, S)] * 3


@torch.no_grad()
def test_later_layers_do_not_see_what_was_dropped(plain: PreTrainedModel) -> None:
    """What is said of kept tokens is what the rest of the layers says of them alone."""
    batched, model = batch((S,)), dropping(plain)
    found = outputs_of(model, batched)
    assert found.kept is not None
    states = plain(**batched.inputs(), output_hidden_states=True).hidden_states[1]
    few = states[:, found.kept[0]]
    last = student.bert_of(plain).encoder.layer[1](few)
    logits = plain.get_submodule("qa_outputs")(last)[..., 0]
    assert torch.allclose(found.start[found.kept], logits[0], atol=1e-5)
    assert torch.allclose(found.hidden[found.kept], last[0], atol=1e-5)


def test_the_most_important_tokens_are_kept() -> None:
    """By the larger of their early logits, in ascending order of position."""
    torch.manual_seed(0)
    early = torch.randn(2, S, 2)
    mask, types = torch.ones(2, S, dtype=torch.int64), torch.ones(2, S, dtype=torch.int64)
    found = kept_positions(early, mask, types, 0.5)
    for row, kept in zip(early.amax(-1), found.tolist(), strict=True):
        best = sorted(range(S), key=lambda i: -float(row[i]))[:80]
        assert kept == sorted(best)


@pytest.mark.parametrize("question", [1, 12, FORCED, 60])
def test_the_question_is_always_kept(question: int) -> None:
    """Up to as many tokens as may be forced; the rest of a long one stands for itself."""
    batched = batch((S, 121), question=question)
    early = torch.full((2, S, 2), -5.0)
    early[:, question:] = 5.0
    kept = kept_positions(early, batched.attention_mask, batched.token_type_ids, 0.3)
    forced = min(question, FORCED)
    assert all(row[:forced] == list(range(forced)) for row in kept.tolist())
    assert all(forced not in row for row in kept.tolist() if question > FORCED)


def test_padding_is_dropped_first() -> None:
    """Even where the early head likes it best, or it stands at the front."""
    batched = batch((20, 70))
    early = torch.zeros(2, S, 2)
    early[:, 20:] = 9.0
    short, long = kept_positions(
        early, batched.attention_mask, batched.token_type_ids, 0.3
    ).tolist()
    assert short == list(range(MIN_KEPT))
    assert max(long) < 70


def test_of_equals_the_lower_position_is_kept() -> None:
    """The graph breaks ties in the same way."""
    ones = torch.ones(1, S, dtype=torch.int64)
    kept = kept_positions(torch.zeros(1, S, 2), ones, ones, 0.5)
    assert kept.tolist() == [list(range(80))]


@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(plain: PreTrainedModel) -> None:
    """Within one padded length: then served alone and trained together are alike."""
    model = dropping(plain)
    together = outputs_of(model, batch())
    for i, n in enumerate(LENGTHS):
        alone = outputs_of(model, batch((n,)))
        assert together.kept is not None
        assert alone.kept is not None
        assert torch.equal(together.kept[i], alone.kept[0])
        assert torch.allclose(together.start[i, :n], alone.start[0, :n], atol=1e-5)


@torch.no_grad()
def test_training_drops_the_same_tokens(plain: PreTrainedModel) -> None:
    """What is trained is what is served."""
    model = dropping(plain)
    quiet = outputs_of(model, batch())
    model.train()
    assert torch.equal(outputs_of(model, batch()).start, quiet.start)


def test_gradients_reach_the_early_head_and_the_projection_but_no_codes(
    plain: PreTrainedModel,
) -> None:
    """The table is frozen, and training goes on around it."""
    torch.manual_seed(1)
    words = torch.nn.Embedding(30522, 128)
    thin = bert.with_thin_words(
        dropping(plain), student.LowBitEmbedding(words.weight, 4), torch.randn(64, 128) / 10
    )
    label_loss(thin, batch()).backward()  # type: ignore[no-untyped-call]
    touched = {n for n, p in thin.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert {"early_outputs.weight", "bert.embeddings.projection.weight"} <= touched
    assert "bert.encoder.layer.0.intermediate.dense.weight" in touched
    table = student.bert_of(thin).embeddings.word_embeddings
    assert not any(tensor.requires_grad for tensor in table.state_dict(keep_vars=True).values())


def test_an_early_head_learns_from_labels(plain: PreTrainedModel) -> None:
    """Its own loss pulls at tokens that are kept, which the last word says nothing of."""
    model = dropping(plain)
    batched = batch()
    label_loss(model, batched).backward()  # type: ignore[no-untyped-call]
    assert isinstance(model, StudentBert)
    assert model.early_outputs is not None
    grad = model.early_outputs.weight.grad
    assert grad is not None
    before = label_loss(model, batched)
    with torch.no_grad():
        model.early_outputs.weight -= 0.05 * grad
    assert label_loss(model, batched) < before


@torch.no_grad()
def test_what_drops_tokens_can_be_cut_narrower(plain: PreTrainedModel) -> None:
    """A student may start from it; its neurons are watched on all tokens."""
    found = student.cut(dropping(plain), (0, 1), 32)
    wanted = student.cut(plain, (0, 1), 32)
    up = "bert.encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(found.get_parameter(up), wanted.get_parameter(up))
    assert isinstance(found, StudentBert)
    assert found.dropping is not None


@torch.no_grad()
def test_the_word_table_has_the_rank_and_counts_by_it(plain: PreTrainedModel) -> None:
    """Names and shapes are what the graph reads."""
    before = student.parameters_of(plain)
    thin = with_rank(plain, 64, 8)
    weights = thin.state_dict()
    assert weights["bert.embeddings.projection.weight"].shape == (64, 64)
    assert weights["bert.embeddings.word_embeddings.codes"].shape == (30522, 64)
    assert rank_of(thin) == 64
    assert student.parameters_of(thin) == before + 64 * 64


@torch.no_grad()
def test_a_checkpoint_of_low_rank_is_multiplied_out(plain: PreTrainedModel, tmp_path: Path) -> None:
    """Any program can load it; with dropping there is none that could."""
    thin = with_rank(plain, 64, 4)
    assert student.has_plain_form(thin)
    student.save_plain(thin, tmp_path)
    again = student.load(str(tmp_path)).eval()  # type: ignore[no-untyped-call]
    assert isinstance(again, BertForQuestionAnswering)
    seen = batch().attention_mask == 1
    wanted, found = outputs_of(thin, batch()), outputs_of(again, batch())
    assert torch.allclose(found.start[seen], wanted.start[seen], atol=1e-4)
    assert not student.has_plain_form(dropping(thin))


@torch.no_grad()
def test_what_drops_tokens_can_be_made_to_drop_none(plain: PreTrainedModel) -> None:
    """A student may start from one that does."""
    wanted = outputs_of(plain, batch())
    whole = bert.with_dropping(dropping(plain), None)
    found = outputs_of(whole, batch())
    assert found.early is None
    assert torch.allclose(found.start, wanted.start, atol=1e-5)
    assert bert.dropping_of(whole, 0.5, 0) is None
