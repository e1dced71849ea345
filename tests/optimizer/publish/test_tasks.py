"""A study replaces its own task's part of a catalog, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.catalog import store
from gateway.catalog.schema import QA
from gateway.errors import RepositoryError
from optimizer.publish import checks, tasks
from tests.fakes import (
    TOPIC,
    make_catalog,
    make_classifier,
    small_and_large,
    with_entails,
    with_task,
    with_topic,
)

EVERYTHING = with_entails(with_topic(small_and_large()))


def test_a_task_is_replaced_beside_the_others() -> None:
    """Its former variants are removed; other tasks stay as they were."""
    alone = replace(small_and_large(), variants=(), plans=(), golden_inputs=())
    part = with_task(alone, TOPIC, [make_classifier("topic-tiny", 1, TOPIC)], [0.7])
    found = tasks.beside(part, EVERYTHING)
    assert [v.name for v in found.only("topic").variants] == ["topic-tiny"]
    for other in (QA, "entails"):
        assert found.only(other) == EVERYTHING.only(other)
    assert found.schema_version == store.WITH_TASKS
    assert found.golden_inputs == EVERYTHING.golden_inputs


def test_parts_put_together_again_are_the_whole() -> None:
    """Nothing is lost on the way out and back, whichever task is taken."""
    for task in EVERYTHING.task_names:
        again = tasks.beside(tasks.part_of(EVERYTHING, task), EVERYTHING)
        assert {v.name for v in again.variants} == {v.name for v in EVERYTHING.variants}
        assert set(again.task_names) == set(EVERYTHING.task_names)
        assert again.origin == EVERYTHING.origin


def test_questions_come_into_a_repository_of_labels_alone() -> None:
    """The catalog's own origin and golden inputs are those of questions then."""
    labels = EVERYTHING.only("topic")
    questions = make_catalog([*small_and_large().variants], [0.5, 0.7])
    found = tasks.beside(questions, labels)
    assert found.task_names == (QA, "topic")
    assert (found.origin, found.golden_inputs) == (questions.origin, questions.golden_inputs)


def test_questions_alone_stay_a_catalog_of_version_1() -> None:
    """An older gateway goes on reading it."""
    again = tasks.beside(small_and_large(), small_and_large())
    assert again == small_and_large()


def test_a_task_that_is_not_there_is_named_with_those_that_are() -> None:
    """The command was given another study, or another repository."""
    with pytest.raises(RepositoryError, match="the task entails, only of qa, topic"):
        tasks.part_of(with_topic(small_and_large()), "entails")


def test_variants_dominate_those_of_their_task_only() -> None:
    """A fast classifier is no reason to drop a model that answers questions."""
    assert checks.dominated(with_topic(small_and_large())) == {}
