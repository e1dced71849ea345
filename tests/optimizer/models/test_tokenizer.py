"""The tokenizer goes along with the weights: the same ids that the checkpoint was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from gateway.domain import Question
from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets
from optimizer.data.question_sets import Example
from optimizer.models import tokenizer
from optimizer.models.student import ModelError
from tests.optimizer import checkpoints
from tests.optimizer.checkpoints import CONFIGS

QUESTION, CONTEXT = "Who opened it?", " The  bridge, by\nAda\u00a0Brunner of São Tomé 🏛️"
KINDS = (checkpoints.byte_level, checkpoints.sentence_piece, checkpoints.word_piece)


def saved(made: Tokenizer, folder: Path, vocabulary: int | None = None) -> SpanEncoder:
    config = CONFIGS["roberta"](vocabulary or made.get_vocab_size())
    checkpoint = checkpoints.save(config, folder / "checkpoint", made)
    tokenizer.save(str(checkpoint), folder)
    return SpanEncoder.from_file(folder / tokenizer.FILE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_the_pair_that_the_library_makes(
    kind: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    """The special tokens and the types around a pair are the tokenizer's own."""
    made = kind()
    windows = saved(made, tmp_path).encode(Question(QUESTION, CONTEXT))
    pair = made.encode(QUESTION, CONTEXT)
    n = windows.n_tokens
    assert windows.input_ids[0, :n].tolist() == pair.ids
    assert windows.token_type_ids[0, :n].tolist() == pair.type_ids
    assert windows.attention_mask[0].sum() == n


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_hold_no_white_space(kind: Callable[[], Tokenizer], tmp_path: Path) -> None:
    """An answer begins with a letter, not with the space that the token before left to it."""
    windows = saved(kind(), tmp_path).encode(Question(QUESTION, CONTEXT))
    pieces = [CONTEXT[begin:end] for begin, end in windows.offsets[windows.is_context]]
    assert all(piece and piece == piece.strip() for piece in pieces)
    assert set("".join(pieces)) == set("".join(CONTEXT.split()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_window_holds_the_answer(kind: Callable[[], Tokenizer], tmp_path: Path) -> None:
    """Where a token begins with a space, the answer is still found at its own characters."""
    context = "The cat in the garden is green and quite old."
    example = Example("1", "Which colour?", context, ("green",), (context.index("green"),), "")
    encoder = saved(kind(), tmp_path)
    (row,) = question_sets.features([example], encoder, seed=1)
    windows = encoder.encode(example.as_question())
    ((first, last),) = row.spans
    begin, end = windows.offsets[0, first, 0], windows.offsets[0, last, 1]
    assert context[begin:end] == "green"


def test_byte_level_ids_are_decoded_to_the_text(tmp_path: Path) -> None:
    """A character of several bytes is whole again."""
    encoder = saved(checkpoints.byte_level(), tmp_path)
    windows = encoder.encode(Question(QUESTION, CONTEXT))
    assert encoder.decode(windows.input_ids[0, : windows.n_tokens]) == QUESTION + CONTEXT


def test_the_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    """transformers would build a RoBERTa's tokenizer anew, and lose that it is lower-cased."""
    made = checkpoints.byte_level(lower=True)
    checkpoint = checkpoints.save(
        CONFIGS["roberta"](made.get_vocab_size()), tmp_path / "checkpoint", made
    )
    said = checkpoint / "tokenizer_config.json"
    said.write_text(
        json.dumps(json.loads(said.read_text()) | {"tokenizer_class": "RobertaTokenizer"})
    )
    tokenizer.save(str(checkpoint), tmp_path)
    again = Tokenizer.from_file(str(tmp_path / tokenizer.FILE))
    assert again.encode("The BRIDGE").tokens == made.encode("the bridge").tokens


def test_a_vocabulary_file_is_enough(tmp_path: Path) -> None:
    """Old checkpoints have no tokenizer.json."""
    made = checkpoints.byte_level()
    checkpoint = checkpoints.save(CONFIGS["roberta"](made.get_vocab_size()), tmp_path / "old")
    made.model.save(str(checkpoint))
    tokenizer.save(str(checkpoint), tmp_path)
    again = Tokenizer.from_file(str(tmp_path / tokenizer.FILE))
    assert again.encode(QUESTION, CONTEXT).ids == made.encode(QUESTION, CONTEXT).ids


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """The message names the checkpoint."""
    checkpoints.save(CONFIGS["roberta"](300), tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path}: has no tokenizer.json"):
        tokenizer.save(str(tmp_path), tmp_path)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    """The first question with such a token would fail, long after publishing."""
    with pytest.raises(ModelError, match="ids up to 329, the model only 300 rows"):
        saved(checkpoints.byte_level(), tmp_path, vocabulary=300)


def test_a_window_must_begin_with_a_class_token(tmp_path: Path) -> None:
    """No answer is scored in a window's first column; XLNet has its class token at the end."""
    made = checkpoints.byte_level()
    made.post_processor = processors.TemplateProcessing(
        "$A </s> <s>", "$A </s> $B </s> <s>", [("<s>", 0), ("</s>", 2)]
    )
    with pytest.raises(ModelError, match="no class token before the question"):
        saved(made, tmp_path)
