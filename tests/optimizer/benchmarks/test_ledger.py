"""What runs of a comparison share, and what each is charged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optimizer.benchmarks import ledger as compare_ledger
from optimizer.benchmarks.ledger import CachedEvaluator, EvaluationLedger, Meter
from optimizer.study.space import Candidate
from optimizer.study.trials import Cost

MEASURE_S, PER_QUESTION_S = 5.0, 0.1
SHALLOW, SAME_SHAPE, DEEP = (Candidate(layers, 2, 32) for layers in ((0,), (1,), (0, 1)))


@dataclass
class Bench:
    """Evaluates by a clock of its own, and counts. A scorer that remembers its last candidate."""

    now_s: float = 0.0
    measured: list[Candidate] = field(default_factory=list)
    asked: list[tuple[Candidate, int]] = field(default_factory=list)
    last: tuple[Candidate | None, int] = (None, 0)

    def clock(self) -> float:
        return self.now_s

    def cost(self, candidate: Candidate) -> Cost:
        self.measured.append(candidate)
        self.now_s += MEASURE_S
        return Cost(10.0 * len(candidate.layers), 1000)

    def f1(self, candidate: Candidate, n: int) -> float:
        self.asked.append((candidate, n))
        before = self.last[1] if self.last[0] == candidate else 0
        self.now_s += PER_QUESTION_S * (n - before)
        self.last = candidate, n
        return 0.5

    def judge(
        self, ledger: EvaluationLedger, extra_s: Callable[[], float] = lambda: 0.0
    ) -> CachedEvaluator:
        return CachedEvaluator(ledger, "costs", "slices", self.cost, self.f1, extra_s, self.clock)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[EvaluationLedger]:
    with compare_ledger.opened(tmp_path / "deep" / "ledger.db") as found:
        yield found


def meter(run: str, ledger: EvaluationLedger, bench: Bench, judge: CachedEvaluator) -> Meter:
    found = Meter(run, ledger, judge, bench.clock)
    found.start([])
    return found


def test_an_evaluation_is_made_once_and_charged_to_every_run(ledger: EvaluationLedger) -> None:
    """A second run would have taken as long by itself."""
    bench = Bench()
    judge = bench.judge(ledger)
    for name in ("a", "b"):
        run = meter(name, ledger, bench, judge)
        run.cost(SHALLOW)
        run.f1(SHALLOW, 40)
        run.f1(SHALLOW, 100)
        run.charge(0)
        assert run.spent_s == pytest.approx(MEASURE_S + 100 * PER_QUESTION_S)
    assert len(bench.measured) == 1
    assert bench.asked == [(SHALLOW, 40), (SHALLOW, 100)]


def test_a_shape_is_paid_for_once_a_run(ledger: EvaluationLedger) -> None:
    """Which layers it has makes no difference to the time; a run that goes on has paid already."""
    bench = Bench()
    run = meter("a", ledger, bench, bench.judge(ledger))
    assert run.cost(SHALLOW) == run.cost(SAME_SHAPE)
    run.charge(0)
    run.cost(DEEP)
    run.charge(1)
    assert ledger.charges("a") == pytest.approx({0: MEASURE_S, 1: MEASURE_S})


def test_the_samplers_own_time_is_charged(ledger: EvaluationLedger) -> None:
    """Minutes that a model of the space takes are minutes."""
    bench = Bench()
    run = meter("a", ledger, bench, bench.judge(ledger))
    run.cost(SHALLOW)
    run.charge(0)
    bench.now_s += 3.0
    run.cost(SHALLOW)
    run.charge(1)
    assert ledger.charges("a")[1] == pytest.approx(3.0)


def test_a_rung_costs_what_it_adds(ledger: EvaluationLedger) -> None:
    """Also where the lower one is known from before a kill, and all was asked anew."""
    first = Bench()
    meter("a", ledger, first, first.judge(ledger)).f1(SHALLOW, 40)
    again = Bench()
    run = meter("a", ledger, again, again.judge(ledger))
    run.f1(SHALLOW, 40)
    run.f1(SHALLOW, 100)
    run.charge(0)
    assert again.asked == [(SHALLOW, 100)]
    assert run.spent_s == pytest.approx(100 * PER_QUESTION_S)


def test_a_training_that_was_done_before_a_kill_is_charged(ledger: EvaluationLedger) -> None:
    """It was finished, but nothing had been asked yet."""
    bench, late = Bench(), [60.0]
    judge = bench.judge(ledger, lambda: late.pop() if late else 0.0)
    run = meter("a", ledger, bench, judge)
    run.f1(SHALLOW, 40)
    run.charge(0)
    assert run.spent_s == pytest.approx(60 + 40 * PER_QUESTION_S)


def test_results_outlive_the_process(tmp_path: Path) -> None:
    """And runs of other inputs have their own."""
    path, bench = tmp_path / "ledger.db", Bench()
    with compare_ledger.opened(path) as ledger:
        bench.judge(ledger).cost(SHALLOW)
        ledger.charge("a", 3, 1.5)
    with compare_ledger.opened(path) as ledger:
        assert bench.judge(ledger).cost(SHALLOW) == (Cost(10.0, 1000), MEASURE_S)
        assert (ledger.charges("a"), ledger.charges("b")) == ({3: 1.5}, {})
        other = CachedEvaluator(ledger, "others", "slices", bench.cost, bench.f1)
        other.cost(SHALLOW)
    assert len(bench.measured) == 2
