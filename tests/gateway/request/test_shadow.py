"""Shadow answers: whom they judge, when they are asked, and what follows from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from math import log10

import numpy as np
import pytest

from gateway.catalog.schema import Agreement, Confidence, Variant
from gateway.catalog.store import Catalog
from gateway.clock import now_ms
from gateway.domain import (
    Answer,
    Inference,
    Question,
    Size,
    Slo,
    SloPolicy,
    SloRequest,
    Timings,
    Trust,
    Windows,
)
from gateway.errors import BackendError, Infeasible
from gateway.lifecycle.readiness import catalog_report
from gateway.monitoring.sequential_tests import BLOCK, OPEN_FOR
from gateway.observability.metrics import Metrics
from gateway.qa.codec import MAX_ANSWER_TOKENS
from gateway.request.cascade import Job, Outcome
from gateway.request.service import AnswerService
from gateway.request.shadow import DEADLINE_MS, MOST_WAITING
from tests.fakes import (
    CONTEXT,
    HOST,
    QUESTION,
    FakeBackend,
    encoder,
    patient,
    serving_set,
    small_and_large,
)

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
ANY = SloRequest(min_f1=0.4)  # the floor of `small`
EXPECTED = Agreement("large", 1000, 4000, 0.9, 0.85, 0.9, 0.85, HOST)
SURE = Confidence((0.5,), (0.1,), (0.05,), (0.15,), 1000, 4000, HOST)


class OtherLarge(FakeBackend):
    """`large` finds the context's last token, unless set to agree; `small` the first."""

    def __init__(self, gate: asyncio.Event | None = None, *, agrees: bool = False) -> None:
        super().__init__(gate)
        self.agrees = agrees

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        found = await super().infer(variant, windows, budget_ms)
        if variant.name == "large" and not self.agrees:
            at = int(np.flatnonzero(windows.is_context[0])[-1])
            found.spans.start[:] = found.spans.end[:] = 0
            found.spans.start[0, at] = found.spans.end[0, at] = 6.0
        return found


def watched_catalog() -> Catalog:
    """Return `small` and `large`; of `small` it is known how it agrees with `large`."""
    catalog = small_and_large()
    small, large = catalog.plans
    variants = tuple(replace(v, confidence=SURE) for v in catalog.variants)
    return replace(catalog, plans=(replace(small, agreement=EXPECTED), large), variants=variants)


def watched_service(
    backend: FakeBackend, catalog: Catalog | None = None, draws: Iterator[float] | None = None
) -> AnswerService:
    draw = partial(next, draws or repeat(0.0))
    service = AnswerService(backend, patient(shadow_share=0.5), Metrics(), draw=draw)
    service.serving = service.shadow.follow(serving_set(catalog or watched_catalog()))
    return service


def count(service: AnswerService, name: str, **labels: str) -> float | None:
    return service.metrics.registry.get_sample_value(name, labels)


def shadows(service: AnswerService, outcome: str) -> float:
    return count(service, "bertier_shadow_total", plan="small", outcome=outcome) or 0.0


async def until_quiet(service: AnswerService) -> None:
    async with asyncio.timeout(10):
        await service.shadow.idle()


async def test_the_largest_variant_is_asked_after_the_answer() -> None:
    """And its answer is compared with the one that was given."""
    backend = OtherLarge(agrees=True)
    service = watched_service(backend)
    answered = await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    assert (answered.variant, backend.asked) == ("small", ["small"])
    await until_quiet(service)
    assert backend.asked == ["small", "large"]
    backend.agrees = False
    await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    await until_quiet(service)
    assert (shadows(service, "agreed"), shadows(service, "disagreed")) == (1, 1)


async def test_only_the_share_drawn_at_arrival_is_asked_twice() -> None:
    """A draw below the share; 0 turns it off."""
    backend = OtherLarge()
    service = watched_service(backend, draws=iter([0.6, 0.49, 0.5]))
    for _ in range(3):
        await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    await until_quiet(service)
    assert backend.asked.count("large") == 1
    off = AnswerService(backend, patient(shadow_share=0), Metrics())
    assert not any(off.shadow.drawn() for _ in range(1000))


