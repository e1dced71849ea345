"""Chooses a study for a time budget from measured speeds. Pure.

Every kind of study has a smallest and a largest amount of training and of trials. The richest kind whose
smallest amount fits is taken, and grown until the budget is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import ceil

from gateway.errors import BertierError

RESERVE = 0.15  # share of the budget that is left for what was measured too fast
LEAST_ROWS = 1000  # rows that a model trains on at least, each question once at least
MOST_ROWS = 100_000  # more rows are not needed to learn from few questions
MOST_PASSES, MOST_LARGEST_PASSES = 8.0, 3.0  # over the training questions
LEAST_PASSES_OF_ALL = 2.0  # where a budget allows it, however many questions there are
TRIALS = (8, 60)  # of a search, fewest and most
MEMBERS = (2, 6)  # of its Pareto front that are finished
GP_FROM, GP_S = 20, 6.0  # trials from which on the Gaussian process pays; what a suggestion takes
LAST_RUNG = (200, 1500)  # questions of the last rung
FIRST_RUNG = 0.3  # share of them that the first rung asks
PROMOTED = 0.5  # share that is asked all of them: `promote` of the study, and the first ones
START_S = 5.0  # reading questions and loading models, of each stage
FLOORS_S = 15.0  # choosing cascades and computing floors
STEPS = 200  # in which a study grows from its smallest to its largest amount
UNITS_MIN = {"m": 1.0, "h": 60.0, "d": 1440.0}


class BudgetError(BertierError):
    """A budget that no study fits into, or that is none; the message says which would do."""


class Role(StrEnum):
    """What the named teacher is in the study."""

    LARGEST = "is published unchanged as the largest model, and students are cut from it"
    TEACHES = "only teaches; the largest model starts from other weights"
    ENCODER = "has no answers yet: it is fine-tuned on the questions first"


@dataclass(frozen=True, slots=True)
class Network:
    """The shape of the largest model."""

    layers: int
    heads: int
    ffn: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A student: how many of the largest model's layers it keeps, and their feed-forward width."""

    layers: int
    ffn: int

    def share_of(self, whole: Network) -> float:
        """Return its multiplications in the layers, relative to the largest model's."""
        attention = 4 * whole.hidden**2
        per_layer = attention + 2 * whole.hidden * self.ffn
        return self.layers * per_layer / (whole.layers * (attention + 2 * whole.hidden * whole.ffn))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many questions each part of a study has."""

    train: int
    search: int
    certify: int  # those that count for floors


@dataclass(frozen=True, slots=True)
class Seconds:
    """What one step takes on this host, measured on some of the questions."""

    ask: float  # an answer of a teacher that only teaches; 0: there is none
    forward: float  # one row by the largest model
    train: float  # one row in a training step of the largest model
    train_smallest: float  # the same of a student with one layer
    elastic: float  # one row in a training step of the elastic student
    sort_heads: float  # finding out which heads and neurons matter
    export: float  # writing the largest model as the file that is served, with its checks
    read: float  # one question by the largest model as served
    read_smallest: float  # by a student with one layer
    cost: float  # latency of one shape
    profile: float  # latency of the largest model at every length


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the study, as the command of that name runs it."""

    name: str
    what: str
    minutes: float


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of study; `shapes`: its students, none: a search chooses them."""

    name: str
    shapes: int = 0

    @property
    def searches(self) -> bool:
        return self.shapes == 0


KINDS = (
    Kind("a search for shapes"),
    Kind("three known shapes", 3),
    Kind("two known shapes", 2),
    Kind("one known shape", 1),
)


@dataclass(frozen=True)
class Amount:
    """How much of a kind of study is done, and with what."""

    kind: Kind
    role: Role
    whole: Network
    counts: Counts
    passes: float  # of students over the training questions; below 1: over a part of them
    trials: int = 0
    members: int = 0
    rungs: tuple[int, ...] = ()

    @property
    def fraction(self) -> float:
        """The share of the training contexts that is used."""
        return min(1.0, round(self.passes, 4))

    @property
    def rows(self) -> int:
        """The training rows that are used."""
        return max(1, round(self.counts.train * self.fraction))

    @property
    def epochs(self) -> float:
        """Passes of a student over the rows that are used."""
        return max(1.0, round(self.passes, 2))

    @property
    def largest_epochs(self) -> float:
        return min(self.epochs, MOST_LARGEST_PASSES)

    @property
    def finish_epochs(self) -> float:
        """Passes of a member of the Pareto front, which the elastic student has trained before."""
        return max(1.0, round(self.epochs / 2, 2))

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The known shapes, the deepest first."""
        return known_shapes(self.whole)[: self.kind.shapes]

    @property
    def n_variants(self) -> int:
        return 1 + (self.members if self.kind.searches else len(self.shapes))

    @property
    def gp(self) -> bool:
        """Whether a Gaussian process chooses candidates."""
        return self.trials > GP_FROM


