"""Question sets: read in every form, split for ever, turned into windows that hold the answer."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.data.splits import StudyQuestions
from optimizer.study.config import DataConfig, StudyConfig
from tests.fakes import TOKENIZER
from tests.optimizer.conftest import question_set


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.xz"])
def test_compressed_files_are_read_alike(tmp_path: Path, suffix: str) -> None:
    """Question sets come compressed."""
    raw = json.dumps(question_set(2)).encode()
    packed = {".json": raw, ".json.gz": gzip.compress(raw), ".json.xz": lzma.compress(raw)}
    path = tmp_path / f"set{suffix}"
    path.write_bytes(packed[suffix])
    assert [e.id for e in question_sets.load(str(path))] == [
        "0-0",
        "0-1",
        "0-2",
        "1-0",
        "1-1",
        "1-2",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", b"{", "not readable"),
        ("x.json", b'{"paragraphs": []}', "not in SQuAD's form"),
        ("x.json.xz", b"not xz", "not readable"),
        ("x.json.gz", b"not gzip", "not readable"),
        ("x.json", b'{"data": [1]}', "not in SQuAD's form"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """The message says which file, and what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        question_sets.load(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["a", None], "question 2 .* has no id"),
        (["a", ""], "question 2 .* has no id"),
        (["a", "b", "a"], "question 3 .* has the id 'a'"),
        ([7, "7"], "question 2 .* has the id '7'"),
    ],
)
def test_every_question_needs_an_id_of_its_own(
    tmp_path: Path, ids: list[str | int | None], said: str
) -> None:
    """Answers are written and compared by it: of two with the same id one would be lost."""
    qas = [
        {"question": f"Who {i}?", "is_impossible": True} | ({} if own is None else {"id": own})
        for i, own in enumerate(ids)
    ]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ada.", "qas": qas}]}]}))
    with pytest.raises(DataError, match=said) as caught:
        question_sets.load(str(path))
    assert str(path) in str(caught.value)


def test_a_training_target_cuts_no_character_of_a_reader() -> None:
    """Training, evaluation and serving cut texts alike: an accent of its own belongs to its letter."""
    context = "The cafe\u0301 opened"
    example = Example("1", "What opened?", context, ("cafe\u0301",), (4,), "t")
    encoder = SpanEncoder.from_file(TOKENIZER)
    (feature,) = question_sets.features([example], encoder, seed=1)
    windows = encoder.encode(example.as_question())
    ((first, last),) = feature.spans
    begin, end = windows.offsets[0, first, 0], windows.offsets[0, last, 1]
    assert context[begin:end] == "cafe\u0301"


def test_answers_that_stand_elsewhere_are_refused(tmp_path: Path) -> None:
    """Spans learnt from shifted offsets are wrong without a sound: bytes for code points, an edited text."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(_moved(question_set(2), [1])))
    with pytest.raises(DataError, match=r"of 1 of \d+ answerable .* mend the offsets"):
        question_sets.load(str(path))


def test_a_few_answers_that_stand_elsewhere_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One slip in a large set is no reason to train on nothing, and is reported."""
    path = tmp_path / "x.json"
    whole = question_set(200)
    path.write_text(json.dumps(whole))
    before = question_sets.load(str(path))
    path.write_text(json.dumps(_moved(whole, [1])))
    after = question_sets.load(str(path))
    assert len(before) - len(after) == 1
    assert "left out" in caplog.text


def test_a_study_without_answers_is_refused(tmp_path: Path) -> None:
    """There is no span to learn from."""
    silent = question_set(30)
    for qa in _questions(silent):
        qa["answers"] = []
    (tmp_path / "x.json").write_text(json.dumps(silent))
    config = StudyConfig(
        name="silent", largest_name="t", data=(DataConfig(source="x.json", certifies=True),)
    )
    with pytest.raises(DataError, match=r"none of .* has an answer"):
        StudyQuestions(config, tmp_path).train()


