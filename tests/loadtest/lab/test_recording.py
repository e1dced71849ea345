"""What is recorded is what the offline evaluation finds, and it is asked once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from loadtest.lab import recording
from loadtest.lab.recording import RecordingError
from loadtest.sample import questions
from optimizer.data import evaluate
from tests.fakes import ROOT
from tests.loadtest.lab_world import world

REPOSITORY = ROOT / "model_repository"
N = 3


def test_recorded_answers_are_those_of_the_offline_evaluation(tmp_path: Path) -> None:
    """The lab judges floors by them, so they must be what is served."""
    found = recording.of_catalog(REPOSITORY, None, N, tmp_path)
    examples = questions(None, N)
    for variant in store.read(REPOSITORY).variants:
        model = store.model_path(REPOSITORY, variant)
        tokenizer = REPOSITORY / store.TOKENIZER
        readings = evaluate.read_all(model, tokenizer, examples, variant.precision)
        answers = tuple(evaluate.answers_of(readings, variant.decoding))
        said = found.said[variant.name]
        assert said.answers == answers
        scores = evaluate.score(examples, answers)
        assert sum(said.f1) / N == pytest.approx(scores.f1, abs=1e-4)
        assert all(ms > 0 for ms in said.cpu_ms)
    assert (
        recording.of_catalog(REPOSITORY, None, N, tmp_path) == found
    )  # times, too: from its files


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """What to do about it stands in the message."""
    recording.of_catalog(REPOSITORY, None, 1, tmp_path)
    path = next(tmp_path.rglob("*.json.xz"))
    path.write_bytes(b"no")
    with pytest.raises(RecordingError, match="delete it"):
        recording.of_catalog(REPOSITORY, None, 1, tmp_path)


def test_a_model_that_was_replaced_has_to_be_recorded_anew() -> None:
    """Yesterday's answers say nothing of today's weights."""
    there = world()
    changed = replace(there.catalog.variants[0], sha256="1" * 64)
    catalog = replace(there.catalog, variants=(changed, *there.catalog.variants[1:]))
    with pytest.raises(RecordingError, match=changed.name):
        replace(there, catalog=catalog)
