"""Reads the files of a study that its report shows; never reads models or questions."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.errors import BertierError
from optimizer.benchmarks import results
from optimizer.benchmarks.results import Contest, Labels
from optimizer.publish import tasks
from optimizer.report import analysis
from optimizer.report.analysis import ReferenceCorner, Trial
from optimizer.study.config import ELASTIC, StudentConfig, StudyConfig, search_folder
from optimizer.study.stages import LOSSES, MANIFEST, read_manifest

TRIALS, FRONT = "trials.json", "front.json"
SEARCH = "search.json"  # contains the far corner of the search's hypervolume
_TRIALS = TypeAdapter(list[Trial])


class ReportError(BertierError):
    """An input of the report is not readable; the message names the file."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The loss curve of one training, reduced to few points."""

    steps: int  # of the whole training
    points: tuple[tuple[int, float], ...]  # step, mean loss up to it


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: its folder, its duration and what it ran on."""

    name: str
    seconds: float | None
    ran_on: dict[str, str]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The data of a report."""

    config: StudyConfig
    run_dir: Path
    repository: Path
    catalog: Catalog | None
    students: tuple[
        StudentConfig, ...
    ]  # of the study file, and finished members of the Pareto front
    trials: tuple[Trial, ...]
    front: frozenset[int]  # trial numbers of the Pareto front
    reference: ReferenceCorner | None  # far corner of the hypervolume's box
    curves: dict[str, Curve]
    stages: tuple[Stage, ...]
    contest: Contest | None  # comparison of searches
    labels: tuple[Labels, ...]  # comparisons with training on labels alone
    fp32: results.ReferenceComparison | None  # comparison with the fp32 teacher
    before: Catalog | None  # an earlier publication


def read(
    config: StudyConfig, run_dir: Path, repository: Path, baseline: Path | None = None
) -> Inputs:
    """Return the data of a report; what a study does not have is empty.

    `baseline`: a catalog that was published before. Raises: ReportError, ComparisonError,
    RepositoryError.
    """
    published = (repository / store.CATALOG).exists()
    search = search_of(config, run_dir)
    trials = _trials(search / TRIALS)
    return Inputs(
        config=config,
        run_dir=run_dir,
        repository=repository,
        catalog=_published(repository, config) if published else None,
        students=(*config.students, *_members(config, run_dir)),
        trials=trials,
        front=_front(search / FRONT),
        reference=_reference(search / SEARCH) or analysis.reference_of(trials),
        curves={
            str(path.parent.relative_to(run_dir)): _curve(path)
            for path in sorted(run_dir.rglob(LOSSES))
        },
        stages=tuple(_stage(run_dir, path) for path in sorted(run_dir.rglob(MANIFEST))),
        contest=results.read(Contest, run_dir / results.SEARCHES),
        labels=_labels(run_dir),
        fp32=results.read(results.ReferenceComparison, run_dir / results.REFERENCE),
        before=_before(baseline) if baseline else None,
    )


def _published(repository: Path, config: StudyConfig) -> Catalog | None:
    """Return the part of the catalog that is of the study's task; None: there is none."""
    catalog, task = store.read(repository), tasks.name_of(config)
    return catalog.only(task) if task in catalog.task_names else None


def search_of(config: StudyConfig, run_dir: Path) -> Path:
    """Return the folder of the study's first search."""
    return run_dir / search_folder(config.elastic[0].name if config.elastic else ELASTIC)


def write(page: str, output: Path) -> int:
    """Write the page by one rename; return its size in bytes. Raises: ReportError."""
    raw = page.encode()
    part = output.with_name(output.name + ".part")
    try:
        part.write_bytes(raw)
        os.replace(part, output)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise ReportError(f"{output}: {exc.strerror}; give another --output") from exc
    return len(raw)


def _labels(run_dir: Path) -> tuple[Labels, ...]:
    files = (results.LABELS, results.LABELS_FROM_TEACHER)
    found = (results.read(Labels, run_dir / file) for file in files)
    return tuple(labels for labels in found if labels is not None)


def _before(path: Path) -> Catalog:
    try:
        return store.parse(path.read_bytes(), path)
    except OSError as exc:
        raise ReportError(f"{path}: {exc.strerror}; give another --baseline") from exc


def _trials(path: Path) -> tuple[Trial, ...]:
    if not path.exists():
        return ()
    try:
        return tuple(_TRIALS.validate_json(path.read_bytes()))
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReportError(f"{path}: {where}: {first['msg']}; run the search again") from exc


def _front(path: Path) -> frozenset[int]:
    """Return the trial numbers of the Pareto front; the file lists whole trials or their numbers."""
    if not path.exists():
        return frozenset()
    try:
        members = json.loads(path.read_bytes())
        return frozenset(int(m["number"] if isinstance(m, dict) else m) for m in members)
    except (ValueError, KeyError, TypeError) as exc:
        raise ReportError(f"{path}: not a list of trials: {exc!r}; run the search again") from exc


def _members(config: StudyConfig, run_dir: Path) -> list[StudentConfig]:
    """Return the members of the Pareto fronts that the study finishes."""
    if config.finish is None:
        return []
    from optimizer.students import finish  # here because the import takes a second

    try:
        taken = (config.largest_name, *(s.name for s in config.students))
        trained = config.trains_candidates
        found = finish.members(run_dir, config.elastic, config.finish, taken, trained=trained)
        return [student for student, _ in found.values()]
    except (ValueError, KeyError, TypeError) as exc:
        raise ReportError(
            f"{run_dir}: a {FRONT} is not a list of trials: {exc!r}; run the search again"
        ) from exc


def _reference(path: Path) -> ReferenceCorner | None:
    """Return the search's far corner, so that the report shows the search's hypervolume."""
    if not path.exists():
        return None
    try:
        found = _object(path)["reference"]
        return ReferenceCorner(float(found["p95_ms"]), int(found["size_bytes"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise ReportError(f"{path}: no reference: {exc!r}; run the search again") from exc


def _curve(path: Path) -> Curve:
    found = _object(path)
    try:
        points = tuple((int(p["step"]), float(p["loss"])) for p in found["points"])
        return Curve(int(found["steps"]), points)
    except (KeyError, TypeError, ValueError) as exc:
        raise ReportError(f"{path}: not a learning curve: {exc!r}; remove it") from exc


def _object(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as exc:
        raise ReportError(f"{path}: not JSON: {exc}; remove it") from exc


def _stage(run_dir: Path, path: Path) -> Stage:
    manifest = read_manifest(path.parent) or {}
    name = str(path.parent.relative_to(run_dir))
    return Stage(name, manifest.get("seconds"), manifest.get("ran_on", {}))