@dataclass(frozen=True)
class Schedule:
    """The chosen study: how much of it is done, how long it takes, and what did not fit."""

    amount: Amount
    stages: tuple[Stage, ...]
    budget_min: float
    left_out: tuple[tuple[Kind, float], ...]  # richer kinds, with the budget that each needs
    is_largest: bool  # more time would not be used

    @property
    def minutes(self) -> float:
        return sum(stage.minutes for stage in self.stages)


def minutes_of(text: str) -> float:
    """Return the minutes of a duration such as 30m, 2h or 1d. Raises: BudgetError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhd])", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise BudgetError(
            f"--budget {text}: give a number and a unit, m, h or d, such as 30m, 2h or 1d"
        )
    return float(found[1]) * UNITS_MIN[found[2]]


def duration(minutes: float) -> str:
    """Return a duration as --budget takes it, rounded up."""
    if minutes < 120:
        return f"{ceil(minutes)}m"
    return f"{ceil(minutes / 60)}h" if minutes < 2880 else f"{ceil(minutes / 1440)}d"


def known_shapes(whole: Network) -> tuple[Shape, ...]:
    """Return students of a half, a third and a sixth of the layers, each once, the deepest first.

    The shallower ones have narrower layers, too. Never the largest model itself.
    """
    wanted = ((2, 1), (3, 2), (6, 4))
    found = {
        layers: Shape(layers, max(1, whole.ffn // narrower))
        for part, narrower in reversed(wanted)
        if (layers := max(1, whole.layers // part)) < whole.layers
    }
    return tuple(reversed(found.values())) or (Shape(1, max(1, whole.ffn // 2)),)


def choose(
    role: Role,
    whole: Network,
    counts: Counts,
    seconds: Seconds,
    budget_min: float,
    spent_min: float = 0.0,
) -> Schedule:
    """Return the richest study that fits. Raises: BudgetError with the smallest budget that would do.

    `spent_min`: of the budget, on measuring.
    """
    usable = budget_min * (1 - RESERVE) - spent_min
    left_out: list[tuple[Kind, float]] = []
    for kind in kinds_for(whole):
        grown = _grown(kind, role, whole, counts)
        least = _minutes(grown(0.0), seconds)
        if least <= usable:
            found = _largest_that_fits(grown, seconds, usable)
            return replace(found, budget_min=budget_min, left_out=tuple(left_out))
        left_out.append((kind, (least + spent_min) / (1 - RESERVE)))
    kind, needed = min(left_out, key=lambda pair: pair[1])
    smallest = stages_of(_grown(kind, role, whole, counts)(0.0), seconds)
    raise _too_small(kind, smallest, needed, budget_min)


def kinds_for(whole: Network) -> tuple[Kind, ...]:
    """Return the kinds of study, the richest first, without those that have too few layers."""
    n = len(known_shapes(whole))
    return tuple(kind for kind in KINDS if kind.shapes <= n)


def _too_small(
    kind: Kind, stages: Sequence[Stage], needed_min: float, budget_min: float
) -> BudgetError:
    parts = ", ".join(f"{stage.name} {stage.minutes:.1f}" for stage in stages)
    return BudgetError(
        f"--budget {duration(budget_min)}: too small for these questions on this host. The smallest study,"
        f" {kind.name}, takes about {sum(s.minutes for s in stages):.1f} minutes ({parts}), and a"
        f" {RESERVE:.0%} reserve is kept; give --budget {duration(needed_min)} or more, a smaller teacher,"
        " or fewer questions"
    )


def _grown(kind: Kind, role: Role, whole: Network, counts: Counts) -> Callable[[float], Amount]:
    """Return the amount of a study from its smallest (0) to its largest (1)."""
    passes = passes_of(counts.train)
    empty = Amount(kind, role, whole, counts, passes[0])

    def at(x: float) -> Amount:
        found = replace(empty, passes=_between(passes, x))
        if not kind.searches:
            return found
        last = min(counts.search, round(_between(LAST_RUNG, x)))
        first = max(1, round(last * FIRST_RUNG))
        return replace(
            found,
            trials=round(_between(TRIALS, x)),
            members=round(_between(MEMBERS, x)),
            rungs=tuple(sorted({first, last})),
        )

    return at


def passes_of(n_train: int) -> tuple[float, float]:
    """Return the fewest and the most passes over the training questions."""
    least = min(1.0, LEAST_ROWS / n_train)
    most = min(MOST_PASSES, max(LEAST_PASSES_OF_ALL, MOST_ROWS / n_train))
    return least, most


def _between(ends: tuple[float, float], x: float) -> float:
    return ends[0] + x * (ends[1] - ends[0])


def _largest_that_fits(
    grown: Callable[[float], Amount], seconds: Seconds, usable_min: float
) -> Schedule:
    step = max(i for i in range(STEPS + 1) if _minutes(grown(i / STEPS), seconds) <= usable_min)
    amount = grown(step / STEPS)
    return Schedule(amount, stages_of(amount, seconds), usable_min, (), step == STEPS)


def _minutes(amount: Amount, seconds: Seconds) -> float:
    return sum(stage.minutes for stage in stages_of(amount, seconds))


def stages_of(amount: Amount, seconds: Seconds) -> tuple[Stage, ...]:
    """Return the stages of a study, with the minutes that each takes."""
    searching = (_search, _finish) if amount.kind.searches else ()
    return tuple(stage(amount, seconds) for stage in (_teacher, _distill, *searching, _publish))


def _stage(name: str, what: str, seconds: float) -> Stage:
    return Stage(name, what, (START_S + seconds) / 60)


def _teacher(amount: Amount, seconds: Seconds) -> Stage:
    trained_s = amount.rows * amount.largest_epochs * seconds.train
    trained = f"train the largest model, {_passes(amount.largest_epochs, amount.rows)}"
    if amount.role is Role.LARGEST:
        return _stage("teacher", "load the teacher, which is the largest model", 0.0)
    if amount.role is Role.ENCODER:
        return _stage("teacher", trained, trained_s)
    answered = f"ask the teacher {amount.rows} questions; "
    return _stage("teacher", answered + trained, amount.rows * seconds.ask + trained_s)


def _passes(epochs: float, rows: int) -> str:
    return f"{epochs:g} x {rows} questions"


def _distill(amount: Amount, seconds: Seconds) -> Stage:
    known_s = 0.0 if amount.role is Role.TEACHES else amount.rows * seconds.forward
    rows = amount.rows * amount.epochs
    if amount.kind.searches:
        what = f"train the elastic student, {_passes(amount.epochs, amount.rows)}"
        return _stage("distill", what, known_s + seconds.sort_heads + rows * seconds.elastic)
    each = [rows * _of(amount, s, seconds.train_smallest, seconds.train) for s in amount.shapes]
    layers = ", ".join(str(shape.layers) for shape in amount.shapes)
    what = f"train students of {layers} layers, each {_passes(amount.epochs, amount.rows)}"
    return _stage("distill", what, known_s + sum(each))


def _of(amount: Amount, shape: Shape, smallest: float, largest: float) -> float:
    """Return what a shape takes, between a student of one narrow layer and the largest model."""
    low = smallest_shape(amount.whole).share_of(amount.whole)
    at = (shape.share_of(amount.whole) - low) / max(1e-9, 1 - low)
    return smallest + max(0.0, at) * max(0.0, largest - smallest)


def smallest_shape(whole: Network) -> Shape:
    """Return the student that is measured besides the largest model."""
    return Shape(1, max(1, whole.ffn // 4))


def _search(amount: Amount, seconds: Seconds) -> Stage:
    read, export = _mean_read(seconds), _mean_export(seconds)
    first, last = amount.rungs[0], amount.rungs[-1]
    scored = first + PROMOTED * (last - first)
    each = seconds.cost + 2 * export + scored * read + (GP_S if amount.gp else 0.0)
    what = f"try {amount.trials} slices of it: latency, size, F1 on up to {last} questions"
    return _stage("search", what, amount.trials * each)


def _mean_read(seconds: Seconds) -> float:
    return (seconds.read + seconds.read_smallest) / 2


def _mean_export(seconds: Seconds) -> float:
    """Return what writing a slice takes, unchecked; less than the largest model's file with its checks."""
    return seconds.export / 2


def _finish(amount: Amount, seconds: Seconds) -> Stage:
    rows = amount.rows * amount.finish_epochs
    train_s = rows * (seconds.train + seconds.train_smallest) / 2
    what = f"train {amount.members} of the best slices, each {_passes(amount.finish_epochs, amount.rows)}"
    read_s = amount.counts.search * _mean_read(seconds) + _mean_export(seconds)
    return _stage("finish", what, amount.members * (train_s + read_s))


def _publish(amount: Amount, seconds: Seconds) -> Stage:
    n = amount.n_variants
    scored = amount.counts.certify + amount.counts.search
    shares = [1.0] + [0.5] * (n - 1)  # of the largest model's time, by variant
    each = [s * (scored * seconds.read + seconds.profile + seconds.export) for s in shares]
    what = f"write {n} files in INT8, answer {scored} questions with each, certify floors, measure latency"
    return _stage("publish", what, FLOORS_S + sum(each))
