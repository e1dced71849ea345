"""What distillation is worth: each finished student beside a twin that learned from labels alone.

The twin has the same shape, rows, steps and seed. It starts where the student started, so that the
difference is the last training's; or from the teacher's own weights cut to that shape, where no
distillation went in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from optimizer.benchmarks import pairs as compare_pairs
from optimizer.benchmarks import results
from optimizer.benchmarks.results import LABELS, LABELS_FROM_TEACHER, ComparisonError, Labels, Pair
from optimizer.certify import certification
from optimizer.data import evaluate
from optimizer.data.question_sets import Example, Split
from optimizer.evaluation import decoding
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.students.trainings import teacher_layers
from optimizer.study import provenance, workers
from optimizer.study.config import StudentConfig

log = logging.getLogger(__name__)

SEARCH = "search"


def run(study: Study, *, from_teacher: bool) -> Labels:
    """Train the twins and compare; each stage is made once. Raises: BertierError."""
    trained = [s for s in study.students if s.train is not None]
    if not trained:
        raise ComparisonError(
            f"{study.config.name}: no student has a training of its own; 'bertier-optimize finish'"
            " trains members of the search's front, [[students]] with `train` are others"
        )
    twins = {s.name: twin_of(study, s, from_teacher=from_teacher) for s in trained}
    other = without_teacher(study, [*study.students, *twins.values()])
    questions = questions_of(study)
    pairs: list[Pair] = []
    for config in trained:
        twin = twins[config.name]
        with workers.working():
            study.train_student(config)
            other.train_student(twin)
            pairs += pairs_of((study, other), (config.name, twin.name), questions)
    epochs = {s.name: s.train.epochs for s in trained if s.train is not None}
    start = "teacher" if from_teacher else "slice"
    found = Labels(start, epochs, tuple(pairs), provenance.ran_on())
    results.write(found, study.folder / (LABELS_FROM_TEACHER if from_teacher else LABELS))
    return found


def without_teacher(study: Study, students: list[StudentConfig]) -> Study:
    """Return the study in which students learn from labels alone; nothing of it is published."""
    how = study.config.distill.model_copy(update={"labels_only": True})
    changed = {"distill": how, "students": tuple(students), "finish": None}
    return replace(study, config=study.config.model_copy(update=changed))


def twin_of(study: Study, config: StudentConfig, *, from_teacher: bool) -> StudentConfig:
    """Return a student of the same shape and training, under a name of its own."""
    if not from_teacher:
        return config.model_copy(update={"name": f"{config.name}.labels"})
    changed = {
        "name": f"{config.name}.labels-from-teacher",
        "start": None,
        "layers": layers_in_teacher(study, config),
        "prune": config.prune and config.prune.model_copy(update={"ticket": None}),
    }
    return config.model_copy(update=changed)


def layers_in_teacher(study: Study, config: StudentConfig) -> tuple[int, ...]:
    """Return which of the teacher's layers a student's are, through whatever it was cut from.

    An elastic student that is shorter than the teacher counts as spread evenly over it.
    """
    if config.start is None:
        return config.layers
    if elastic := study.elastics.get(config.start or ""):
        n_teacher = study.distillation.start().config.num_hidden_layers
        return teacher_layers(config.layers, elastic.net.n_layers, n_teacher)
    start = study.student(config.start)
    assert start is not None, "the study file was checked"
    outer = layers_in_teacher(study, start)
    return tuple(outer[layer] for layer in config.layers)


def questions_of(study: Study) -> dict[str, list[Example]]:
    """Return the search split, on which thresholds are fitted, and the study's test data."""
    reports = certification.evidence_of(study).reports
    found = {questions.name: list(questions.examples) for questions in reports}
    return {SEARCH: study.questions.certifying(Split.SEARCH)} | found


def pairs_of(
    studies: tuple[Study, Study], names: tuple[str, str], questions: Mapping[str, list[Example]]
) -> list[Pair]:
    """Return two variants' scores on each data set, as served: INT8, each threshold its own."""
    known = {
        part: tuple(
            Exported(study, name).readings(part, examples)
            for study, name in zip(studies, names, strict=True)
        )
        for part, examples in questions.items()
    }
    how = [decoding.fit(questions[SEARCH], readings) for readings in known[SEARCH]]
    found = []
    for part, (first, second) in known.items():
        answers = evaluate.answers_of(first, how[0]), evaluate.answers_of(second, how[1])
        found.append(compare_pairs.pair(names, part, questions[part], answers, (first, second)))
    return found