def _questions(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [qa for a in document["data"] for p in a["paragraphs"] for qa in p["qas"]]


def _moved(document: dict[str, Any], which: list[int]) -> dict[str, Any]:
    """Return a copy in which these answers are one code point off."""
    copied: dict[str, Any] = json.loads(json.dumps(document))
    answered = [qa for qa in _questions(copied) if qa["answers"]]
    for i in which:
        answered[i]["answers"][0]["answer_start"] += 1
    return copied


def test_a_missing_file_error_lists_the_known_names() -> None:
    """Who mistypes a name sees the right ones."""
    with pytest.raises(DataError, match="squad_v2"):
        question_sets.load("no-such-set")


def test_a_damaged_download_is_refused(tmp_path: Path) -> None:
    """What was downloaded is what the official checksum says, or it is not used."""
    (tmp_path / "train-v2.0.json").write_text("{}")
    with pytest.raises(DataError, match="sha256"):
        question_sets.load("squad_v2", tmp_path)


def example(context: str, title: str = "t") -> Example:
    return Example("1", "q", context, (), (), title)


def test_a_split_depends_on_the_article_alone() -> None:
    """Two questions on one article never end up on both sides of a wall."""
    splits = {
        question_sets.split_of(example(c, "Normans"), by_article=True, certifies=True)
        for c in "abcdef"
    }
    assert len(splits) == 1


def test_contexts_of_mixed_articles_are_split_by_context() -> None:
    """A title that stands for many articles says nothing of where a context is from."""
    found = [
        question_sets.split_of(
            example(f"c{i}", question_sets.MIXED_ARTICLES), by_article=True, certifies=True
        )
        for i in range(400)
    ]
    shares = {split: found.count(split) / len(found) for split in Split}
    assert shares[Split.SEARCH] == pytest.approx(0.10, abs=0.05)
    assert shares[Split.CALIBRATE] == pytest.approx(0.15, abs=0.05)


def test_more_of_the_whole_articles_certify() -> None:
    """A floor counts articles: nine of them, as in split version 1, are too few to be a sample."""
    found = [
        question_sets.split_of(example("c", f"Article {i}"), by_article=True, certifies=True)
        for i in range(400)
    ]
    shares = {split: found.count(split) / len(found) for split in Split}
    assert shares[Split.SEARCH] == pytest.approx(0.10, abs=0.05)
    assert shares[Split.CALIBRATE] == pytest.approx(0.40, abs=0.05)


@pytest.mark.parametrize(
    ("title", "context", "split"),
    [
        ("A", "", Split.CALIBRATE),
        ("Normans", "", Split.CALIBRATE),
        (question_sets.MIXED_ARTICLES, "A", Split.TRAIN),
        (question_sets.MIXED_ARTICLES, "1", Split.CALIBRATE),
    ],
)
def test_a_split_never_changes_within_a_version(title: str, context: str, split: Split) -> None:
    """What trained a model once must never certify it."""
    assert question_sets.SPLIT_VERSION == 2
    assert question_sets.split_of(example(context, title), by_article=True, certifies=True) is split


def test_a_source_that_does_not_certify_has_no_calibrate_split() -> None:
    """Its contexts are worth more as training data."""
    found = {
        question_sets.split_of(example(f"c{i}"), by_article=False, certifies=False)
        for i in range(99)
    }
    assert found == {Split.TRAIN, Split.SEARCH}


@pytest.mark.parametrize("max_tokens", [64, 320])
def test_a_training_window_holds_its_answer(max_tokens: int) -> None:
    """A label must point at the gold answer, in whichever window it was put."""
    filler = "The garden was quiet that day. " * 40
    context = filler + "Ida Møller bought the red boat. " + filler
    start = context.index("Ida Møller")
    asked = Example("1", "Who bought the boat?", context, ("Ida Møller",), (start,), "t")
    encoder = SpanEncoder.from_file(TOKENIZER).resized(max_tokens)
    (feature,) = question_sets.features([asked], encoder, seed=1)
    ((first, last),) = feature.spans
    words = encoder.decode(feature.input_ids[first : last + 1])
    assert words == "ida møller"


def test_an_unanswerable_question_points_nowhere() -> None:
    """The label of no answer is the first token."""
    asked = Example("1", "Who?", "Nobody came.", (), (), "t")
    (feature,) = question_sets.features([asked], SpanEncoder.from_file(TOKENIZER), seed=1)
    assert feature.spans == ((0, 0),)
