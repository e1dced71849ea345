"""A whole study of a classification on a tiny BERT, published beside question answering, and asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.embedded import EmbeddedBackend
from gateway.catalog import store
from gateway.catalog.schema import QA, GoldenLogits
from gateway.catalog.store import Catalog
from gateway.domain import Question
from gateway.errors import RepositoryError
from gateway.lifecycle import preparation
from gateway.lifecycle.validation import validate
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings
from optimizer.cli import main
from optimizer.publish import publication, repository, tasks
from optimizer.publish.repository import Publication
from optimizer.students.study import Study
from optimizer.study import config as configs
from tests import tiny
from tests.asgi import post
from tests.fakes import CONTEXT, QUESTION, TOKENIZER, encoder, make_catalog, make_variant, patient

GOOD, BAD = ("lovely", "great", "charming"), ("awful", "dull", "boring")
ANIMALS = ("cat", "dog", "horse", "bird", "fish")
STUDY = """
name = "mood"
backbone = "{backbone}"
largest_name = "mood-2"
max_tokens = 64
report = ["dev.tsv"]

[task]
name = "mood"
text = "sentence"
group = "story"

[[data]]
source = "train.tsv"
certifies = true

[train]
epochs = 4
batch_size = 16
learning_rate = 2e-3

[distill]
label_weight = 0.5

[[students]]
name = "mood-1"
layers = [0]
ffn = 48
embedding_bits = 4
train = {{ epochs = 2, batch_size = 16, learning_rate = 1e-3 }}

[elastic.space]
layers = [[0, 1], [1]]
heads = [2]
ffn = [96]
hidden = [0]

[elastic.train]
epochs = 1
batch_size = 16
learning_rate = 1e-3

[search]
sampler = "random"
trials = 2
tokens = 64
questions = [10, 20]

[finish]
members = 1
train = {{ epochs = 1, batch_size = 16, learning_rate = 5e-4 }}

[publish]
repository = "{repository}"
allow_dominated = true
profile_runs = 5
"""


def write_rows(path: Path, n: int) -> None:
    """Write texts of which one word says what they are; quotation marks are part of them."""
    lines = ["sentence\tlabel\tstory"]
    for i in range(n):
        words = (GOOD, BAD)[i % 2]
        word, animal = words[i // 2 % 3], ANIMALS[i % 5]
        text = f'The {animal} of story {i} was "{word} to everyone'
        lines.append(f"{text}\t{('good', 'bad')[i % 2]}\tstory {i // 4}")
    path.write_text("\n".join(lines) + "\n")


def publish_questions(folder: Path) -> None:
    """Publish a tiny model that answers questions."""
    model = folder.parent / "made"
    sha256 = tiny.write_model(model, "small")
    windows = encoder().encode(Question(QUESTION, CONTEXT))
    logits = tiny.expected_logits(windows.input_ids, windows.attention_mask, windows.token_type_ids)
    start, end = (tuple(part[0, : windows.n_tokens].tolist()) for part in logits)
    variant = make_variant("small", 5, sha256=sha256)
    variant = replace(variant, golden=(GoldenLogits(start, end),))
    file = model / "small" / "1" / "model.onnx"
    repository.publish(
        folder, [Publication(variant, file, "A card.")], make_catalog([variant], [0.5]), TOKENIZER
    )


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the study, its data, its run, and its repository."""
    made = tmp_path_factory.mktemp("classification")
    write_rows(made / "train.tsv", 480)
    write_rows(made / "dev.tsv", 40)
    published = made / "repository"
    publish_questions(published)
    (made / "mood.toml").write_text(STUDY.format(backbone=tiny_backbone, repository=published))
    assert main.main(["run", *arguments(made)]) == 0
    return made


def arguments(folder: Path, study: str = "mood.toml") -> list[str]:
    named = {"--study": folder / study, "--data-dir": folder, "--run-dir": folder / "run"}
    return [str(part) for pair in named.items() for part in pair]


