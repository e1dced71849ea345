"""What comparisons found out, as files of the run folder. Frozen; reads no model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.catalog.schema import Profile, Quality
from gateway.errors import BertierError
from optimizer.study import stages

FOLDER = "compare"
QUIET = 0.1  # largest `ReferenceComparison.disturbed` with reliable ratios of latencies
SEARCHES, LABELS = Path(FOLDER) / "searches.json", Path(FOLDER) / "labels.json"
LABELS_FROM_TEACHER = Path(FOLDER) / "labels-from-teacher.json"
REFERENCE = Path(FOLDER) / "reference.json"
STUDENTS = Path(FOLDER) / "students.json"
T = TypeVar("T")


class ComparisonError(BertierError):
    """A comparison that cannot be made or read; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models on the same questions; F1 under a threshold of each one's own, 0..1.

    A difference is what the first has more than the second, its interval over contexts.
    """

    first: str
    second: str
    data: str
    n: int
    n_contexts: int
    f1: tuple[float, float]
    f1_difference: Interval
    forced_f1: tuple[float, float] | None  # None, here and below: no answerable question
    forced_difference: Interval | None


@dataclass(frozen=True, slots=True)
class Labels:
    """Students (first) beside twins that never saw the teacher's answers (second)."""

    start: str  # of the twins: `slice`, as the student's own, or `teacher`
    epochs: dict[str, float]  # of student and twin alike, by student
    pairs: tuple[Pair, ...]
    ran_on: dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """From here on a run's front is worth so much."""

    candidates: int  # judged until then
    minutes: float  # charged until then
    hypervolume: float


@dataclass(frozen=True, slots=True)
class Run:
    """One method with one seed."""

    method: str
    seed: int
    candidates: int
    scored: int  # candidates with an F1
    minutes: float  # charged, the elastic student's training included where it was used
    budget_minutes: float | None  # None: as many minutes as its candidates take
    curve: tuple[Step, ...]  # where it grows
    best_w: float = 0.0  # largest W-coefficient of a candidate, which `bort` looks for

    @property
    def hypervolume(self) -> float:
        return self.curve[-1].hypervolume if self.curve else 0.0

    def after(self, candidates: int) -> float:
        return max((s.hypervolume for s in self.curve if s.candidates <= candidates), default=0.0)

    def at(self, minutes: float) -> float:
        return max((s.hypervolume for s in self.curve if s.minutes <= minutes), default=0.0)


@dataclass(frozen=True, slots=True)
class Against:
    """By how much the first method's hypervolume is larger than another's, over the same seeds."""

    method: str
    at: str  # `candidates`: after as many of both; `minutes`: when both were charged as much; `end`
    seeds: int
    wins: int
    difference: Interval  # paired, Student's t


@dataclass(frozen=True, slots=True)
class Contest:
    """Searches with one budget and several seeds each."""

    first: str  # the method that the others are held against
    candidates: int  # of each run of a method that tries slices
    minutes_cap: float | None  # of a run's own evaluations; None: none
    elastic_minutes: float  # that the training of the elastic student took, in every such run
    training_epochs: float  # of each candidate of the method that trains
    questions: int  # that the F1 of every front rests on
    p95_ms: float  # where the hypervolume's box ends; F1 0 is its third side
    size_bytes: int
    runs: tuple[Run, ...]
    against: tuple[Against, ...]
    ran_on: dict[str, str]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(run.method for run in self.runs))

    def of(self, method: str) -> list[Run]:
        return [run for run in self.runs if run.method == method]


@dataclass(frozen=True, slots=True)
class Timing:
    """One window of so many tokens, padded to its bucket, one thread; interleaved with the others."""

    model: str
    tokens: int
    bucket: int
    min_ms: float
    median_ms: float
    cpu_ms: float  # least CPU time of the thread: near `min_ms` where nothing disturbed


@dataclass(frozen=True, slots=True)
class Headline:
    """A published variant beside the fp32 teacher."""

    variant: str
    size_bytes: int
    times_smaller: float
    times_faster: dict[int, float]  # by tokens; ratio of the minima
    times_faster_median: dict[int, float]
    times_faster_cpu: dict[int, float]
    data: str
    forced_f1: float | None
    share_of_forced_f1: float | None