async def test_what_says_nothing_of_a_plan_is_not_asked() -> None:
    """The largest itself, a pinned variant, and a plan of which the catalog does not say what to expect."""
    backend = OtherLarge()
    service = watched_service(backend)
    await service.answer(EXAMPLE_QUESTION, SloRequest(min_f1=0.6), now_ms())
    await service.answer(EXAMPLE_QUESTION, SloRequest(variant="small"), now_ms())
    service.serving = service.shadow.follow(serving_set(small_and_large()))
    await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    await until_quiet(service)
    assert backend.asked == ["large", "small", "small"]
    assert service.serving is not None
    plans = catalog_report(service.serving)["plans"]
    assert [plan["evidence"] for plan in plans] == [None, None]


async def test_shorter_answers_than_certified_test_no_certificate() -> None:
    """Else one caller who asks for one token breaks the certificates that all others go by."""
    backend = OtherLarge()
    service = watched_service(backend)
    for longest in (1, MAX_ANSWER_TOKENS - 1):
        await service.answer(replace(EXAMPLE_QUESTION, max_answer_tokens=longest), ANY, now_ms())
    await until_quiet(service)
    assert backend.asked == ["small", "small"]
    await service.answer(
        replace(EXAMPLE_QUESTION, max_answer_tokens=MAX_ANSWER_TOKENS), ANY, now_ms()
    )
    await until_quiet(service)
    assert backend.asked == ["small", "small", "small", "large"]


async def test_a_variant_that_answers_otherwise_here_judges_nobody() -> None:
    """Of an uncertified `large` every disagreement could be its own fault."""
    backend = OtherLarge()
    service = watched_service(backend)
    service.serving = service.shadow.follow(serving_set(watched_catalog(), Trust.UNCERTIFIED))
    await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    await until_quiet(service)
    assert backend.asked == ["small"]


async def test_it_waits_for_room_and_is_dropped_without() -> None:
    """As long as others are at work it would delay them; what is dropped is counted, for it is a bias."""
    now = [0.0]
    backend = OtherLarge()
    service = AnswerService(backend, patient(shadow_share=1), Metrics(), clock=lambda: now[0])
    service.serving = service.shadow.follow(serving_set(watched_catalog()))
    assert service.serving is not None
    other = service.serving.latency.begin("small", Size(128, 1), 0.0)
    await service.answer(EXAMPLE_QUESTION, ANY, 0.0)
    await asyncio.sleep(0)
    assert backend.asked == ["small"]
    now[0] = DEADLINE_MS
    await until_quiet(service)
    assert (backend.asked, shadows(service, "dropped")) == (["small"], 1)
    service.serving.latency.leave(other, now[0])
    await service.answer(EXAMPLE_QUESTION, ANY, now[0])
    await until_quiet(service)
    assert backend.asked == ["small", "small", "large"]


async def test_one_is_asked_at_a_time_and_few_wait() -> None:
    """It is work nobody waits for."""
    backend = OtherLarge()
    service = watched_service(backend)
    gate = asyncio.Event()
    await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    backend.gate = gate
    await backend.until_asked(2)  # the first sample is with `large`, and stays there
    backend.gate = None
    for _ in range(MOST_WAITING + 3):
        await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
    assert backend.asked.count("large") == 1
    assert shadows(service, "dropped") == 3
    gate.set()
    await until_quiet(service)
    assert backend.asked.count("large") == 1 + MOST_WAITING


async def test_a_shadow_that_fails_is_counted_and_harms_nobody() -> None:
    """Neither the request, which was answered, nor what is asked next."""
    backend = OtherLarge()
    backend.errors["large"] = BackendError("large: broken")
    service = watched_service(backend)
    for _ in range(2):
        answered = await service.answer(EXAMPLE_QUESTION, ANY, now_ms())
        assert answered.answer.text
        await until_quiet(service)
    assert shadows(service, "failed") == 2
    assert service.serving is not None
    assert not service.serving.latency.busy


async def test_every_window_of_a_long_context_is_asked_alone() -> None:
    """So that nobody waits for more than one of them, and the answer is the same."""
    backend = OtherLarge(agrees=True)
    service = watched_service(backend)
    long = Question(QUESTION, "Nothing is said here. " * 200 + CONTEXT)
    await service.answer(long, SloRequest(min_f1=0.4, latency_ms=60_000), now_ms())
    await until_quiet(service)
    assert backend.asked.count("large") == 4
    assert shadows(service, "agreed") == 1


