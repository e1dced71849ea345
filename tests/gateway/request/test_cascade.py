"""Plans of several variants: when the next one is asked, and what becomes of the answer at hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from gateway.catalog.schema import Decoding, Variant
from gateway.domain import (
    Answer,
    Answered,
    Decision,
    Inference,
    Option,
    Question,
    Reason,
    Slo,
    SloPolicy,
    SloRequest,
    SloViolation,
    Timings,
    Trust,
    Windows,
)
from gateway.errors import BackendError
from gateway.observability.decision_log import DecisionLog
from gateway.observability.metrics import Metrics
from gateway.observability.observer import Observer
from gateway.request.cascade import Cascade, Job, Outcome, final_violations
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests import virtual_time
from tests.fakes import (
    CONTEXT,
    QUESTION,
    FakeBackend,
    encoder,
    make_cascade,
    make_catalog,
    make_variant,
    serving_set,
)

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
CASCADE = SloRequest(min_f1=0.65, latency_ms=1000)  # what only the cascade and `large` keep
SURE, UNSURE = 2.0, -2.0  # logits of scores


def make_service(
    backend: FakeBackend,
    small: float = UNSURE,
    middle: float = UNSURE,
    stages: int = 2,
    small_ms: float = 5.0,
    clock: Callable[[], float] = lambda: 0.0,  # a busy host teaches no latencies
) -> AnswerService:
    """Return a service of variants with the given confidences, and a cascade of the first ones and `large`."""
    scores = {"small": small, "middle": middle, "large": UNSURE}
    times = {"small": small_ms, "middle": 35.0, "large": 40.0}
    variants = [
        replace(make_variant(name, ms), decoding=_decoding(scores[name]))
        for name, ms in times.items()
    ]
    catalog = make_catalog(variants, [0.5, 0.6, 0.7])
    chain = [variants[0], *variants[1:][-(stages - 1) :]]
    cascade = make_cascade(chain, 0.68, threshold=0.5, reach=(1.0, 0.2, 0.1)[:stages])
    service = AnswerService(backend, Settings(), Metrics(), clock)
    service.serving = serving_set(replace(catalog, plans=(*catalog.plans, cascade)))
    return service


def _decoding(score_logit: float) -> Decoding:
    row = (score_logit, 0.0, 0.0)
    return Decoding(null_threshold=100.0, score_weights=(row, row))


def counted(service: AnswerService, outcome: str) -> float:
    plans = [p.name for p in service.serving.plans()] if service.serving else []
    values = [
        service.metrics.registry.get_sample_value(
            "bertier_escalations_total", {"plan": plan, "outcome": outcome}
        )
        for plan in plans
    ]
    return sum(value or 0.0 for value in values)


async def test_a_sure_answer_is_kept() -> None:
    """The larger variant costs nothing where it is not needed."""
    backend = FakeBackend()
    service = make_service(backend, small=SURE)
    answered = await service.answer(EXAMPLE_QUESTION, CASCADE, 0.0)
    assert (backend.asked, answered.variant, answered.violations) == (["small"], "small", ())
    assert answered.option.plan.variants == ("small", "large")
    assert (counted(service, "kept"), counted(service, "escalated")) == (1, 0)


async def test_a_doubted_answer_is_asked_of_the_next_variant() -> None:
    """Its answer counts, windows are those of the first, and every stage is learnt from."""
    backend = FakeBackend()
    service = make_service(backend)
    answered = await service.answer(EXAMPLE_QUESTION, CASCADE, 0.0)
    assert (backend.asked, answered.variant, answered.violations) == (
        ["small", "large"],
        "large",
        (),
    )
    assert backend.windows[0] is backend.windows[1]
    assert counted(service, "escalated") == 1
    for variant in ("small", "large"):
        labels = {"variant": variant}
        count = "bertier_latency_prediction_ratio_count"
        assert service.metrics.registry.get_sample_value(count, labels) == 1
    assert service.serving is not None
    assert not service.serving.latency.busy


async def test_an_answer_at_the_threshold_is_sure_enough() -> None:
    """`Below` compares as the certificate did."""
    backend = FakeBackend()
    answered = await make_service(backend, small=0.0).answer(EXAMPLE_QUESTION, CASCADE, 0.0)
    assert (answered.answer.score, backend.asked) == (0.5, ["small"])


async def test_a_cascade_of_three_stops_where_it_is_sure() -> None:
    """Each stage is left once."""
    backend = FakeBackend()
    service = make_service(backend, middle=SURE, stages=3)
    answered = await service.answer(EXAMPLE_QUESTION, CASCADE, 0.0)
    assert (backend.asked, answered.variant) == (["small", "middle"], "middle")
    assert (counted(service, "escalated"), counted(service, "kept")) == (1, 1)


class Slow(FakeBackend):
    """A backend whose answers move the clock."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms, self.now_ms = ms, 0.0

    async def infer(self, *asked: object) -> object:  # type: ignore[override]
        self.now_ms += self.ms
        return await super().infer(*asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        (SloPolicy.PREFER_LATENCY, ["small"]),
        (SloPolicy.STRICT, ["small"]),
        (SloPolicy.PREFER_ACCURACY, ["small", "large"]),
    ],
)
async def test_an_escalation_that_would_be_late_is_cut_unless_accuracy_comes_first(
    policy: SloPolicy, asked: list[str]
) -> None:
    """The target binds; who prefers accuracy has up to the deadline."""
    backend = Slow(200.0)  # of 260: the rest does not cover what 40 ms may take on a slow host
    service = make_service(backend, small_ms=30.0, clock=lambda: backend.now_ms)
    answered = await service.answer(
        EXAMPLE_QUESTION, SloRequest(min_f1=0.65, latency_ms=260, policy=policy), 0.0
    )
    assert backend.asked == asked
    assert (SloViolation.ESCALATION_CUT in answered.violations) == (asked == ["small"])
    assert answered.variant == asked[-1]
    assert counted(service, "cut") == (asked == ["small"])


