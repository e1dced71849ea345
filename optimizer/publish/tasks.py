"""One task's part of a repository's catalog, and the whole with that part replaced. Pure.

A repository may answer questions and classify; a study publishes, certifies and replaces its own task alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from gateway.catalog import store
from gateway.catalog.schema import QA
from gateway.catalog.store import Catalog, Task
from gateway.errors import RepositoryError
from optimizer.study.config import StudyConfig


def name_of(config: StudyConfig) -> str:
    """Return the name of a study's task in the catalog."""
    return QA if config.task is None else config.task.name


def part_of(catalog: Catalog, task: str) -> Catalog:
    """Return the variants and plans of a task as a catalog. Raises: RepositoryError when there are none."""
    if task not in catalog.task_names:
        there = ", ".join(catalog.task_names)
        wanted = "question answering" if task == QA else f"the task {task}"
        raise RepositoryError(
            f"the repository has no variant of {wanted}, only of {there}; publish one, or name another study or task"
        )
    return catalog.only(task)


def beside(part: Catalog, present: Catalog | None) -> Catalog:
    """Return the present catalog with the variants and plans of one task replaced by those of `part`."""
    task = part.variants[0].task
    names = {v.name for v in present.variants if v.task != task} if present else set()
    if present is None or not names:
        return part
    tasks = tuple(t for t in present.tasks if t.name != task) + part.tasks
    of_questions = part if task == QA else present
    has_questions = task == QA or QA in present.task_names
    return replace(
        part,
        schema_version=store.version_of(tasks),
        origin=of_questions.origin if has_questions else tasks[0].origin,
        variants=(*(v for v in present.variants if v.name in names), *part.variants),
        plans=(*(p for p in present.plans if names.issuperset(p.variants)), *part.plans),
        golden_inputs=of_questions.golden_inputs,
        tasks=tasks,
    )


def check_name(present: Catalog | None, task: str, variants: Collection[str]) -> None:
    """Raises: RepositoryError for a variant's name that another task has: it is a folder and a model's name."""
    for variant in present.variants if present else ():
        if variant.task != task and variant.name in variants:
            raise RepositoryError(
                f"{variant.name}: the repository has a variant of this name for {variant.task}; give the study's"
                " another (largest_name, name of [[students]]), or publish to a folder of its own"
            )


def check_labels(present: Catalog | None, name: str, labels: Sequence[str], *, pair: bool) -> None:
    """Raises: RepositoryError where the repository has a task of this name with other labels or texts."""
    there = task_in(present, name)
    if there is None or (there.labels, there.pair) == (tuple(labels), pair):
        return
    raise RepositoryError(
        f"the repository's task {name} has {_described(there.labels, pair=there.pair)}, this study's"
        f" {_described(labels, pair=pair)}: callers of {name} would get other labels. Give [task] another name, or"
        " its labels in that order, or publish to a folder of its own"
    )


def task_in(catalog: Catalog | None, name: str) -> Task | None:
    return next((t for t in catalog.tasks if t.name == name), None) if catalog else None


def _described(labels: Sequence[str], *, pair: bool) -> str:
    return f"the labels {', '.join(labels)} of {'a pair of texts' if pair else 'one text'}"
