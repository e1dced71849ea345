"""What is rewritten as a BERT says what it said before; what BERT cannot say is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForQuestionAnswering,
    DebertaV2Config,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from gateway.backends.embedded import open_session, run
from gateway.catalog.schema import Decoding
from gateway.domain import Question
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder
from optimizer.models import adapt, student, tokenizer
from optimizer.models.student import ModelError
from optimizer.onnx import export
from tests.optimizer import checkpoints
from tests.optimizer.checkpoints import CONFIGS, MPNET, ROBERTA, SIZE

CONTEXT = "  The bridge was designed by Ada  Brunner,\tand São Tomé opened in 1931. " * 30


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_is_rewritten_as_a_bert_that_says_the_same(family: str, tmp_path: Path) -> None:
    """Also where there is padding, and at the last position of a window."""
    folder = checkpoints.save(CONFIGS[family](300), tmp_path)
    found = student.load(str(folder), answers=True)
    assert isinstance(found, BertForQuestionAnswering)
    adapt.check_parity(AutoModelForQuestionAnswering.from_pretrained(folder), found)
    assert found.config.type_vocab_size == 2
    assert found.config.max_position_embeddings == 512


def test_a_bert_of_one_token_type_gets_a_second(tmp_path: Path) -> None:
    """The graph reads token types of question and context, whatever the model makes of them."""
    config = BertConfig(vocab_size=300, **(SIZE | {"type_vocab_size": 1}))
    found = student.load(str(checkpoints.save(config, tmp_path)))
    rows = student.bert_of(found).embeddings.token_type_embeddings.weight
    assert torch.equal(rows[0], rows[1])


def test_an_mpnet_whose_padding_was_renumbered_is_the_same_bert(tmp_path: Path) -> None:
    """Its positions are counted from padding 1 by its code, not by its configuration."""
    config = MPNetConfig(vocab_size=300, **(MPNET | {"pad_token_id": 0}))
    folder = checkpoints.save(config, tmp_path)
    found = student.load(str(folder), answers=True)
    adapt.check_parity(AutoModelForQuestionAnswering.from_pretrained(folder), found)


def test_a_rewrite_that_says_something_else_is_found() -> None:
    """A configuration may ask for more than this module knows of."""
    torch.manual_seed(5)
    model = RobertaForQuestionAnswering(RobertaConfig(vocab_size=300, **ROBERTA))
    bert = adapt.as_bert(model)
    model.qa_outputs.bias.data += 0.01
    with pytest.raises(adapt.NotBert, match="logits differ"):
        adapt.check_parity(model, bert)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            DebertaV2Config(vocab_size=50, **SIZE),
            "deberta-v2 attends by relative .*: bert, camembert,",
        ),
        (
            MPNetConfig(vocab_size=50, relative_attention_num_buckets=64, **MPNET),
            "has 64 buckets of relative positions, and its code 32",
        ),
        (AlbertConfig(vocab_size=50, embedding_size=64, **SIZE), "albert projects its embeddings"),
        (ElectraConfig(vocab_size=50, embedding_size=32, **SIZE), r"embeddings \(32 wide\)"),
        (BertConfig(vocab_size=50, hidden_act="silu", **SIZE), "silu cannot be exported"),
        (
            BertConfig(vocab_size=50, **(SIZE | {"position_embedding_type": "relative_key"})),
            "position_embedding_type relative_key",
        ),
        (
            RobertaConfig(vocab_size=50, **(ROBERTA | {"max_position_embeddings": 384})),
            "382 positions, and windows have up to 384",
        ),
        (BertConfig(vocab_size=50, **(SIZE | {"hidden_size": 80})), "80 wide"),
    ],
)
def test_what_no_served_bert_equals_is_refused(
    config: PretrainedConfig, said: str, tmp_path: Path
) -> None:
    """Before anything is trained on it; the message says what there is and what would do."""
    folder = checkpoints.save(config, tmp_path)
    with pytest.raises(ModelError, match=f"{folder}: .*{said}"):
        student.load(str(folder))


@pytest.mark.parametrize("headless", [AutoModel, AutoModelForSequenceClassification])
def test_an_encoder_without_a_span_head_can_only_be_a_backbone(
    headless: type, tmp_path: Path
) -> None:
    """transformers draws a missing head at random, with no more than a warning."""
    config = CONFIGS["roberta"](300)
    config.num_labels = 3
    folder = str(checkpoints.save(config, tmp_path, model=headless))
    found: Any = student.load(folder)
    assert found.qa_outputs.out_features == 2
    with pytest.raises(ModelError, match=r"not fine-tuned to answer questions, .* --backbone"):
        student.load(folder, answers=True)


def test_an_encoder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """It would be published as if its random layers were trained."""
    config = CONFIGS["roberta"](300)
    folder = checkpoints.save(config, tmp_path)
    config.num_hidden_layers = 3
    config.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"layer\.2\..* is missing, and 15 weights more"):
        student.load(str(folder))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("roberta", checkpoints.byte_level),
        ("xlm-roberta", checkpoints.sentence_piece),
        ("distilbert", checkpoints.word_piece),
        ("electra", checkpoints.word_piece),
    ],
)
def test_a_student_of_a_family_answers_as_served(
    family: str, words: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    """Loaded, cut, exported through every gate, asked: the answer is a piece of the context."""
    made = words()
    config = CONFIGS[family](made.get_vocab_size())
    folder = str(checkpoints.save(config, tmp_path / "checkpoint", made))
    cut = student.cut(student.load(folder, answers=True), (1,), 64, heads=1)
    student.with_low_bit_embeddings(cut, 4)
    export.to_onnx(cut, tmp_path / "fp32.onnx")
    export.to_int8(cut, tmp_path / "int8.onnx")
    tokenizer.save(folder, tmp_path)
    encoder = SpanEncoder.from_file(tmp_path / tokenizer.FILE)
    question = Question("Who designed the bridge?", CONTEXT, top_k=20)
    windows = encoder.encode(question)
    logits = run(open_session(tmp_path / "int8.onnx"), windows)
    answer = codec.decode(windows, logits, question, Decoding(null_threshold=float("inf")))
    assert windows.n_windows > 1
    for span in answer.alternatives:
        assert span.text == CONTEXT[span.start : span.end]
        assert span.text == span.text.strip() != ""