class Timed(FakeBackend):
    """A backend whose `large` takes its time, and `small` 10 ms."""

    def __init__(self, large_ms: float) -> None:
        super().__init__()
        self.large_ms = large_ms

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        await asyncio.sleep((self.large_ms if variant.name == "large" else 10.0) / 1e3)
        return await super().infer(variant, windows, budget_ms)


@pytest.mark.parametrize(
    ("large_ms", "variant", "violations", "at_ms"),
    [
        (3690.0, "large", (SloViolation.LATE,), 3700.0),
        (1e6, "small", (SloViolation.LATE, SloViolation.ESCALATION_CUT), 3800.0),
    ],
)
def test_an_escalation_may_take_all_but_a_twentieth_of_the_deadline(
    large_ms: float, variant: str, violations: object, at_ms: float
) -> None:
    """A variant that hangs costs the certificate, not the answer at hand; a slow one is waited for."""

    async def ask(clock: Callable[[], float]) -> tuple[Answered, float]:
        await asyncio.sleep(7)
        began_ms = clock()
        service = make_service(Timed(large_ms), clock=clock)
        answered = await service.answer(
            EXAMPLE_QUESTION, replace(CASCADE, timeout_ms=4000), began_ms
        )
        assert counted(service, "cut") == (variant == "small")
        return answered, clock() - began_ms

    answered, took_ms = virtual_time.run(ask)
    assert (answered.variant, answered.violations) == (variant, violations)
    assert took_ms == pytest.approx(at_ms, abs=2)