@pytest.fixture
def catalog(folder: Path) -> Catalog:
    return store.read(folder / "repository")


def study_in(folder: Path) -> Study:
    return Study(configs.read(folder / "mood.toml"), folder, folder / "run")


def test_a_classification_is_published_beside_question_answering(
    folder: Path, catalog: Catalog
) -> None:
    """Whoever asked questions goes on doing so; the labels come with their own variants and certificates."""
    assert catalog.task_names == (QA, "mood")
    assert [v.name for v in catalog.only(QA).variants] == ["small"]
    own = catalog.only("mood")
    names = [v.name for v in own.variants]
    assert names[:2] == ["mood-2", "mood-1"]
    assert names[2:] in (["mood-2-b"], ["mood-1-b"])  # the member of the search's front
    assert own.tasks[0].labels == ("bad", "good")
    assert not own.tasks[0].pair
    assert validate(folder / "repository", Settings()).problems == ()


def test_a_classifier_learns_and_is_certified_on_accuracy(catalog: Catalog) -> None:
    """Better than the constant answer, by more than chance; groups are the unit."""
    for variant in catalog.only("mood").variants:
        certificate = catalog.direct(variant.name).certificate
        assert certificate.constant_f1 is not None
        assert certificate.constant_f1 == pytest.approx(0.5, abs=0.05)
        assert certificate.constant_f1 < certificate.floor <= certificate.f1
        assert certificate.n_clusters < certificate.n_questions
        assert "a group where its name is known" in certificate.method
        assert {s.name for s in certificate.strata} >= {"labelled good", "labelled bad"}
        report = variant.quality[-1]
        assert (report.data, report.n) == ("dev", 40)
        assert report.exact == report.f1 > 0.8
        assert {m.name for m in report.metrics} == {"f1", "macro_f1", "matthews"}


def test_a_card_speaks_of_labels(folder: Path) -> None:
    """Nobody takes it for a model that answers questions."""
    card = (folder / "repository" / "mood-2" / "README.md").read_text()
    assert "Text classification" in card
    assert "`bad`, `good`" in card
    assert "unanswerable" not in card
    config = (folder / "repository" / "mood-2" / "config.pbtxt").read_text()
    assert 'name: "logits" data_type: TYPE_FP32 dims: [ 2 ]' in config


async def test_the_gateway_classifies_and_answers_from_one_repository(
    folder: Path, catalog: Catalog
) -> None:
    """What the optimizer wrote is served, both tasks by the same engine."""
    published = folder / "repository"
    backend = EmbeddedBackend(published)
    service = AnswerService(backend, patient(model_repository=published), Metrics())
    try:
        service.serving = await preparation.prepare(published, catalog, backend)
        headers = {"SLO-Latency-Ms": "60000"}
        texts = {"text": 'The dog of story 7 was "lovely to everyone'}
        found = await post(service, "/v1/classify", json=texts, headers=headers)
        assert found.status_code == 200, found.text
        assert found.json()["label"] == "good"
        assert found.json()["score"] > 0.5
        question = {"question": QUESTION, "context": CONTEXT}
        answered = await post(service, "/v1/answer", json=question, headers=headers)
        assert answered.status_code == 200, answered.text
    finally:
        await backend.close()


