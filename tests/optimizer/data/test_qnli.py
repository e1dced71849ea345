"""Pairs in the form of QNLI: the sentence with the answer, and another one of its context."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.cli import main
from optimizer.data import labelled_texts, qnli
from optimizer.data.question_sets import DataError, Example
from optimizer.study.config import TaskConfig

CONTEXT = (
    "Ada built the bridge in 1931. It rains.\nThe bridge has\tone arch, said J. Doe. Nobody paid."
)


def example(question: str, answer: str, title: str = "Bridges") -> Example:
    answers = (answer,) if answer else ()
    starts = (CONTEXT.index(answer),) if answer else ()
    return Example(question, question, CONTEXT, answers, starts, title)


def test_a_question_gives_its_sentence_and_the_likest_other() -> None:
    """A sentence that shares no word could be classified without reading it."""
    made = qnli.made_of([example("Who built the bridge?", "Ada"), example("Who left?", "")])
    (holding, other) = made.pairs
    assert (holding.sentence, holding.label) == ("Ada built the bridge in 1931.", "entailment")
    assert other.sentence == "The bridge has\tone arch, said J. Doe."
    assert (other.label, other.group) == ("not_entailment", "Bridges")
    assert (made.n_questions, made.unanswerable, made.without_sentence) == (1, 1, 0)


def test_sentences_that_hold_the_answer_too_are_no_other() -> None:
    """They may well answer the question; an answer across sentences is in none."""
    again = Example("q", "Who?", "Ada came. Ada left. Bo sat.", ("Ada",), (0,), "")
    (_, other) = qnli.made_of([again]).pairs
    assert other.sentence == "Bo sat."
    assert other.group.startswith("context-")
    across = Example("q", "Who?", "Ada came. Bo sat.", ("came. Bo",), (4,), "")
    with pytest.raises(DataError, match="none of 1 questions gives a pair"):
        qnli.made_of([across])


def test_the_command_says_labels_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file is read as a study reads it, grouped by article."""
    qas = [
        {
            "id": "1",
            "question": "Who built the bridge?",
            "answers": [{"text": "Ada", "answer_start": 0}],
        }
    ]
    article = {"title": "Bridges", "paragraphs": [{"context": CONTEXT, "qas": qas}]}
    source, out = tmp_path / "set.json", tmp_path / "qnli.tsv"
    source.write_text(json.dumps({"data": [article]}))
    assert main.main(["qnli", "--data", str(source), "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"rows": 2, "labels": {"entailment": 1, "not_entailment": 1}, "groups": 1}
    task = TaskConfig(name="qnli", text="question", text_pair="sentence", group="group")
    found = labelled_texts.load(out, task)
    assert [e.title for e in found] == ["Bridges", "Bridges"]
    assert found[1].text_pair == "The bridge has one arch, said J. Doe."
