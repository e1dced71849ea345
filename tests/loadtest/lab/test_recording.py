"""What is recorded is what the offline evaluation finds, and it is asked once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from loadtest.faults import fleet
from loadtest.lab import recording
from loadtest.lab.recording import RecordingError
from loadtest.sample import questions
from optimizer.data import evaluate
from tests.fakes import ROOT
from tests.loadtest.lab_world import world

SHIPPED = ROOT / "model_repository"
N = 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one of the smallest variants: the largest takes seconds to load."""
    folder = tmp_path_factory.mktemp("recorded") / "model_repository"
    fleet.publish(SHIPPED, folder, fleet.smallest(SHIPPED, 2))
    return folder


def test_recorded_answers_are_those_of_the_offline_evaluation(
    repository: Path, tmp_path: Path
) -> None:
    """The lab judges floors by them, so they must be what is served."""
    found = recording.of_catalog(repository, None, N, tmp_path)
    examples = questions(None, N)
    for variant in store.read(repository).variants:
        model = store.model_path(repository, variant)
        tokenizer = repository / store.TOKENIZER
        readings = evaluate.read_all(model, tokenizer, examples, variant.precision)
        answers = tuple(evaluate.answers_of(readings, variant.decoding))
        said = found.said[variant.name]
        assert said.answers == answers
        scores = evaluate.score(examples, answers)
        assert sum(said.f1) / N == pytest.approx(scores.f1, abs=1e-4)
        assert all(ms > 0 for ms in said.cpu_ms)
    assert (
        recording.of_catalog(repository, None, N, tmp_path) == found
    )  # times, too: from its files


def test_a_damaged_file_is_named(repository: Path, tmp_path: Path) -> None:
    """What to do about it stands in the message."""
    recording.of_catalog(repository, None, 1, tmp_path)
    path = next(tmp_path.rglob("*.json.xz"))
    path.write_bytes(b"no")
    with pytest.raises(RecordingError, match="delete it"):
        recording.of_catalog(repository, None, 1, tmp_path)


def test_a_model_that_was_replaced_has_to_be_recorded_anew() -> None:
    """Yesterday's answers say nothing of today's weights."""
    there = world()
    changed = replace(there.catalog.variants[0], sha256="1" * 64)
    catalog = replace(there.catalog, variants=(changed, *there.catalog.variants[1:]))
    with pytest.raises(RecordingError, match=changed.name):
        replace(there, catalog=catalog)