def test_published_classifiers_are_evaluated_by_the_rules_of_glue(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As served; the last row is what the most frequent label alone would score."""
    given = ["--task", "mood", "--text", "sentence", "--data", str(folder / "dev.tsv")]
    repo = ["--model-repository", str(folder / "repository")]
    assert main.main(["evaluate", *given, *repo]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["always 'good'"]["accuracy"] == 0.5
    assert found["always 'good'"]["matthews"] == 0.0
    assert found["mood-2"]["accuracy"] > 0.8


def test_a_published_task_is_certified_again_without_the_others(
    folder: Path, catalog: Catalog, tmp_path: Path
) -> None:
    """New floors of one task touch no other, and no model file."""
    copied = tmp_path / "repository"
    shutil.copytree(folder / "repository", copied)
    again = ["certify", *arguments(folder), "--model-repository", str(copied), "--write"]
    assert main.main(again) == 0
    after = store.read(copied)
    assert after.task_names == catalog.task_names
    assert after.only(QA).plans == catalog.only(QA).plans
    assert {v.name: v.sha256 for v in after.variants} == {
        v.name: v.sha256 for v in catalog.variants
    }


def test_own_texts_make_floors_of_their_task(
    folder: Path, catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command without a study; no other task and no model changes, and the request it shows names the task."""
    copied, mine = tmp_path / "repository", tmp_path / "mine.tsv"
    shutil.copytree(folder / "repository", copied)
    write_rows(mine, 160)
    mine.write_text(mine.read_text().replace("of story", "of tale"))
    command = ["certify", "--data", str(mine), "--model-repository", str(copied)]
    command += ["--run-dir", str(tmp_path / "run"), "--text", "sentence", "--group", "story"]
    assert main.main([*command, "--task", "mood"]) == 0
    said = capsys.readouterr().out
    assert "mine.tsv: 160 texts count, from 40 groups (or texts," in said
    assert "curl -i http://127.0.0.1:8080/v1/classify" in said
    assert '"task": "mood"' in said
    after = store.read(copied)
    assert after.only(QA).plans == catalog.only(QA).plans
    for plan in after.only("mood").plans:
        certificate = plan.certificate
        assert (certificate.data, certificate.n_clusters) == ("mine.tsv", 40)
        assert certificate.floor <= certificate.f1
        assert {s.name for s in certificate.strata} >= {"labelled good", "labelled bad"}
    before = {v.name: (v.sha256, v.decoding) for v in catalog.variants}
    assert {v.name: (v.sha256, v.decoding) for v in after.variants} == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--task", "mood", "--text", "sentence"],
            "unknown label 'fine'; the task mood has bad, good",
        ),
        (["--task", "mood", "--text", "sentence", "--text-pair", "story"], "classifies one text"),
        (["--task", "taste", "--text", "sentence"], "no variant of the task taste"),
    ],
)
def test_own_texts_of_another_task_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    """Before any model is asked."""
    mine = tmp_path / "mine.tsv"
    mine.write_text("sentence\tlabel\tstory\nThe cat was fine\tfine\t1\n")
    command = ["certify", "--data", str(mine), "--model-repository", str(folder / "repository")]
    assert main.main([*command, *given]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_candidate_of_a_classification_is_refused_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gateways compare answers to questions; hours later the message would come too late."""
    for command in ("run", "publish"):
        assert main.main([command, *arguments(folder), "--candidate", "0.1"]) == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "the study classifies ([task] mood)" in said
        assert "publish it without --candidate" in said


def test_questions_are_not_trained_over_a_classification(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder keeps its task: another study's first stage would replace hours of work."""
    without = (folder / "mood.toml").read_text().replace('group = "story"', "")
    without = without.replace('text = "sentence"', 'text = "story"')
    (folder / "other.toml").write_text(without)
    assert main.main(["teacher", *arguments(folder, "other.toml")]) == 1
    said = capsys.readouterr().err
    assert "holds a study of label of sentence, not of label of story" in said
    assert "--run-dir" in said


def test_other_labels_under_a_published_name_are_refused_before_training(folder: Path) -> None:
    """Callers of a task would get labels that they do not know."""
    study = study_in(folder)
    task = study.config.task
    assert task is not None
    three = task.model_copy(update={"labels": ("bad", "good", "mixed")})
    other = replace(study, config=study.config.model_copy(update={"task": three}))
    with pytest.raises(RepositoryError, match=r"has the labels bad, good .* give|Give"):
        publication.check_target(other, folder / "repository")


def test_a_name_of_another_task_is_refused(catalog: Catalog) -> None:
    """A variant's name is a folder, and a model of Triton."""
    with pytest.raises(RepositoryError, match="small: the repository has a variant of this name"):
        tasks.check_name(catalog, "mood", ["small"])
