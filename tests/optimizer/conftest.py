"""A tiny BERT and a tiny question set: real files, real training, in seconds."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerFast

from optimizer.training.loop import FLOAT32
from tests.fakes import TOKENIZER

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "grey", "brown")
ANIMALS = ("cat", "dog", "horse", "bird", "fish", "mouse")


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have models run in float32, in the processes that the test starts, too: bfloat16 has three digits."""
    monkeypatch.setenv(FLOAT32, "1")


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an untrained two-layer BERT with the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=512,
    )
    BertForQuestionAnswering(config).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_file(str(TOKENIZER)), model_max_length=512
    )
    tokenizer.save_pretrained(folder)
    return folder


def question_set(n_articles: int) -> dict[str, object]:
    """Return a SQuAD 2.0 document: who has which colour; every third question has no answer."""
    articles = []
    for a in range(n_articles):
        animal = ANIMALS[a % len(ANIMALS)]
        colour = COLOURS[a % len(COLOURS)]
        context = f"Story {a}. The {animal} in the garden is {colour} and quite old."
        found = {"text": colour, "answer_start": context.index(colour)}
        asked = [
            (f"Which colour is the {animal}?", [found]),
            (f"What colour has the old {animal}?", [found]),
            ("Who built the house?", []),
        ]
        qas = [
            {"id": f"{a}-{i}", "question": q, "answers": answers, "is_impossible": not answers}
            for i, (q, answers) in enumerate(asked)
        ]
        articles.append({"title": f"a{a}", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "v2.0", "data": articles}


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `train.json.xz` and `test.json`."""
    folder = tmp_path_factory.mktemp("data")
    with lzma.open(folder / "train.json.xz", "wt") as file:
        json.dump(question_set(80), file)
    (folder / "test.json").write_text(json.dumps(question_set(10)))
    return folder


@pytest.fixture(scope="session")
def trained(tiny_backbone: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of the study of `test_study`, trained, exported and measured; take a copy."""
    from optimizer.publish import publication
    from tests.optimizer.students.test_study import study_of

    study = study_of(tiny_backbone, tiny_data, tmp_path_factory.mktemp("trained"))
    study.largest.train()
    study.elastic.train()
    for config in study.config.students:
        study.train_student(config)
    publication.catalog_of(study, study.folder)
    return study.folder