async def test_a_next_variant_that_fails_leaves_the_answer_at_hand(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its breaker hears of it, no retry is spent, and the log says why."""
    backend = FakeBackend()
    service = make_service(backend)
    backend.errors["large"] = BackendError("large: broken")
    for _ in range(3):
        answered = await service.answer(EXAMPLE_QUESTION, CASCADE, 0.0)
        assert (answered.variant, answered.violations) == ("small", (SloViolation.ESCALATION_CUT,))
    assert service.serving is not None
    assert "large" in service.serving.breakers.failing(0.0)
    retries = service.metrics.registry.get_sample_value(
        "bertier_retries_total", {"outcome": "retried"}
    )
    assert not retries
    cause = "large: no escalation, the answer at hand is returned: BackendError('large: broken')"
    assert [r.getMessage() for r in caplog.records] == [
        *[cause] * 2,
        "large: it fails: circuit open for 1 s",
        cause,
    ]


async def test_a_first_variant_that_fails_is_left_out_of_the_second_choice() -> None:
    """The others of its cascade are not to blame."""
    backend = FakeBackend()
    service = make_service(backend)
    backend.errors["small"] = BackendError("small: broken")
    answered = await service.answer(EXAMPLE_QUESTION, CASCADE, 0.0)
    assert (backend.asked, answered.variant, answered.violations) == (
        ["small", "large"],
        "large",
        (),
    )
    assert answered.option.plan.variants == ("large",)


class Queued(FakeBackend):
    """A backend that takes 100 ms, then 200, of which each waits 30 in its queue."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets_ms: list[float] = []

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.budgets_ms.append(budget_ms)
        await asyncio.sleep(0.1 * len(self.budgets_ms))
        return replace(await super().infer(variant, windows, budget_ms), queue_ms=30.0)


class Watching(Observer):
    """Notes the stages of a request; decoding takes 7 ms."""

    def __init__(self) -> None:
        super().__init__(Metrics(), DecisionLog(None, print), lambda: 0.0)
        self.stages: list[tuple[str, str]] = []

    @contextmanager
    def stage(self, name: str, variant: str = "") -> Iterator[None]:
        self.stages.append((name, variant))
        loop = asyncio.get_running_loop()
        if name == "decode" and isinstance(loop, virtual_time.VirtualLoop):
            loop.pass_by(0.007)
        yield


PATIENT = Slo(1000.0, 0.65, SloPolicy.PREFER_ACCURACY, 4000.0, "standard")


async def ask_cascade(
    backend: FakeBackend,
    observer: Observer,
    clock: Callable[[], float],
    slo: Slo = PATIENT,
    failing: tuple[str, ...] = (),
) -> Outcome:
    """Ask `small`, then `large`, for a request that arrived at 5 ms."""
    serving = make_service(backend).serving
    assert serving is not None
    for variant in failing:
        serving.breakers.of(variant).trip(clock())
    job = Job(
        EXAMPLE_QUESTION,
        slo,
        serving,
        encoder().encode(EXAMPLE_QUESTION),
        5.0,
        6.0,
        9.0,
        sampled=False,
    )
    option = Option(serving.catalog.plans[-1], Trust.CERTIFIED, 1, 5.0, 5.0, 5.0)
    return await Cascade(backend, observer, clock).answer(job, option)


def test_the_time_of_an_answer_is_reported_by_stage() -> None:
    """Summed over both variants; each gets what is left of the deadline."""
    backend = Queued()

    async def ask(clock: Callable[[], float]) -> tuple[Outcome, list[tuple[str, str]]]:
        observer = Watching()
        await asyncio.sleep(0.015)
        return await ask_cascade(backend, observer, clock), observer.stages

    outcome, stages = virtual_time.run(ask)
    assert (outcome.variant, outcome.cut, outcome.partial) == ("large", False, False)
    assert tuple(outcome.timings) == pytest.approx((3, 6, 60, 240, 14, 0))
    assert backend.budgets_ms == pytest.approx([4000 - 10, 4000 - 10 - 107])
    assert stages == [
        ("infer", "small"),
        ("decode", "small"),
        ("infer", "large"),
        ("decode", "large"),
    ]


async def test_a_variant_that_began_to_fail_meanwhile_is_not_escalated_to() -> None:
    """The plan was chosen before; the answer at hand is returned at once."""
    backend = FakeBackend()
    outcome = await ask_cascade(backend, Watching(), lambda: 10.0, failing=("large",))
    assert (backend.asked, outcome.variant, outcome.cut) == (["small"], "small", True)
    assert outcome.first is outcome.answer


@pytest.mark.parametrize(
    ("policy", "asked"),
    [(SloPolicy.STRICT, ["small"]), (SloPolicy.PREFER_LATENCY, ["small", "large"])],
)
async def test_strict_escalates_only_where_the_p99_is_in_time(
    policy: SloPolicy, asked: list[str]
) -> None:
    """98 ms are left, `large` has a P95 of about 73 and a P99 of about 115."""
    backend = Slow(7.0)
    slo = replace(PATIENT, latency_ms=100.0, timeout_ms=100.0, policy=policy)
    outcome = await ask_cascade(backend, Watching(), lambda: backend.now_ms, slo)
    assert (backend.asked, outcome.cut) == (asked, asked == ["small"])


LATE, FLOOR = SloViolation.LATE, SloViolation.BELOW_FLOOR
CUT, PARTIAL = SloViolation.ESCALATION_CUT, SloViolation.PARTIAL


@pytest.mark.parametrize(
    ("predicted", "late", "cut", "partial", "final"),
    [
        ((), False, False, False, ()),
        ((FLOOR, LATE), False, False, False, (FLOOR,)),
        ((FLOOR,), True, False, False, (LATE, FLOOR)),
        ((), False, True, False, (CUT,)),
        ((LATE, FLOOR), True, True, True, (LATE, FLOOR, CUT, PARTIAL)),
    ],
)
def test_lateness_is_measured_in_the_end(
    predicted: tuple[SloViolation, ...],
    late: bool,
    cut: bool,
    partial: bool,
    final: tuple[SloViolation, ...],
) -> None:
    """An answer that came in time was not late, whatever was predicted."""
    answer = Answer("", None, None, 0.5, 0.5)
    outcome = Outcome(answer, "small", answer, cut, partial, Timings())
    decision = Decision(None, Reason.MEETS_SLO, predicted)
    assert final_violations(decision, outcome, late=late) == final
