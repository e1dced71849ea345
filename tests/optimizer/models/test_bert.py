"""A student of low rank that drops tokens: which tokens stay, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import BertForQuestionAnswering, PreTrainedModel

from optimizer.models import bert, student
from optimizer.models.bert import Dropping, StudentBert, forced_of, kept_positions, rank_of
from optimizer.models.lowrank import with_rank
from optimizer.models.weights import FORCED, MIN_KEPT, Drops, n_kept
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
    return dropping_often(model, ((1, keep),))


def dropping_often(model: PreTrainedModel, drops: Drops) -> PreTrainedModel:
    torch.manual_seed(4)
    each = [Dropping(after, keep, torch.nn.Linear(64, 2)) for after, keep in drops]
    return bert.with_dropping(model, each)


@torch.no_grad()
def test_a_student_that_drops_nothing_says_what_bert_says(plain: PreTrainedModel) -> None:
    """The forward pass is our own; the model is transformers'."""
    batched = batch()
    seen = batched.attention_mask == 1
    wanted = outputs_of(plain, batched)
    found = outputs_of(bert.as_student(plain), batched)
    assert torch.allclose(found.start[seen], wanted.start[seen], atol=1e-5)
    assert torch.allclose(found.hidden[seen], wanted.hidden[seen], atol=1e-5)
    assert found.early == ()
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
    assert found.kept is not None
    late = found.start != found.early[0][0]
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


@pytest.fixture
def deep(plain: PreTrainedModel) -> PreTrainedModel:
    """Return a model of four layers: one layer stands in it thrice."""
    return student.cut(plain, (0, 1, 1, 1), None)


@torch.no_grad()
def test_dropped_tokens_keep_what_the_last_head_before_said(deep: PreTrainedModel) -> None:
    """Each head speaks of what is left; of the others the word stands that they were dropped with."""
    drops = ((1, 0.8), (2, 0.6), (3, 0.4))
    batched = batch()
    found = outputs_of(dropping_often(deep, drops), batched)
    said = [start for start, _ in found.early] + [found.start]
    assert len(said) == 4
    left = torch.ones(3, S, dtype=torch.bool)
    for (_, keep), before, after in zip(drops, said, said[1:], strict=False):
        changed = (after != before) & (batched.attention_mask == 1)
        assert not changed[~left].any()
        left = changed
        most = n_kept(keep, S)
        assert left.sum(1).tolist() == [min(n, most) for n in LENGTHS]
    assert found.kept is not None
    assert found.kept.sum(1).tolist() == [n_kept(0.4, S)] * 3
    assert not left[~found.kept].any()


@torch.no_grad()
def test_each_layer_sees_what_the_drops_before_it_left(deep: PreTrainedModel) -> None:
    """Each share is of the padded window, not of the tokens that are left."""
    model = dropping_often(deep, ((1, 0.7), (3, 0.5)))
    seen: list[int] = []
    for layer in set(student.bert_of(model).encoder.layer):
        layer.register_forward_hook(lambda _module, given, _said: seen.append(given[0].shape[1]))
    outputs_of(model, batch())
    assert seen == [S, n_kept(0.7, S), n_kept(0.7, S), n_kept(0.5, S)]


@torch.no_grad()
def test_a_second_drop_of_no_token_changes_nothing(deep: PreTrainedModel) -> None:
    """What was put back once and twice is the same, of states and of logits."""
    once = outputs_of(dropping_often(deep, ((1, 0.4),)), batch())
    twice = outputs_of(dropping_often(deep, ((1, 0.4), (3, 0.4))), batch())
    seen = batch().attention_mask == 1
    assert torch.allclose(once.start[seen], twice.start[seen], atol=1e-5)
    assert torch.allclose(once.hidden[seen], twice.hidden[seen], atol=1e-5)
    assert once.kept is not None
    assert twice.kept is not None
    assert torch.equal(once.kept, twice.kept)


@torch.no_grad()
def test_the_question_is_kept_at_every_drop(deep: PreTrainedModel) -> None:
    """Which tokens those are, their places in the window say, not those in what is left of it."""
    model = dropping_often(deep, ((1, 0.6), (2, 0.4), (3, 0.31)))
    batched = batch(question=FORCED - 2)
    found = outputs_of(model, batched)
    assert found.kept is not None
    assert found.kept[:, : FORCED - 2].all()
    assert found.kept.sum(1).tolist() == [n_kept(0.31, S)] * 3


