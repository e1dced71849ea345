"""What each student of a study costs and scores, beside one of them: techniques of compression, one a student.

Reads the run folder of a distilled study; exports, evaluates and profiles its variants, each a stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimizer.benchmarks import labels, pairs, results
from optimizer.benchmarks.results import (
    STUDENTS,
    ComparisonError,
    Interval,
    StudentComparison,
    StudentResult,
)
from optimizer.data import evaluate
from optimizer.data.question_sets import Example
from optimizer.evaluation import decoding
from optimizer.students.distillation_batches import LOGITS_FOLDER
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study import provenance, stages, workers
from optimizer.study.config import StudentConfig

TOKENS = 192  # the length bucket of a question of SQuAD's mean length
SAME_SIZE = 0.01  # share by which sizes may differ and count as equal
SAME_TIME = 0.1  # likewise of p50, which no profile repeats exactly

REFERENCE, BETTER, FREE, TRADE_OFF, NO_GAIN = (
    "reference",
    "better",
    "free",
    "trade-off",
    "no gain",
)

Floats = np.ndarray


@dataclass(frozen=True, slots=True)
class Measured:
    """A variant as served: what it costs, and its F1 on each question."""

    name: str
    size_bytes: int
    p50_ms: float
    p95_ms: float
    f1: Floats  # (n,)
    forced_f1: Floats  # (n,) of the best span, whether there is an answer or not


Less = Callable[[Measured, Measured], Interval]  # what the first one's mean F1 has more


def run(
    study: Study, against: str | None = None, only: Collection[str] | None = None
) -> StudentComparison:
    """Compare all variants with one student, by default the first; `only`: these, and that student.

    Raises: BertierError.
    """
    names = [student.name for student in study.students]
    if not names:
        raise ComparisonError(f"{study.config.name}: has no student; add [[students]]")
    against = against or names[0]
    if against not in names:
        raise ComparisonError(f"--against {against}: not among {', '.join(names)}")
    if unknown := [name for name in only or () if name not in study.variant_names]:
        raise ComparisonError(f"--only {unknown[0]}: not among {', '.join(study.variant_names)}")
    compared = [n for n in study.variant_names if only is None or n in (against, *only)]
    for student in study.students:
        if (
            student.name in compared
            and student.train is not None
            and not (_folder(study, student.name) / stages.MANIFEST).exists()
        ):
            raise ComparisonError(
                f"{student.name}: not trained yet; 'bertier-optimize distill' does that, and --only compares others"
            )
    with workers.working():
        questions = labels.questions_of(study)
        data, examples = list(questions.items())[-1]
        scores = {name: _scores(study, name, questions) for name in compared}
    measured = [_measured(study, name, *found) for name, found in scores.items()]
    contexts = [e.context for e in examples]
    less = _less(contexts)
    said = verdicts(measured, against, less)
    base = next(m for m in measured if m.name == against)
    trained = {m.name: _trained(study, m.name) for m in measured}
    has = np.array([e.answerable for e in examples], dtype=bool)
    found = StudentComparison(
        against=against,
        data=data,
        n=len(examples),
        n_contexts=len(set(contexts)),
        tokens=TOKENS,
        teacher_s=_teacher_s(study),
        students=tuple(
            StudentResult(
                name=m.name,
                size_bytes=m.size_bytes,
                p50_ms=m.p50_ms,
                p95_ms=m.p95_ms,
                f1=float(m.f1.mean()),
                forced_f1=float(m.forced_f1[has].mean()) if has.any() else None,
                steps=trained[m.name][0],
                train_s=trained[m.name][1],
                f1_difference=None if m is base else less(m, base),
                verdict=said[m.name],
            )
            for m in measured
        ),
        ran_on=provenance.ran_on(),
    )
    results.write(found, study.folder / STUDENTS)
    return found


def _scores(
    study: Study, name: str, questions: Mapping[str, Sequence[Example]]
) -> tuple[Floats, Floats]:
    """Return a variant's F1 on each question of the last set, under the threshold of the search split; forced, too."""
    exported = Exported(study, name)
    readings = {part: exported.readings(part, asked) for part, asked in questions.items()}
    how = decoding.fit(questions[labels.SEARCH], readings[labels.SEARCH])
    data, examples = list(questions.items())[-1]
    answers = evaluate.answers_of(readings[data], how)
    return _f1(examples, answers), _f1(examples, evaluate.forced_answers(readings[data]))


