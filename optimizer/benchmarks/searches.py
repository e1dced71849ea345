"""Compares searches with equal budgets over several seeds: samplers, and a separate training per candidate.

Slices and costs are evaluated once and charged to each run (`ledger`). A kill at any moment keeps every
finished trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from optimizer.benchmarks import ledger, results, volumes
from optimizer.benchmarks.ledger import CachedEvaluator, EvaluationLedger, Meter
from optimizer.benchmarks.results import SEARCHES, ComparisonError, Contest, Run
from optimizer.benchmarks.volumes import Tried
from optimizer.data.question_sets import DataError, Example, Split
from optimizer.search import scoring, stage, subarchitecture
from optimizer.search.ask_tell import Evaluators, Search
from optimizer.search.costs import CostGate
from optimizer.search.scoring import SliceScorer
from optimizer.search.storage import opened, same_host
from optimizer.students import trainings
from optimizer.students.study import Study
from optimizer.students.trainings import Trainer
from optimizer.study import provenance, stages, workers
from optimizer.study.config import Sampler, SearchConfig
from optimizer.study.space import Space
from optimizer.study.trials import Point

log = logging.getLogger(__name__)

TRAININGS: Final = "trainings"  # method that trains each candidate from a truncated teacher
METHODS = (*Sampler, TRAININGS)
ENDLESS = 1_000_000  # candidates, when minutes are the budget


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """Methods and budgets of a comparison."""

    methods: tuple[str, ...]  # each is compared with the first, which tries slices
    seeds: int
    candidates: int  # of each run that tries slices
    minutes_cap: float | None  # of a run's own evaluations
    epochs: float  # of each candidate that is trained
    elastic_minutes: float | None = None  # replaces the manifest's value

    def check(self) -> None:
        """Raises: ComparisonError."""
        unknown = [m for m in self.methods if m not in METHODS]
        if unknown:
            raise ComparisonError(f"--methods {unknown[0]}: must be among {', '.join(METHODS)}")
        if not self.methods or self.methods[0] == TRAININGS:
            raise ComparisonError(
                "--methods: name a sampler first; the others are compared with it"
            )
        for name in ("seeds", "candidates", "epochs", "minutes_cap", "elastic_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ComparisonError(f"{name} {value}: must be more than 0")


@dataclass(frozen=True)
class RunContext:
    """The parts that all runs share."""

    study: Study
    how: SearchConfig
    space: Space
    rungs: tuple[int, ...]
    questions: Sequence[Example]
    inputs: dict[str, Any]  # that results depend on
    folder: Path
    ledger: EvaluationLedger
    gate: CostGate
    elastic_minutes: float
    lock: Path

    @property
    def name(self) -> str:
        """Return the key of the results; it changes with the inputs."""
        return stage.name_of(self.study, self.inputs)

    def slices(self) -> CachedEvaluator:
        scorer = SliceScorer(
            self.study.elastic.slice, self.study.tokenizer, self.questions, self.lock
        )
        return CachedEvaluator(self.ledger, self.name, self.name, self.gate.cost, scorer.f1)

    def trained(self, trainer: Trainer, space: Space) -> CachedEvaluator:
        scorer = SliceScorer(trainer.student, self.study.tokenizer, self.questions, self.lock)
        made = trainer.inputs | {"space": space.model_dump(mode="json")}
        of = stage.name_of(self.study, self.inputs | made)
        return CachedEvaluator(
            self.ledger, self.name, of, self.gate.cost, scorer.f1, trainer.late_s
        )


@dataclass(frozen=True)
class PlannedRun:
    """One run: who judges, from where its minutes count, and until when."""

    method: str
    seed: int
    sampler: Sampler
    candidates: int
    space: Space
    judge: CachedEvaluator
    first_minutes: float
    budget_minutes: float | None
    after: Callable[[Point], None] = lambda _: None

    @property
    def folder(self) -> str:
        return f"{self.method}-{self.seed}"


def run(study: Study, plan: ComparisonPlan, lock: Path = workers.HOST_LOCK) -> Contest:
    """Compare, or go on; write the result after every run. Raises: BertierError."""
    plan.check()
    folder = study.folder / SEARCHES.with_suffix("")
    with ledger.opened(folder / "ledger.db") as shared:
        context = _context(study, plan, folder, shared, lock)
        slices = context.slices()
        runs: dict[tuple[str, int], tuple[Tried, float | None]] = {}
        for seed in range(plan.seeds):
            for method in sorted(plan.methods, key=lambda m: m == TRAININGS):
                if method == TRAININGS:
                    taken = runs[plan.methods[0], seed][0].minutes
                    planned = _trained_run(context, plan, seed, taken[-1] if taken else 0.0)
                else:
                    planned = _slice_run(context, plan, Sampler(method), seed, slices)
                runs[method, seed] = _tried(context, planned), planned.budget_minutes
                results.write(_contest(context, plan, runs), study.folder / SEARCHES)
        return _contest(context, plan, runs)


def _context(
    study: Study, plan: ComparisonPlan, folder: Path, ledger: EvaluationLedger, lock: Path
) -> RunContext:
    slicing = {"time_budget_min": None, "training": None}
    how = stage.how_of(study).model_copy(update=slicing)
    questions = scoring.sample(study.questions.certifying(Split.SEARCH))
    if not questions:
        raise DataError("the search split of the sources that certify is empty: add [[data]]")
    space = stage.space_of(study.elastic, how)
    rungs = tuple(sorted({min(n, len(questions)) for n in how.questions}))
    shape = study.elastic.graph_shape
    costs = study.folder / results.FOLDER / "costs"
    gate = CostGate(shape, how.tokens, costs, lock, patience_s=how.patience_s)
    inputs = stage.inputs_of(study.elastic, how, space, questions[: rungs[-1]])
    return RunContext(
        study=study,
        how=how,
        space=space,
        rungs=rungs,
        questions=questions,
        inputs=inputs | {"host": gate.host, "limits": asdict(how.limits)},
        folder=folder,
        ledger=ledger,
        gate=gate,
        elastic_minutes=plan.elastic_minutes or _elastic_minutes(study),
        lock=lock,
    )


def _elastic_minutes(study: Study) -> float:
    """Return what the manifest says: after a kill only the last run's."""
    manifest = stages.read_manifest(study.elastic.folder) or {}
    return float(manifest.get("seconds", 0.0)) / 60


