"""Any family teaches: what a teacher is asked and answers is what transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertModel,
    GPT2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
    ViTConfig,
)

from optimizer.backbones.errors import BackboneError
from optimizer.data.question_sets import Example
from optimizer.teachers import checkpoint
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.inference import ask
from optimizer.teachers.mapping import KEPT, NO_ANSWER
from optimizer.teachers.store import AnswerStore, key_of
from tests.optimizer import checkpoints
from tests.optimizer.teachers import families

QUESTION = "Who designed the bridge?"
BF16 = 0.05  # how far a share may be off where the chip computes in bfloat16
CONTEXT = " The  bridge, over\nthe gorge, was designed by Ada\u00a0Brunner of São Tomé 🏛️ in 1931."


def example(question: str = QUESTION, context: str = CONTEXT) -> Example:
    return Example("q", question, context, (), (), "")


@pytest.mark.parametrize("family", families.FAMILIES)
@torch.no_grad()
def test_each_family_answers_as_transformers_says(family: str, tmp_path: Path) -> None:
    """Its windows hold the ids of its own tokenizer, and neither padding nor neighbours change it."""
    folder = families.save(family, tmp_path / family)
    teacher = checkpoint.load(str(folder))
    store = AnswerStore(tmp_path / "answers")
    long = example(context=f"{CONTEXT} {CONTEXT}")
    ask(teacher, [example(), long], store)

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # type: ignore[no-untyped-call]
    found = tokenizer(QUESTION, CONTEXT)
    (window,) = teacher.encoder.windows(QUESTION, CONTEXT)
    assert window.input_ids.tolist() == found["input_ids"]
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    out = model(**teacher.padded([window]))
    spread = store[key_of(QUESTION, CONTEXT)]
    for side, logits in enumerate((out.start_logits[0], out.end_logits[0])):
        possible = torch.from_numpy(window.is_context)
        possible[window.null] = True
        chances = logits.masked_fill(~possible, -torch.inf).softmax(-1).numpy()
        where = window.begins if side == 0 else window.ends
        null = spread.shares[side][spread.places[side] == NO_ANSWER].sum()
        best = spread.places[side][0]
        same = where == best if best != NO_ANSWER else np.arange(len(where)) == window.null
        assert spread.shares[side][0] == pytest.approx(chances[same].sum(), abs=BF16)
        assert null == pytest.approx(chances[window.null] if null else 0.0, abs=BF16)


def test_a_long_context_is_read_in_overlapping_windows(tmp_path: Path) -> None:
    """Every character of it lies in some window, and its place stays that in the whole text."""
    teacher = checkpoint.load(str(families.save("roberta", tmp_path / "t")), window=64)
    context = " ".join(f"{CONTEXT} No {i}." for i in range(9))
    windows = teacher.encoder.windows(QUESTION, context)
    assert len(windows) > 3
    assert max(len(w.input_ids) for w in windows) == 64
    covered = {
        c for w in windows for b, e in zip(w.begins, w.ends, strict=True) for c in range(b, e)
    }
    assert covered >= {i for i, c in enumerate(context) if not c.isspace()}


def test_a_published_variant_teaches(tmp_path: Path) -> None:
    """It is read back from its file, with the repository's tokenizer."""
    teacher = checkpoint.load("model_repository/minilm-6")
    store = AnswerStore(tmp_path)
    context = "The bridge was designed by Ada Brunner and opened in 1931."
    ask(teacher, [example(context=context)], store)
    spread = store[key_of(QUESTION, context)]
    assert context[spread.places[0][0] : spread.places[1][0]] == "Ada Brunner"
    assert spread.places.shape == (2, KEPT)


def test_positions_bound_a_window(tmp_path: Path) -> None:
    """RoBERTa counts its positions from the padding's id + 1; relative ones have no bound."""
    limits = {
        family: checkpoint.longest_window(
            checkpoint.load(str(families.save(family, tmp_path / family))).model
        )
        for family in ("roberta", "mpnet", "bert", "xlnet")
    }
    assert limits == {"roberta": 512, "mpnet": 512, "bert": 512, "xlnet": None}