@dataclass(frozen=True, slots=True)
class ReferenceComparison:
    """The teacher as it was trained, all in 32 bits, and what was published beside it."""

    teacher: str
    size_bytes: int
    quality: tuple[Quality, ...]  # on the calibrate split, and on the test data
    profile: Profile
    rounds: int
    timings: tuple[Timing, ...]
    headlines: tuple[Headline, ...]
    int8: tuple[Pair, ...]  # the teacher as published (first) beside fp32 (second)
    ran_on: dict[str, str]

    @property
    def disturbed(self) -> float:
        """Return by which share the least wall time of any cell is above its CPU time."""
        return max((t.min_ms / t.cpu_ms - 1 for t in self.timings if t.cpu_ms), default=0.0)


@dataclass(frozen=True, slots=True)
class StudentResult:
    """A variant of a study as it is served, and what it took to train."""

    name: str
    size_bytes: int
    p50_ms: float
    p95_ms: float
    f1: float
    forced_f1: float | None  # of the answerable questions, each answered; None: there are none
    steps: int  # of its training, and of those that it starts from
    train_s: float | None  # of these steps; None: it was not trained in this study
    f1_difference: (
        Interval | None
    )  # to the student that all are compared with; None: it is that one
    verdict: str


@dataclass(frozen=True, slots=True)
class StudentComparison:
    """All variants of a study beside one of its students."""

    against: str
    data: str
    n: int
    n_contexts: int
    tokens: int  # length bucket of the latencies
    teacher_s: float | None  # its answers to all training rows took so long, once
    students: tuple[StudentResult, ...]
    ran_on: dict[str, str]


@dataclass(frozen=True, slots=True)
class Deferral:
    """A plan that defers so many of the questions to the largest variant; costs relative to that one's."""

    share: float
    f1: float
    loss: Interval  # of F1, to the largest
    cascade: float  # CPU time, where the largest starts anew
    exit: float | None  # the same where it goes on from the smaller one's states; None: it cannot


@dataclass(frozen=True, slots=True)
class Deferring:
    """Deferring from one variant to the largest, for rising shares of the questions."""

    variant: str
    prefix: float | None  # share of the largest's layers that it stands for; None: it is no prefix
    points: tuple[Deferral, ...]


@dataclass(frozen=True, slots=True)
class ExitComparison:
    """Early exit, at its best, beside cascades."""

    data: str
    n: int
    n_contexts: int
    largest: str
    f1: float
    plans: tuple[Deferring, ...]
    ran_on: dict[str, str]


@dataclass(frozen=True, slots=True)
class Rounding:
    """A graph of a published variant with so much rounding, beside another graph of it."""

    float_layers: tuple[int, ...]  # whose products are in float32
    error: float  # RMS difference from the float graph's logits, in their standard deviations
    beside: Pair  # the graph's name first; the float graph is beside itself
    timing: Timing | None  # None: not measured


@dataclass(frozen=True, slots=True)
class VariantRounding:
    """A published variant: as served, in float, with weights drawn anew, with few layers in float, layer by layer."""

    variant: str
    graphs: tuple[Rounding, ...]
    layers: tuple[Rounding, ...]  # each with one layer rounded, the first layer first


@dataclass(frozen=True, slots=True)
class PrecisionComparison:
    """What INT8 takes from published variants, and what layers in float would give back."""

    variants: tuple[VariantRounding, ...]
    skipped: dict[str, str]  # variants that are not compared, and why
    ran_on: dict[str, str]


def write(found: Any, path: Path) -> None:
    """Write a result by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stages.write_json(path, asdict(found))


def read(kind: type[T], path: Path) -> T | None:
    """Return a result; None: not made yet. Raises: ComparisonError."""
    if not path.exists():
        return None
    try:
        return TypeAdapter(kind).validate_python(json.loads(path.read_bytes()))
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ComparisonError(f"{path}: {where}: {first['msg']}; compare again") from exc
    except ValueError as exc:
        raise ComparisonError(f"{path}: not JSON: {exc}; compare again") from exc
