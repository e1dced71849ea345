"""The search stage of a study: from an elastic student, or its space, to `search/front.json`."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from gateway.catalog.store import sha256_of
from optimizer.data.items import Item
from optimizer.data.question_sets import DataError, Split
from optimizer.onnx import profile
from optimizer.search import costs, scoring
from optimizer.search.ask_tell import Evaluators, Search
from optimizer.search.cost_queue import CostQueue
from optimizer.search.costs import CostGate
from optimizer.search.scoring import NetScorer, Scorer, SliceScorer
from optimizer.search.storage import is_of_host, opened_among, same_host
from optimizer.students.elastic import Elastic
from optimizer.students.study import Study
from optimizer.students.trainings import Trainer
from optimizer.study import pareto, provenance, stages, store, trials
from optimizer.study.config import ConfigError, SearchConfig
from optimizer.study.progress import Progress
from optimizer.study.space import Candidate, Space
from optimizer.study.trials import MEGABYTE, Cost, Limits, Point
from optimizer.training import loop

log = logging.getLogger(__name__)

FRONT = "front.json"  # members of the Pareto front, the most accurate first
TRIALS = "trials.json"  # every candidate that was judged
RECORD = "search.json"  # settings and result of the search
SHOWN = 5  # members of the Pareto front in one log line


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    how: SearchConfig
    points: list[Point]
    reference: Cost  # cost of the largest candidate: far corner of the hypervolume's box

    @property
    def front(self) -> list[Point]:
        return trials.front_of(self.points, self.how.limits)

    @property
    def hypervolume(self) -> float:
        return trials.hypervolume(self.front, self.reference)

    @property
    def nearest(self) -> Point | None:
        """Return the point nearest to the limits if no point is within them."""
        return None if self.front else trials.nearest(self.points, self.how.limits)


def run(
    study: Study,
    url: str | None,
    elastic: Elastic | None = None,
    *,
    elsewhere: bool = False,
    queue: CostQueue | None = None,
    limits: Callable[[], Limits] | None = None,
) -> SearchResult:
    """Start, resume, or join the search at `url`; write the Pareto front. Raises: BertierError.

    `elastic`: whose slices; None: the first one's. `elsewhere`: latencies are those that another host
    measured into the run folder. `queue`: of the cost workers that measure them. `limits`: those that
    hold now, asked after each candidate; None: the study's, as long as the search takes.
    """
    how, elastic = how_of(study), elastic or study.elastic
    in_force = limits or (lambda: how.limits)
    while True:
        now = how.limited(in_force())
        found = _run_under(study, url, elastic, now, in_force, elsewhere=elsewhere, queue=queue)
        if in_force() == now.limits:
            return found


def _run_under(
    study: Study,
    url: str | None,
    elastic: Elastic,
    how: SearchConfig,
    in_force: Callable[[], Limits],
    *,
    elsewhere: bool,
    queue: CostQueue | None,
) -> SearchResult:
    """Search under the limits of `how`, until it is over or others are in force."""
    space, folder = space_of(elastic, how), study.search_folder(elastic.config.name)
    questions = scoring.sample(study.questions.certifying(Split.SEARCH))
    if not questions:
        raise DataError("the search split of the certifying sources is empty: add [[data]]")
    rungs = tuple(sorted({min(n, len(questions)) for n in how.questions}))
    gate = gate_of(elastic, how, folder, elsewhere=elsewhere, queue=queue)
    trainer = trainer_of(study, elastic, how, folder)
    inputs = inputs_of(elastic, how, space, questions[: rungs[-1]], trainer)
    progress_log = ProgressLog(how, lambda: gate.cost(space.largest))

    def judged(point: Point, points: list[Point]) -> None:
        if trainer is not None:
            trainer.forget(point.candidate)
        progress_log(point, points)

    def moved() -> str | None:
        return None if in_force() == how.limits else "other limits are in force"

    name = name_of(study, inputs | {"limits": asdict(how.limits)})
    with opened_among(url, folder, name, name_of(study, inputs)) as (shared, relatives):
        same_host(shared, gate.host)
        worker = Search(
            shared,
            space,
            how,
            rungs,
            Evaluators(gate.cost, _scorer(study, elastic, questions, trainer).f1),
            seed=seed_of(study),
            shared=url is not None,
            watch_progress=judged,
            enough=moved,
        )
        worker.adopt(other for other in relatives if is_of_host(other, gate.host))
        found = SearchResult(how, worker.run(), gate.cost(space.largest))
        write(found, inputs, seed_of(study), folder)
    return found


def _scorer(
    study: Study, elastic: Elastic, questions: Sequence[Item], trainer: Trainer | None
) -> Scorer:
    if trainer is not None:
        return SliceScorer(trainer.student, study.tokenizer, questions)
    if loop.device().type == "cuda":
        return NetScorer(elastic.net, study.tokenizer, questions)
    return SliceScorer(elastic.slice, study.tokenizer, questions)


def trainer_of(study: Study, elastic: Elastic, how: SearchConfig, folder: Path) -> Trainer | None:
    """Return what trains the candidates; None: they are slices."""
    if how.training is None:
        return None
    return Trainer(
        study,
        elastic.graph_shape.layers,
        how.training.train,
        seed_of(study),
        folder / "trainings",
        elastic.config.base,
    )


def measure_costs(study: Study) -> dict[str, int]:
    """Measure latency and size of every shape of every space on this host; nothing need be trained.

    Returns how many shapes each elastic student has.
    """
    how, found = how_of(study), {}
    for name, elastic in study.elastics.items():
        gate = gate_of(elastic, how, study.search_folder(name))
        wanted = costs.shapes(space_of(elastic, how))
        progress = Progress(f"costs of {name}", len(wanted))
        for candidate in wanted:
            gate.cost(candidate)
            progress.step()
        found[name] = len(wanted)
    return found


def gate_of(
    elastic: Elastic,
    how: SearchConfig,
    folder: Path,
    *,
    elsewhere: bool = False,
    queue: CostQueue | None = None,
) -> CostGate:
    """Return the cost gate of an elastic student; it measures into the folder of the search."""
    return CostGate(
        elastic.graph_shape,
        how.tokens,
        folder / "costs",
        elsewhere=elsewhere,
        queue=queue,
        patience_s=how.patience_s,
    )


def how_of(study: Study) -> SearchConfig:
    """Return the search settings of a study. Raises: ConfigError when it has no elastic student."""
    if not study.config.elastic:
        raise ConfigError(
            f"{study.config.name}: a search needs [elastic], the student that is sliced"
        )
    return study.config.search or SearchConfig()


def space_of(elastic: Elastic, how: SearchConfig) -> Space:
    """Return the space of the candidates, in which each has a recipe if it is trained on its own."""
    space = elastic.config.space.within(elastic.graph_shape.layers)
    return space.trained_by(how.training.space) if how.training else space


def seed_of(study: Study) -> int:
    how = study.config.search
    return study.config.seed if how is None or how.seed is None else how.seed


def inputs_of(
    elastic: Elastic,
    how: SearchConfig,
    space: Space,
    questions: Sequence[Item],
    trainer: Trainer | None = None,
) -> dict[str, Any]:
    """Return everything that the results of trials depend on; other inputs are another search.

    What is found out of a candidate does not depend on the limits.
    """
    asked = hashlib.sha256("\n".join(e.id for e in questions).encode()).hexdigest()
    made = {"trained": trainer.inputs} if trainer else {"elastic_sha256": sha256_of(elastic.file)}
    return {
        **made,
        "space": space.model_dump(mode="json"),
        "tokens": how.tokens,
        "rungs": how.questions,
        "promote": how.promote,
        "questions_sha256": asked,
    }


def name_of(study: Study, inputs: dict[str, Any]) -> str:
    """Return the name that trials are stored under; it changes with the inputs."""
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return f"{study.config.name}-{key[:12]}"


@dataclass
class ProgressLog:
    """Logs after each trial its outcome, the time left, and the best candidates so far."""

    how: SearchConfig
    reference: Callable[[], Cost]
    began: float = field(default_factory=time.monotonic)
    done: int = 0

    def __call__(self, point: Point, points: list[Point]) -> None:
        self.done += 1
        log.info("trial %d: %s: %s", point.trial, point.candidate.label, outcome(point, self.how))
        found = SearchResult(self.how, points, self.reference())
        shown = found.front
        if shown:
            shown = [shown[i] for i in pareto.subset(trials.objectives(shown), SHOWN)]
        log.info(
            "search: %d/%d, %.0f s left; Pareto front of %d, hypervolume %.3f: %s",
            len(points),
            self.how.trials,
            self._left_s(len(points)),
            len(found.front),
            found.hypervolume,
            " | ".join(_brief(p) for p in shown) or "no candidate is within the limits yet",
        )

    def _left_s(self, n: int) -> float:
        spent_s = time.monotonic() - self.began
        left_s = spent_s / self.done * max(0, self.how.trials - n)
        budget_s = (self.how.time_budget_min or float("inf")) * 60
        return min(left_s, max(0.0, budget_s - spent_s))


def outcome(point: Point, how: SearchConfig) -> str:
    reason = how.limits.reason(point)
    return f"{reason}, ended" if reason else _brief(point)


def _brief(point: Point) -> str:
    size = point.cost.size_bytes / MEGABYTE
    f1 = "" if point.best_f1 is None else f"F1 {point.best_f1:.3f} (n {point.questions}), "
    return f"{f1}{point.cost.p95_ms:.1f} ms, {size:.1f} MB"


def nothing_found(found: SearchResult) -> str | None:
    """Return a message if no candidate is within the limits; None: some are."""
    nearest = found.nearest
    if nearest is None:
        return None if found.points else "no candidate was tried"
    return (
        f"none of {len(found.points)} candidates is within the limits; the nearest is trial"
        f" {nearest.trial}, {nearest.candidate.label}, {_brief(nearest)}; the binding limit:"
        f" {found.how.limits.reason(nearest)}"
    )


def table_of(found: SearchResult) -> Table:
    shape = ("trial", "layers", "heads", "FFN", "width", "words", "tokens", "precision")
    recipe = [name for name, _ in found.points[0].candidate.recipe] if found.points else []
    title = f"Pareto front of {len(found.points)} candidates"
    table = Table(*shape, *recipe, "ms p95", "MB", "F1", "n", title=title)
    for p in found.front:
        table.add_row(
            str(p.trial),
            ",".join(map(str, p.candidate.layers)),
            str(p.candidate.heads),
            str(p.candidate.ffn),
            str(p.candidate.hidden or "all"),
            _words(p.candidate),
            p.candidate.tokens,
            p.candidate.precision,
            *(f"{value:g}" for _, value in p.candidate.recipe),
            f"{p.cost.p95_ms:.1f}",
            f"{p.cost.size_bytes / MEGABYTE:.1f}",
            f"{p.best_f1:.3f}",
            str(p.questions),
        )
    return table


def _words(candidate: Candidate) -> str:
    rank = f", rank {candidate.rank}" if candidate.rank else ""
    return f"{candidate.embedding_bits} bit{rank}"


def write(found: SearchResult, inputs: dict[str, Any], seed: int, folder: Path) -> None:
    """Write the files that later stages and the report read; the Pareto front last."""
    record = {
        **gist(found),
        "limits": asdict(found.how.limits),
        "reference": asdict(found.reference),
        "sampler": found.how.sampler,
        "seed": seed,
        "inputs": inputs,
        "host": asdict(profile.here()),
        "ran_on": provenance.ran_on(),
    }
    stages.write_json(folder / RECORD, record)
    stages.write_json(folder / TRIALS, [_row(p, found.how) for p in found.points])
    stages.write_json(folder / FRONT, [_row(p, found.how) for p in found.front])
    if kept := store.of(folder):
        kept.keep([folder / RECORD, folder / TRIALS, folder / FRONT])


def gist(found: SearchResult) -> dict[str, Any]:
    """Return the Pareto front and the number of candidates as plain data."""
    nearest = found.nearest
    return {
        "front": [_row(p, found.how) for p in found.front],
        "nearest": _row(nearest, found.how) if nearest else None,
        "candidates": len(found.points),
        "scored": sum(bool(p.f1) for p in found.points),
        "hypervolume": round(found.hypervolume, 5),
    }


def _row(point: Point, how: SearchConfig) -> dict[str, Any]:
    reason = how.limits.reason(point)
    return {
        "number": point.trial,
        "candidate": asdict(point.candidate),
        "p95_ms": point.cost.p95_ms,
        "size_bytes": point.cost.size_bytes,
        "f1": point.best_f1,
        "n_questions": point.questions or None,
        "f1_by_questions": {str(n): f1 for n, f1 in point.f1.items()},
        "rung": len(point.f1),  # 0: the cost gate
        "feasible": reason is None,
        "reason": reason,
        "seconds": point.seconds,
    }
