"""Relative positions weigh in every layer's scores, for the heads and the tokens that are left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot, scaled_dot_product_attention
from transformers import AutoModelForQuestionAnswering, MPNetForQuestionAnswering, PreTrainedModel
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from optimizer.models import adapt, bert, position_bias, student
from optimizer.models.bert import Dropping
from optimizer.models.position_bias import Added
from optimizer.models.relative_position import BUCKETS, buckets
from optimizer.students.supernet import Supernet
from optimizer.study.space import Candidate
from optimizer.training.loop import Batch
from optimizer.training.losses import label_loss, outputs_of
from tests.optimizer.checkpoints import loud_mpnet

S = 120
LENGTHS = (S, 97, 60)


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    return loud_mpnet(tmp_path / "mpnet")


def batch() -> Batch:
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 900, (len(LENGTHS), S), generator=draw)
    mask = (torch.arange(S)[None] < torch.tensor(LENGTHS)[:, None]).long()
    gold = one_hot(torch.tensor([30, 50, 20]), S).bool()
    types = (torch.arange(S)[None] > 6).long() * mask
    return Batch(ids * mask, mask, types, gold, gold.roll(2, 1), (0, 1, 2))


def bias_of(model: PreTrainedModel) -> torch.nn.Embedding:
    found = position_bias.bias_of(student.bert_of(model).encoder)
    assert found is not None
    return found


def test_buckets_are_those_of_transformers() -> None:
    """On a border between two buckets the last bit of a logarithm decides."""
    distance = np.arange(-600, 601)
    wanted = MPNetEncoder.relative_position_bucket(torch.from_numpy(distance))  # type: ignore[no-untyped-call]
    assert buckets(distance).tolist() == wanted.tolist()
    assert set(buckets(distance)) == set(range(BUCKETS)) - {BUCKETS // 2}  # no distance is +0


@torch.no_grad()
def test_dropped_tokens_leave_the_distances_of_the_others(model: PreTrainedModel) -> None:
    """What is said of kept tokens is what is said where the others are masked, in their places."""
    batched = batch()
    encoder, heads = student.bert_of(model).encoder, torch.nn.Linear(128, 2)
    found = outputs_of(bert.with_dropping(model, [Dropping(1, 0.4, heads)]), batched)
    assert found.kept is not None
    x = student.bert_of(model).embeddings(batched.input_ids, batched.token_type_ids)
    x = encoder.layer[0](x, Added(batched.attention_mask, x, bias_of(model)).to(None))
    seen = found.kept & (batched.attention_mask == 1)
    x = encoder.layer[1](x, Added(seen.long(), x, bias_of(model)).to(None))
    assert torch.allclose(found.hidden[seen], x[seen], atol=1e-4)


@torch.no_grad()
def test_cutting_keeps_each_heads_own_bias(model: PreTrainedModel) -> None:
    """Of two heads with unlike biases, the one that is left keeps its column of the table."""
    out = student.bert_of(model).encoder.layer[1].attention.output.dense
    out.weight[:, :64] = 0.0  # the first head of the second layer writes nothing
    cut = student.cut(model, (1,), 96, heads=1)
    whole = student.cut(model, (1,), 96)
    batched = batch()
    seen = batched.attention_mask == 1
    found, wanted = outputs_of(cut, batched), outputs_of(whole, batched)
    assert torch.allclose(found.start[seen], wanted.start[seen], atol=1e-4)
    names = {name for name in cut.state_dict() if name.endswith("bias_heads")}
    assert names == {"bert.encoder.layer.0.attention.self.bias_heads"}
    assert not [name for name in whole.state_dict() if name.endswith("bias_heads")]


def test_a_slice_of_all_heads_has_them_in_order(model: PreTrainedModel) -> None:
    """Then one sum of bias and mask serves all of its layers."""
    net = Supernet(model)
    cut = net.cut(Candidate((0, 1), 2, 96))
    assert all(
        position_bias.heads_of(layer.attention.self) is None
        for layer in student.bert_of(cut).encoder.layer
    )


def test_the_bias_learns_and_token_types_do_not(model: PreTrainedModel) -> None:
    """The table belongs to the layers; types that differ would be no MPNet any more."""
    label_loss(model, batch()).backward()  # type: ignore[no-untyped-call]
    grad = bias_of(model).weight.grad
    assert grad is not None
    assert (grad.abs().sum(1) > 0).sum() == BUCKETS - 1  # all distances there are
    assert student.bert_of(model).embeddings.token_type_embeddings.weight.grad is None


@torch.no_grad()
def test_a_slice_is_written_as_the_mpnet_that_it_is(model: PreTrainedModel, tmp_path: Path) -> None:
    """Any program can load it, and so can a study."""
    cut = student.with_low_bit_embeddings(student.cut(model, (1,), 48), 8)
    assert student.has_plain_form(cut)
    student.save_plain(cut, tmp_path / "plain")
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "plain")
    assert isinstance(theirs, MPNetForQuestionAnswering)
    adapt.check_parity(theirs, cut)
    batched = batch()
    again = student.load(str(tmp_path / "plain"), answers=True)
    assert torch.allclose(
        outputs_of(again, batched).start, outputs_of(cut, batched).start, atol=1e-4
    )
    student.bert_of(cut).embeddings.token_type_embeddings.weight[0] += 1
    assert not student.has_plain_form(cut)


@torch.no_grad()
def test_fused_attention_says_what_attention_says() -> None:
    """A GPU runs it in place of the products; here the same operator runs on the CPU."""
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 30, 16).unbind(0)
    table = torch.nn.Embedding(BUCKETS, 4)
    mask = (torch.arange(30)[None] < torch.tensor([30, 11])[:, None]).long()
    for heads in (None, torch.tensor([2, 0, 3, 1])):
        added = Added(mask, value, table).to(heads)
        wanted = position_bias.attend(query, key, value, added)
        found = scaled_dot_product_attention(query, key, value, attn_mask=added)
        assert torch.allclose(found, wanted, atol=1e-5)