def refused(folder: Path, said: str, window: int | None = None) -> None:
    with pytest.raises(TeacherError, match=said):
        checkpoint.load(str(folder), window)


def test_an_encoder_is_no_teacher(tmp_path: Path) -> None:
    """Without a question-answering head transformers would draw one at random."""
    tokenizer = checkpoints.word_piece()
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), **families.SIZE)
    checkpoints.save(config, tmp_path, tokenizer)
    BertModel(config).save_pretrained(tmp_path)
    refused(tmp_path, r"not fine-tuned to answer questions, it has no qa_outputs")


def test_a_family_without_question_answering_is_no_teacher(tmp_path: Path) -> None:
    """An image model, for one."""
    ViTConfig().save_pretrained(tmp_path)
    refused(tmp_path, "no question-answering model of its family")


def test_a_teacher_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    """The message asks for the file that is missing."""
    checkpoints.save(RobertaConfig(vocab_size=300, **families.ROBERTA), tmp_path)
    refused(tmp_path, r"a teacher needs a fast tokenizer.*: give its tokenizer.json")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """An id without a row would fail in the middle of the night."""
    tokenizer = checkpoints.byte_level()
    checkpoints.save(RobertaConfig(vocab_size=300, **families.ROBERTA), tmp_path, tokenizer)
    refused(tmp_path, "ids up to 329, the model only 300 rows")


def test_a_short_teacher_reads_short_windows(tmp_path: Path) -> None:
    """Another maximum length is no fault, unless nothing fits into it."""
    tokenizer = checkpoints.word_piece()
    for positions in (96, 40):
        config = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=positions,
            **families.SIZE,
        )
        checkpoints.save(config, tmp_path / str(positions), tokenizer)
    assert checkpoint.load(str(tmp_path / "96")).window == 96
    refused(tmp_path / "96", "has positions for 96 tokens, not for teacher_tokens 128", window=128)
    refused(tmp_path / "40", "has positions for 40 tokens; a question and its context need 64")


def test_a_question_too_long_for_the_window_is_not_asked(tmp_path: Path) -> None:
    """It is remembered as such: its label stands in."""
    teacher = checkpoint.load(str(families.save("bert", tmp_path / "t")), window=64)
    store = AnswerStore(tmp_path / "answers")
    asked = example(question="which " * 60)
    ask(teacher, [asked], store)
    assert store[key_of(asked.question, asked.context)].shares.sum() == 0


def test_a_tokenizer_that_knows_no_places_is_refused(tmp_path: Path) -> None:
    """Without offsets no answer can be mapped."""
    folder = families.save("roberta", tmp_path)
    tokenizer = checkpoints.byte_level()
    tokenizer.normalizer = normalizers.Replace("It is a bridge. ", "")
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, "does not say where in the text a token is")


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    """A download that was cut off."""
    folder = families.save("bert", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(folder, f"{tmp_path}: cannot be read as a Hugging Face checkpoint: ")


def test_a_missing_layer_is_an_error(tmp_path: Path) -> None:
    """Its weights would be drawn at random, with a warning."""
    folder = families.save("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused(folder, r"incomplete: bert\.encoder\.layer\.2\.")


def test_a_mistyped_folder_is_no_download(tmp_path: Path) -> None:
    """Nothing goes to the network for it."""
    with pytest.raises(BackboneError, match="no such folder"):
        checkpoint.load(str(tmp_path / "nowhere"))


def test_other_weights_are_another_teacher(tmp_path: Path) -> None:
    """Answers are never taken for those of a checkpoint that was replaced in its place."""
    folder = families.save("bert", tmp_path)
    before = checkpoint.identity(str(folder))
    assert checkpoint.identity(str(folder)) == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert checkpoint.identity(str(folder)) != before


def test_a_decoder_teaches_too(tmp_path: Path) -> None:
    """Whatever has a question-answering head in transformers, GPT-2 for one."""
    tokenizer = checkpoints.byte_level()
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=32, n_layer=1, n_head=2)
    folder = checkpoints.save(config, tmp_path, tokenizer)
    assert checkpoint.load(str(folder)).window == checkpoint.LONGEST
