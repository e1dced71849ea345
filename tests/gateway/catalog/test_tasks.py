"""A catalog with classifications: what is read, what is refused, and what older gateways still read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.catalog import store
from gateway.catalog.candidate import same_models
from gateway.catalog.schema import QA, Metric
from gateway.errors import RepositoryError
from tests.fakes import ROOT, TOPIC, small_and_large, with_entails, with_topic

MIXED = with_entails(with_topic(small_and_large()))


def changed(edit: Callable[[Any], Any]) -> bytes:
    document = json.loads(store.dump(MIXED))
    edit(document)
    return json.dumps(document).encode()


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    """Return an edit of the value at a path."""

    def edit(document: Any) -> None:
        *parents, last = path
        for part in parents:
            document = document[part]
        document[last] = value

    return edit


def test_a_mixed_catalog_is_read_as_it_was_written() -> None:
    """Both halves of the project see the same values of every task."""
    quality = replace(MIXED.variants[2].quality[0], metrics=(Metric("matthews", -0.1),))
    variants = (*MIXED.variants[:2], replace(MIXED.variants[2], quality=(quality,)))
    catalog = replace(MIXED, variants=(*variants, *MIXED.variants[3:]))
    assert store.parse(store.dump(catalog), Path("catalog.json")) == catalog


def test_a_catalog_of_questions_alone_stays_as_it_was() -> None:
    """Older gateways refuse every key that they do not know, and go on reading such a catalog."""
    raw = (ROOT / "model_repository" / "catalog.json").read_bytes()
    assert store.dump(store.parse(raw, Path("catalog.json"))) == raw
    assert json.loads(store.dump(small_and_large()))["schema_version"] == 1


def test_a_classification_is_stored_without_what_it_does_not_have() -> None:
    """A reader of the file finds the temperature, and no threshold that means nothing."""
    document = json.loads(store.dump(MIXED))
    assert document["schema_version"] == 2
    assert document["variants"][2]["decoding"] == {"temperature": 2.0}
    assert document["variants"][2]["task"] == "topic"
    assert document["variants"][2]["golden"] == [{"logits": [6.0, 0.0, 0.0]}]
    assert "task" not in document["variants"][0]


def test_a_newer_version_says_to_upgrade() -> None:
    """So an older gateway refuses a mixed repository, too, and goes on with what it serves."""
    with pytest.raises(RepositoryError, match="newer than this gateway; upgrade bertier"):
        store.parse(changed(put("schema_version", value=3)), Path("catalog.json"))


def test_a_part_is_a_catalog_of_its_own() -> None:
    """Plans of one task are compared with each other only, so each part must stand alone."""
    for task in MIXED.task_names:
        part = MIXED.only(task)
        assert {v.task for v in part.variants} == {task}
        assert store.parse(store.dump(part), Path("catalog.json")) == part
    assert MIXED.task_names == (QA, "topic", "entails")
    assert MIXED.only(QA) == small_and_large()
    assert MIXED.only("topic").best_floor == 0.9
    alone = MIXED.only("topic")
    assert alone.only("topic") is alone


def test_catalogs_route_alike_whatever_study_they_come_from() -> None:
    """A classification that was published again, unchanged, is no other one."""
    task = replace(TOPIC, origin=replace(TOPIC.origin, study="another"))
    again = replace(MIXED, tasks=(task, *MIXED.tasks[1:]))
    assert same_models(again, MIXED)
    assert not same_models(MIXED.only(QA), MIXED)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            put("schema_version", value=1),
            "schema_version: 1 with 2 classifications; it must be 2",
        ),
        (put("tasks", 0, "name", value="qa"), "tasks.0.name: 'qa' is question answering"),
        (put("tasks", 0, "name", value="a b"), "tasks.0.name: 'a b' is not a name"),
        (put("tasks", 0, "name", value="entails"), "tasks.1.name: 'entails' occurs twice"),
        (put("tasks", 0, "labels", value=["sport"]), "tasks.0.labels: 1; a classification has"),
        (put("tasks", 0, "labels", value=["a", "a", "b"]), "tasks.0.labels: a label occurs twice"),
        (put("tasks", 0, "labels", value=["a", " ", "b"]), "labels: a label without a visible"),
        (put("tasks", 0, "labels", value=["a", "b"]), "golden.0: 3 logits for 2 labels"),
        (put("tasks", 0, "golden_inputs", value=[]), "tasks.0.golden_inputs: empty"),
        (
            put("tasks", 0, "golden_inputs", 0, "text_pair", value="More."),
            "tasks.0.golden_inputs.0: does not fit pair: false",
        ),
        (put("tasks", 0, "golden_inputs", 0, "text", value=" "), "without a visible character"),
        (put("tasks", 0, "origin", "data_sha256", value={"x": "y"}), "tasks.0.origin.data_sha256"),
        (put("variants", 2, "task", value="other"), "variants.2.task: 'other' is not among"),
        (put("variants", 2, "decoding", value={}), "variants.2.decoding: no temperature"),
        (
            put("variants", 2, "decoding", "temperature", value=0.0),
            "variants.2.decoding.temperature: 0 is not more than 0",
        ),
        (
            put("variants", 0, "decoding", "temperature", value=1.0),
            "variants.0.decoding.temperature: is of a classification",
        ),
        (
            put("variants", 2, "golden", value=[{"start": [0.0], "end": [0.0]}]),
            "golden.0: start and end logits; a classification has `logits`, 3 of them",
        ),
        (put("variants", 0, "golden", value=[{"logits": [0.0]}]), "1 logits for 0 labels"),
        (
            put("variants", 2, "quality", 0, "metrics", value=[{"name": "m", "value": 2.0}]),
            "quality.0.metrics.0.value: 2 is not from -1 to 1",
        ),
        (
            put("plans", 2, "variants", value=["topic-small", "small"]),
            "of several tasks: topic, qa",
        ),
        (
            put(
                "plans", 2, "certificate", "paired", value={"to": "large", "loss": 0, "f1_loss": 0}
            ),
            "paired.to: names an unknown variant 'large' (of the plan's task)",
        ),
    ],
)
def test_a_classification_that_cannot_be_is_refused(
    edit: Callable[[Any], Any], message: str
) -> None:
    """What does not fit together would answer with labels of something else."""
    with pytest.raises(RepositoryError) as caught:
        store.parse(changed(edit), Path("catalog.json"))
    assert message in str(caught.value)


def test_a_task_without_a_variant_is_refused() -> None:
    """It would be listed as served, and nothing could answer."""
    catalog = replace(MIXED.only("entails"), tasks=MIXED.tasks)
    with pytest.raises(RepositoryError, match=r"tasks\.0: no variant is of the task 'topic'"):
        store.parse(store.dump(catalog), Path("catalog.json"))


def test_the_questions_of_a_repository_are_read_alone(tmp_path: Path) -> None:
    """A load of questions asks no classifier, and says so where nothing answers."""
    store.write(tmp_path, MIXED)
    assert store.read_questions(tmp_path) == MIXED.only(QA)
    store.write(tmp_path, MIXED.only("topic"))
    with pytest.raises(RepositoryError, match="no variant answers questions, only topic"):
        store.read_questions(tmp_path)