async def break_small(service: AnswerService) -> None:
    """Let shadow answers disagree until the alarm rises."""
    for i in range(100):
        if count(service, "bertier_certificate_broken", plan="small"):
            return
        another = Question(QUESTION, f"{CONTEXT} ({i})")  # a text counts once
        await service.answer(another, SloRequest(min_f1=0), now_ms())
        await until_quiet(service)
    pytest.fail("the alarm did not rise")


async def test_a_broken_certificate_moves_requests_up(caplog: pytest.LogCaptureFixture) -> None:
    """Its floor does not count any more; a request without a floor still gets it, marked as uncertified."""
    service = watched_service(OtherLarge())
    assert (await service.answer(EXAMPLE_QUESTION, ANY, now_ms())).variant == "small"
    await break_small(service)
    assert "certify again" in caplog.text
    assert (await service.answer(EXAMPLE_QUESTION, ANY, now_ms())).variant == "large"
    evidence = count(service, "bertier_certificate_evidence", plan="small")
    assert evidence is not None
    assert evidence >= log10(1 / patient().shadow_delta)
    no_floor = await service.answer(EXAMPLE_QUESTION, SloRequest(min_f1=0), now_ms())
    assert (no_floor.variant, no_floor.violations) == ("small", ("uncertified",))
    strict = SloRequest(min_f1=0, latency_ms=1000, variant="small", policy=SloPolicy.STRICT)
    with pytest.raises(Infeasible):
        await service.answer(EXAMPLE_QUESTION, strict, now_ms())
    assert service.serving is not None
    report = catalog_report(service.serving)["plans"][0]
    assert (report["trust"], report["evidence"]["broken"]) == ("broken", True)


async def test_a_new_certificate_is_trusted_again() -> None:
    """And the same one, served again, is not."""
    service = watched_service(OtherLarge())
    await break_small(service)
    service.serving = service.shadow.follow(serving_set(watched_catalog()))
    assert (await service.answer(EXAMPLE_QUESTION, ANY, now_ms())).variant == "large"
    catalog = watched_catalog()
    small = replace(
        catalog.plans[0], certificate=replace(catalog.plans[0].certificate, n_contexts=999)
    )
    service.serving = service.shadow.follow(
        serving_set(replace(catalog, plans=(small, *catalog.plans[1:])))
    )
    assert count(service, "bertier_certificate_broken", plan="small") == 0
    assert (await service.answer(EXAMPLE_QUESTION, ANY, now_ms())).variant == "small"


@pytest.mark.parametrize(
    ("partial_answer", "cut", "compared", "counted"),
    [(False, False, 1, 1), (True, False, 0, 0), (False, True, 0, 1)],
)
async def test_partial_answers_and_cut_cascades_tell_nothing_of_a_plan(
    partial_answer: bool, cut: bool, compared: int, counted: int
) -> None:
    """No certificate covers an answer of a part; the first variant of a cut cascade answered as certified."""
    backend = OtherLarge()
    service = watched_service(backend)
    serving, plan = service.serving, watched_catalog().plans[0]
    assert serving is not None
    slo = Slo(1000.0, 0.0, SloPolicy.PREFER_LATENCY, 4000.0, "standard")
    job = Job(
        EXAMPLE_QUESTION,
        slo,
        serving,
        encoder().encode(EXAMPLE_QUESTION),
        0.0,
        0.0,
        0.0,
        sampled=True,
    )
    answer = Answer("", None, None, 0.3, 0.5)
    outcome = Outcome(answer, "small", answer, cut, partial_answer, Timings())
    service.shadow.watch(job, outcome, plan)
    await until_quiet(service)
    assert backend.asked.count("large") == compared
    test = service.shadow.certificate_tests.confidence["small"]
    for i in range(BLOCK + OPEN_FOR - 3):
        assert not test.add(i.to_bytes(4), 0.3, 60)
    assert test.add(b"last", 0.3, 60) is bool(counted)


async def test_a_shift_of_confidence_warns_and_reroutes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other questions are asked; whether answers suffer is for agreement to say."""
    service = watched_service(OtherLarge(agrees=True))
    unsure = Answer("", None, None, 0.3, 0.5)
    for i in range(400):
        service.shadow.answered("small", unsure, Question(QUESTION, f"{CONTEXT} {i}"), 60)
    assert count(service, "bertier_confidence_shifted", variant="small") == 1
    assert count(service, "bertier_confidence_shifted", variant="large") == 0
    assert caplog.text.count("other questions are asked") == 1
    assert (await service.answer(EXAMPLE_QUESTION, ANY, now_ms())).variant == "small"