def _f1(examples: Sequence[Example], answers: Sequence[str]) -> Floats:
    return np.array([evaluate.f1(a, e.answers) for a, e in zip(answers, examples, strict=True)])


def _measured(study: Study, name: str, f1: Floats, forced_f1: Floats) -> Measured:
    exported = Exported(study, name)
    cell = exported.profile().cell(TOKENS)
    size_bytes = exported.export()["size_bytes"]
    return Measured(name, size_bytes, cell.p50_ms, cell.p95_ms, f1, forced_f1)


def _folder(study: Study, name: str) -> Path:
    return study.folder / "students" / name


def _less(contexts: Sequence[str]) -> Less:
    known: dict[tuple[str, str], Interval] = {}

    def less(a: Measured, b: Measured) -> Interval:
        key = a.name, b.name
        if key not in known:
            known[key] = pairs.over_contexts(contexts, a.f1 - b.f1)
        return known[key]

    return less


def _trained(study: Study, name: str) -> tuple[int, float | None]:
    """Return the steps and the seconds of a variant's training and of all that it needs."""
    steps, seconds = 0, None
    for config in _needed(study, name).values():
        if config.train is not None:
            curve = json.loads((_folder(study, config.name) / stages.LOSSES).read_text())
            steps += curve["steps"]
            seconds = (seconds or 0.0) + curve.get("seconds", 0.0)
    return steps, seconds


def _needed(study: Study, name: str) -> dict[str, StudentConfig]:
    """Return a student, those it is cut from, and the one that chooses its masks, by name; none for the largest model."""
    config = study.student(name)
    if config is None:
        return {}
    found = {name: config}
    for other in (config.start, config.prune and config.prune.ticket):
        found |= _needed(study, other) if other else {}
    return found


def _teacher_s(study: Study) -> float | None:
    """Return what the teacher's cached answers took; after a kill the last run's seconds."""
    manifest = stages.read_manifest(study.folder / LOGITS_FOLDER)
    return None if manifest is None else float(manifest["seconds"])


# Verdicts


def verdicts(measured: Sequence[Measured], against: str, less: Less) -> dict[str, str]:
    """Return what the table says of each variant, by name.

    - `reference`: the student that all are compared with
    - `dominated by X`: X is no larger, no slower and scores no lower, and is better in one of these
    - `better`: scores higher than the reference, and costs no more
    - `free`: is smaller or faster than the reference, and does not score lower
    - `trade-off`: is better than the reference in one of these and worse in another
    - `no gain`: is better in none of these

    Sizes within SAME_SIZE and p50 within SAME_TIME are equal, and so are F1 whose paired interval
    contains 0.
    """
    base = next(m for m in measured if m.name == against)
    found = {}
    for m in measured:
        over = [other for other in measured if dominates(other, m, less)]
        if over:
            best = max(over, key=lambda other: float(other.f1.mean()))
            found[m.name] = f"dominated by {best.name}"
        else:
            found[m.name] = REFERENCE if m is base else _beside(m, base, less)
    return found


def _beside(m: Measured, base: Measured, less: Less) -> str:
    cheaper, dearer = _is_cheaper(m, base), _is_cheaper(base, m)
    difference = less(m, base)
    if dearer or difference.high < 0:
        return TRADE_OFF if cheaper or difference.low > 0 else NO_GAIN
    if difference.low > 0:
        return BETTER
    return FREE if cheaper else NO_GAIN


def dominates(a: Measured, b: Measured, less: Less) -> bool:
    """Return whether one variant is better than another in size, p50 or F1, and worse in none."""
    if a is b or _is_cheaper(b, a):
        return False
    difference = less(a, b)
    return difference.high >= 0 and (_is_cheaper(a, b) or difference.low > 0)


def _is_cheaper(a: Measured, b: Measured) -> bool:
    """Return whether one variant is smaller or faster than another by more than counts as equal."""
    smaller = a.size_bytes < (1 - SAME_SIZE) * b.size_bytes
    return smaller or a.p50_ms < (1 - SAME_TIME) * b.p50_ms