def _slice_run(
    context: RunContext, plan: ComparisonPlan, sampler: Sampler, seed: int, judge: CachedEvaluator
) -> PlannedRun:
    first, cap = context.elastic_minutes, plan.minutes_cap
    budget = None if cap is None else first + cap
    return PlannedRun(sampler, seed, sampler, plan.candidates, context.space, judge, first, budget)


def _trained_run(
    context: RunContext, plan: ComparisonPlan, seed: int, minutes: float
) -> PlannedRun:
    """Its budget is what the first method took with this seed, or the cap.

    Its candidates have the recipes of [search.training]; without that the teacher's states are no part
    of the protocol, as in what it is compared with.
    """
    config = context.study.config
    training = config.search.training if config.search else None
    how = (training or config.finish or config.elastic[0]).train
    how = how.model_copy(update={"epochs": plan.epochs})
    study = context.study if training else trainings.outputs_only(context.study)
    n_layers = context.study.elastic.net.n_layers
    own_seed = stage.seed_of(context.study) + seed
    folder = context.folder / f"{TRAININGS}-{seed}"
    trainer = Trainer(study, n_layers, how, own_seed, folder)
    budget = min(minutes, plan.minutes_cap or minutes)
    space = context.space.trained_by(training.space) if training else context.space
    judge = context.trained(trainer, space)
    return PlannedRun(
        method=TRAININGS,
        seed=seed,
        sampler=Sampler.GP,
        candidates=ENDLESS,
        space=space,
        judge=judge,
        first_minutes=0.0,
        budget_minutes=budget,
        after=lambda point: trainer.forget(point.candidate),
    )


def _tried(context: RunContext, planned: PlannedRun) -> Tried:
    """Let a run try candidates until it has enough."""
    name = f"{planned.judge.f1_of}/{planned.folder}"
    how = context.how.model_copy(update={"trials": planned.candidates, "sampler": planned.sampler})
    meter = Meter(name, context.ledger, planned.judge)

    def minutes() -> float:
        return planned.first_minutes + meter.spent_s / 60

    def enough() -> str | None:
        over = planned.budget_minutes is not None and minutes() >= planned.budget_minutes
        return f"{planned.budget_minutes:.1f} minutes are used up" if over else None

    def charge_trial(point: Point, points: list[Point]) -> None:
        meter.charge(point.trial)
        planned.after(point)
        found = stage.outcome(point, how)
        left = "" if planned.candidates == ENDLESS else f"/{planned.candidates}"
        until = "" if planned.budget_minutes is None else f" of {planned.budget_minutes:.1f}"
        said = (planned.folder, len(points), left, minutes(), until, found)
        log.info("%s: candidate %d%s, %.1f%s minutes charged: %s", *said)

    with opened(None, context.folder / planned.folder, planned.judge.f1_of) as shared:
        same_host(shared, context.gate.host)
        worker = Search(
            shared,
            planned.space,
            how,
            context.rungs,
            Evaluators(meter.cost, meter.f1),
            seed=stage.seed_of(context.study) + planned.seed,
            watch_progress=charge_trial,
            enough=enough,
        )
        known = [p.candidate for p in worker.points()]
        if known and planned.sampler is Sampler.BORT:  # it paid for its grid before the first
            known += subarchitecture.grid_of(planned.space)
        meter.start(known)
        points = worker.run()[: planned.candidates]  # an earlier command may have asked for more
    charges = context.ledger.charges(name)
    spent = accumulate(charges.get(p.trial, p.seconds) / 60 for p in points)
    tried = Tried(tuple(points), tuple(planned.first_minutes + m for m in spent))
    return tried.within(planned.budget_minutes)


def _contest(
    context: RunContext,
    plan: ComparisonPlan,
    runs: Mapping[tuple[str, int], tuple[Tried, float | None]],
) -> Contest:
    """Return what all runs so far come to, on the questions that all of them asked."""
    limits, reference = context.how.limits, context.slices().cost(context.space.largest)[0]
    questions = volumes.common_questions([tried for tried, _ in runs.values()], limits)
    found = tuple(
        Run(
            method=method,
            seed=seed,
            candidates=len(tried.points),
            scored=sum(bool(p.f1) for p in tried.points),
            minutes=tried.minutes[-1] if tried.minutes else 0.0,
            budget_minutes=budget if method == TRAININGS else None,
            curve=volumes.curve(tried, limits, reference, questions),
            best_w=volumes.best_w(tried, limits, reference, questions),
        )
        for (method, seed), (tried, budget) in runs.items()
    )
    first, *others = plan.methods
    by_method = {method: [r for r in found if r.method == method] for method in plan.methods}
    return Contest(
        first=first,
        candidates=plan.candidates,
        minutes_cap=plan.minutes_cap,
        elastic_minutes=context.elastic_minutes,
        training_epochs=plan.epochs,
        questions=questions,
        p95_ms=reference.p95_ms,
        size_bytes=reference.size_bytes,
        runs=found,
        against=tuple(
            result
            for other in others
            if by_method[other]
            for result in volumes.against(by_method[first], by_method[other])
        ),
        ran_on=provenance.ran_on(),
    )
