"""Finished classifiers teach a classification: what transformers makes of them, in the study's labels."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets
from optimizer.data.labelled_texts import LabelledText
from optimizer.students.study import Study
from optimizer.study import config as configs
from optimizer.teachers import classifiers
from optimizer.teachers.classifiers import ClassifierTeachers, MeanClasses
from optimizer.teachers.errors import TeacherError
from optimizer.training import loop
from tests.fakes import TOKENIZER
from tests.optimizer.teachers import families

LABELS = ("bad", "good", "mixed")
THEIRS = {0: "Good", 1: "Mixed", 2: "Bad"}
ORDER = [2, 0, 1]
TEXTS = (
    ("The bridge spans the gorge.", None),
    ("A cat.", "It is green, and so is the dog in the garden."),
    ("The single arch of the bridge", "142 metres"),
)
BF16 = 0.05  # where the chip computes in bfloat16


def labelled(n: int = 3, labels: tuple[str, ...] = LABELS) -> list[LabelledText]:
    return [
        LabelledText(str(i), text, pair, i % len(labels), labels)
        for i, (text, pair) in zip(range(n), cycle(TEXTS), strict=False)
    ]


def asked(
    folder: Path, names: tuple[str, ...], examples: list[LabelledText]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the targets of the texts' rows, (R, L), and what was found of each teacher."""
    encoder = SpanEncoder.from_file(TOKENIZER)
    rows = question_sets.features(examples, encoder, seed=1)
    teachers = ClassifierTeachers(names, None, folder, examples[0].labels)
    targets, found = teachers.answers(examples, rows, encoder)
    batch = loop.batch_of(rows, range(len(rows)))
    return targets.of(batch).logits[0].cpu().numpy(), found


@torch.no_grad()
def said_by(folder: Path, text: str, pair: str | None) -> np.ndarray:
    """Return what transformers makes of a checkpoint and texts."""
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # type: ignore[no-untyped-call]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tensors = tokenizer(text, pair, return_tensors="pt", return_token_type_ids=True)
    known = {"input_ids", "attention_mask"}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        known.add("token_type_ids")
    logits = model(**{name: tensors[name] for name in known}).logits
    return np.asarray(logits[0].numpy())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v3", "electra"])
def test_each_family_teaches_as_transformers_says(family: str, tmp_path: Path) -> None:
    """Its logits come in the order of the study's labels, and padding does not change them."""
    kind = AutoModelForSequenceClassification
    folder = families.save(family, tmp_path / family, kind, THEIRS)
    found, _ = asked(tmp_path / "said", (str(folder),), labelled())
    for row, (text, pair) in zip(found, TEXTS, strict=True):
        assert row == pytest.approx(said_by(folder, text, pair)[ORDER], abs=BF16)


def test_several_teachers_teach_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    """As several teachers of questions do."""
    kind = AutoModelForSequenceClassification
    names = tuple(str(families.save(f, tmp_path / f, kind, THEIRS)) for f in ("bert", "distilbert"))
    examples = labelled()
    single = [asked(tmp_path / "said", (name,), examples)[0] for name in names]
    both, found = asked(tmp_path / "said", names, examples)
    shares = [torch.from_numpy(logits).softmax(-1) for logits in single]
    assert torch.allclose(
        torch.from_numpy(both).softmax(-1), sum(shares, torch.zeros(3)) / 2, atol=1e-3
    )
    assert set(found) == set(names)
    assert all(0 <= each["accuracy"] <= 1 for each in found.values())


@pytest.mark.parametrize(
    ("theirs", "problem", "said"),
    [
        ({0: "bad", 1: "good"}, None, "labels of another task: it gives bad, good, and .*mixed"),
        ({0: "a", 1: "b", 2: "c"}, None, "labels of another task"),
        ({0: "bad", 1: "Bad", 2: "good"}, None, "labels of another task"),
        ({0: "LABEL_0"}, None, "gives no single label of several"),
        (dict(enumerate(LABELS)), "regression", "gives no single label"),
        (dict(enumerate(LABELS)), "multi_label_classification", "gives no single label"),
    ],
)
def test_labels_of_another_task_are_refused(
    theirs: dict[int, str], problem: str | None, said: str
) -> None:
    """Students would learn to give one label where the data has another."""
    with pytest.raises(TeacherError, match=said):
        classifiers.order_of(
            "t", SimpleNamespace(id2label=theirs, problem_type=problem), list(LABELS)
        )


def test_labels_without_names_are_taken_in_order() -> None:
    """Many checkpoints were saved without names."""
    unnamed = SimpleNamespace(id2label={i: f"LABEL_{i}" for i in range(3)})
    assert classifiers.order_of("t", unnamed, LABELS) == [0, 1, 2]


def test_a_teacher_that_knows_nothing_of_the_labels_is_refused(tmp_path: Path) -> None:
    """Labels in another order, or of another meaning, do not show in their names."""
    kind = AutoModelForSequenceClassification
    folder = families.save("bert", tmp_path / "bert", kind, THEIRS)
    examples = labelled(300)
    said = {row.text: said_by(folder, row.text, row.text_pair)[ORDER] for row in examples[:3]}
    wrong = [
        LabelledText(r.id, r.text, r.text_pair, int(said[r.text].argmin()), LABELS)
        for r in examples
    ]
    with pytest.raises(TeacherError, match=r"gives the label of 0\.0% of the training texts"):
        asked(tmp_path / "said", (str(folder),), wrong)


def test_an_encoder_without_such_a_head_is_refused(tiny_backbone: Path) -> None:
    """transformers would draw the head at random, and only warn."""
    with pytest.raises(TeacherError, match="not fine-tuned to classify, it has no"):
        classifiers.load(str(tiny_backbone), ("a", "b"))


def test_largest_model_and_students_learn_from_it(tiny_backbone: Path, tmp_path: Path) -> None:
    """The largest model is trained from the backbone; the teacher is not published."""
    kind = AutoModelForSequenceClassification
    teacher = families.save("roberta", tmp_path / "roberta", kind, {0: "good", 1: "bad"})
    rows = [f"text {i} is {i % 7} metres long\t{('good', 'bad')[i % 2]}" for i in range(160)]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    path = tmp_path / "study.toml"
    path.write_text(
        f'name = "s"\nbackbone = "{tiny_backbone}"\nteacher = "{teacher}"\nlargest_name = "l"\n'
        'max_tokens = 64\n[task]\nname = "mood"\ntext = "text"\n'
        '[[data]]\nsource = "train.tsv"\ncertifies = true\n[train]\nepochs = 1\n'
    )
    study = Study(configs.read(path), tmp_path, tmp_path / "run")
    assert study.config.finished is None
    assert study.config.roles.startswith(f"teacher: {teacher}; weights: the largest model's; ")
    assert study.largest.train()["final_loss"] is not None
    assert study.largest.inputs()["taught"] == study.largest.outside.inputs()
    model = study.largest.load()
    how = study.config.distill
    assert not study.distillation.imitates_states(model, how)
    (target,) = (
        study.distillation._targets(model, how, ())
        .of(  # type: ignore[union-attr]
            loop.batch_of(study.distillation.rows, [0])
        )
        .logits
    )
    assert isinstance(study.distillation._answers[0], MeanClasses)
    text = study.questions.train()[0].text
    assert target[0].tolist() == pytest.approx(said_by(teacher, text, None)[[1, 0]], abs=BF16)
