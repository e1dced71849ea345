"""Floors on a user's own questions: one command, no study, and nothing said that is not so."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.catalog import store
from gateway.domain import Span
from gateway.qa import codec
from gateway.qa.codec import Reading
from optimizer.certify import own_questions
from optimizer.certify.bounds import betting_floor
from optimizer.cli import main
from optimizer.data import clusters
from optimizer.data.question_sets import DataError, Example, sha256_of
from tests import asgi
from tests.fakes import ROOT, make_variant, serving_set
from tests.optimizer.conftest import question_set

SHIPPED = ROOT / "model_repository"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the shipped repository with its two smallest variants, and no cascade."""
    folder = tmp_path_factory.mktemp("own") / "model_repository"
    catalog = store.read(SHIPPED)
    kept = sorted(catalog.variants, key=lambda v: v.profile.cell(128).p50_ms)[:2]
    folder.mkdir()
    for name in (store.TOKENIZER, *(v.name for v in kept)):
        copy = shutil.copytree if (SHIPPED / name).is_dir() else shutil.copyfile
        copy(SHIPPED / name, folder / name)
    plans = tuple(
        replace(p, agreement=None, certificate=replace(p.certificate, paired=None))
        for p in catalog.plans
        if p.variants in [(v.name,) for v in kept]
    )
    store.write(folder, replace(catalog, variants=tuple(kept), plans=plans))
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(question_set(30)))
    return path


def test_one_command_certifies_and_writes(
    repository: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nearly all questions make floors; the card says who trained what; the request can be met; it is undone."""
    published = tmp_path / "model_repository"
    shutil.copytree(repository, published)
    name = store.read(published).variants[0].name
    card = published / name / "README.md"
    before, trained = card.read_text(), store.read(published).origin
    command = ["certify", "--data", str(mine), "--model-repository", str(published)]
    assert main.main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    catalog = store.read(published)
    assert store.check_files(published, catalog) == []
    for plan in catalog.plans:
        certificate = plan.certificate
        assert (certificate.n_clusters, certificate.n_questions) == (30, 90)
        assert (certificate.data, certificate.data_sha256) == ("mine.json", sha256_of(mine))
        assert certificate.constant_f1 == pytest.approx(1 / 3)
        assert certificate.spent == pytest.approx(0.05)
    assert catalog.origin == trained
    assert "mine.json" not in card.read_text().split("**Trained on**")[1]
    assert "With a mean F1 of 0.65, as is typical, the certified floor depends" in said
    assert (
        "For questions like these, the certified floor depends on the number of articles: 30 give"
        in said
    )
    words = shlex.split(said[said.index("curl -i") : said.rindex("\n{")])
    asked = dict(w.split(": ") for w in words if w.startswith("SLO-"))
    assert float(asked["SLO-Min-F1"]) <= catalog.best_floor
    body = json.loads(words[words.index("-d") + 1])
    assert body["context"].startswith("Story")
    service = asgi.make_service()
    service.serving = serving_set(catalog)
    reply = asyncio.run(asgi.post(service, headers=asked, json=body))
    assert (reply.status_code, reply.headers["SLO-Met"]) == (200, "true")
    assert main.main(["rollback", "--model-repository", str(published)]) == 0
    assert card.read_text() == before
    assert store.read(published).looks == catalog.looks


def test_data_that_trained_the_models_is_refused(repository: Path, mine: Path) -> None:
    """Answers to what was learnt by heart say nothing of new questions."""
    catalog = store.read(repository)
    origin = replace(
        catalog.origin, data_sha256={"train.json": sha256_of(mine)}, trained_on=("train.json",)
    )
    with pytest.raises(DataError, match=r"mine\.json: .*trained on it \(as train\.json\)"):
        own_questions.read(mine, replace(catalog, origin=origin))


def test_questions_on_a_handful_of_texts_are_refused(repository: Path, tmp_path: Path) -> None:
    """A floor from three texts would be nought."""
    path = tmp_path / "few.json"
    path.write_text(json.dumps(question_set(3)))
    with pytest.raises(DataError, match="needs at least 10"):
        own_questions.read(path, store.read(repository))


def population(n_clusters: int, rng: np.random.Generator) -> tuple[list[Example], list[Reading]]:
    """Return four questions a context, half of them unanswerable; the difference tells kinds apart badly."""
    examples, readings = [], []
    for c in range(n_clusters):
        ease = rng.normal()
        for q in range(4):
            answerable = q < 2
            right = answerable and rng.random() < 1 / (1 + np.exp(-ease - 1))
            difference = float(rng.normal(-1.0 if answerable else 1.0, 1.5))
            answers = ("right",) if answerable else ()
            examples.append(Example(f"{c}-{q}", "q", f"text {c}", answers, (0,) * answerable, ""))
            text = "right" if right else "wrong"
            readings.append(Reading((Span(text, 0, 5, 0.9, -difference),), difference))
    return examples, readings


def test_floors_under_a_cross_fitted_threshold_hold() -> None:
    """The threshold that is served is fitted on all questions, floors are made under ten others: it may not matter."""
    rng, variant, delta = np.random.default_rng(7), make_variant("small", 5), 0.1
    truth = population(5000, rng)
    fails, runs = 0, 60
    for _ in range(runs):
        examples, readings = population(40, rng)
        answers = own_questions.cross_fitted(variant, examples, readings)
        f1 = [float(a.text == "".join(e.answers)) for a, e in zip(answers, examples, strict=True)]
        floor = betting_floor(clusters.means(examples, f1), delta)
        served = own_questions.fitted(variant, examples, readings).decoding
        fails += floor > _mean_f1(truth, served.null_threshold)
    assert fails <= delta * runs


def test_a_single_unanswerable_question_moves_no_threshold() -> None:
    """Reports from the field may hold one; fitted to it, a model would give up all other answers."""
    variant = make_variant("small", 5)
    examples, readings = population(100, np.random.default_rng(3))
    has = [e.answerable for e in examples]
    rows = [i for i, answerable in enumerate(has) if answerable] + [has.index(False)]
    examples, readings = [examples[i] for i in rows], [readings[i] for i in rows]
    assert own_questions.fitted(variant, examples, readings) == variant
    answers = own_questions.cross_fitted(variant, examples, readings)
    assert answers == [codec.answer_of(r, variant.decoding) for r in readings]


def _mean_f1(truth: tuple[list[Example], list[Reading]], threshold: float) -> float:
    said = ["" if r.difference > threshold else r.spans[0].text for r in truth[1]]
    return float(np.mean([a == "".join(e.answers) for a, e in zip(said, truth[0], strict=True)]))