def test_all_early_heads_learn_from_labels(deep: PreTrainedModel) -> None:
    """The loss of several is their mean: `early_weight` is that of all of them together."""
    model = dropping_often(deep, ((1, 0.6), (2, 0.4)))
    label_loss(model, batch()).backward()  # type: ignore[no-untyped-call]
    for name in ("early_outputs.weight", "early_outputs_2.weight"):
        grad = model.get_parameter(name).grad
        assert grad is not None
        assert float(grad.abs().sum()) > 0


@torch.no_grad()
def test_heads_start_as_those_of_the_model_before(deep: PreTrainedModel) -> None:
    """In their order; where there are more drops than heads the last one serves the rest."""
    model = dropping_often(deep, ((1, 0.8), (2, 0.6)))
    first, second = (each.head for each in bert.dropping_of(model, ((1, 0.5), (2, 0.4))))
    assert [each.head for each in bert.dropping_of(model, ((2, 0.5),))] == [first]
    more = bert.dropping_of(model, ((1, 0.9), (2, 0.8), (3, 0.7)))
    assert [each.head for each in more] == [first, second, second]
    fewer = bert.with_dropping(model, more[:1])
    assert {name for name in fewer.state_dict() if name.startswith("early")} == {
        "early_outputs.weight",
        "early_outputs.bias",
    }


def test_the_most_important_tokens_are_kept() -> None:
    """By the larger of their early logits, in ascending order of position."""
    torch.manual_seed(0)
    early = torch.randn(2, S, 2)
    mask = torch.ones(2, S, dtype=torch.int64)
    found = kept_positions(early, mask, mask == 0, 80)
    for row, kept in zip(early.amax(-1), found.tolist(), strict=True):
        best = sorted(range(S), key=lambda i: -float(row[i]))[:80]
        assert kept == sorted(best)


@pytest.mark.parametrize("question", [1, 12, FORCED, 60])
def test_the_question_is_always_kept(question: int) -> None:
    """Up to as many tokens as may be forced; the rest of a long one stands for itself."""
    batched = batch((S, 121), question=question)
    early = torch.full((2, S, 2), -5.0)
    early[:, question:] = 5.0
    kept = kept_positions(
        early, batched.attention_mask, forced_of(batched.token_type_ids), MIN_KEPT
    )
    forced = min(question, FORCED)
    assert all(row[:forced] == list(range(forced)) for row in kept.tolist())
    assert all(forced not in row for row in kept.tolist() if question > FORCED)


def test_padding_is_dropped_first() -> None:
    """Even where the early head likes it best, or it stands at the front."""
    batched = batch((20, 70))
    early = torch.zeros(2, S, 2)
    early[:, 20:] = 9.0
    short, long = kept_positions(
        early, batched.attention_mask, forced_of(batched.token_type_ids), MIN_KEPT
    ).tolist()
    assert short == list(range(MIN_KEPT))
    assert max(long) < 70


def test_of_equals_the_lower_position_is_kept() -> None:
    """The graph breaks ties in the same way."""
    ones = torch.ones(1, S, dtype=torch.int64)
    kept = kept_positions(torch.zeros(1, S, 2), ones, ones == 0, 80)
    assert kept.tolist() == [list(range(80))]


@torch.no_grad()
@pytest.mark.parametrize("drops", [((1, 0.4),), ((1, 0.7), (2, 0.5), (3, 0.3))])
def test_a_row_does_not_depend_on_its_batch(deep: PreTrainedModel, drops: Drops) -> None:
    """Within one padded length: then served alone and trained together are alike."""
    model = dropping_often(deep, drops)
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
    assert len(found.dropping) == 1


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


@pytest.mark.parametrize("rank", [0, 64])
def test_a_student_may_have_fewer_bits_than_its_start(tiny_backbone: Path, rank: int) -> None:
    """Of the same rank, it is rounded anew."""
    model = student.load(str(tiny_backbone))
    for bits in (8, 4):
        model = with_rank(model, rank, bits)
        assert student.bert_of(model).embeddings.word_embeddings.bits == bits


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
    whole = bert.with_dropping(dropping_often(plain, ((1, 0.6), (2, 0.4))), ())
    found = outputs_of(whole, batch())
    assert found.early == ()
    assert torch.allclose(found.start, wanted.start, atol=1e-5)
    assert not any(name.startswith("early") for name in whole.state_dict())
