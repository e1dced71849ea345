"""Long contexts: the promising windows first, and what was read in time is an answer."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gateway.catalog.schema import Variant
from gateway.clock import now_ms
from gateway.domain import Inference, Question, SloPolicy, SloRequest, SloViolation, Windows
from gateway.errors import BackendError, DeadlineExceeded, Overloaded
from gateway.observability.metrics import Metrics
from gateway.request import long_context
from gateway.request.service import AnswerService
from gateway.settings import Settings
from tests.fakes import (
    CONTEXT,
    QUESTION,
    FakeBackend,
    encoder,
    make_catalog,
    make_variant,
    serving_set,
    small_and_large,
)

FILLER = "Nothing of any interest is said in this place. " * 150
WHOLE = FILLER + CONTEXT + " " + FILLER
EXAMPLE_QUESTION = Question(QUESTION, WHOLE)
WINDOWS = encoder().encode(EXAMPLE_QUESTION)
AMPLE_MS = 60_000.0


class Halting(FakeBackend):
    """Answers some windows, and holds all others until it is cancelled."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self.answers = answers

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.gate = asyncio.Event() if len(self.asked) >= self.answers else None
        return await super().infer(variant, windows, budget_ms)


def make_service(backend: FakeBackend, clock_ms: float | None = None) -> AnswerService:
    clock = now_ms if clock_ms is None else (lambda: clock_ms)
    service = AnswerService(backend, Settings(), Metrics(), clock)
    service.serving = serving_set(small_and_large())
    return service


def test_the_window_with_the_question_s_words_is_asked_first() -> None:
    """It most likely holds the answer; what all windows have says nothing."""
    order = long_context.rank(WINDOWS)
    assert sorted(order) == list(range(WINDOWS.n_windows))
    begin, end = WHOLE.index(CONTEXT), WHOLE.index(CONTEXT) + len(CONTEXT)
    first = WINDOWS.offsets[order[0]][WINDOWS.is_context[order[0]]]
    assert first[:, 0].min() < end
    assert first[:, 1].max() > begin


def test_windows_with_equal_scores_keep_the_order_of_the_text() -> None:
    """The same request is asked in the same order, always."""
    windows = encoder().encode(Question("Xylophone?", FILLER * 2))
    assert list(long_context.rank(windows)) == list(range(windows.n_windows))


@pytest.mark.parametrize("batch_invariant", [False, True])
async def test_all_windows_come_back_in_the_order_of_the_text(batch_invariant: bool) -> None:
    """The order of asking must not show in the answer."""

    class Telling(FakeBackend):
        async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
            found = await super().infer(variant, windows, budget_ms)
            found.spans.start[:] = windows.input_ids
            return found

    variant, order = (
        make_variant("v", 1, batch_invariant=batch_invariant),
        long_context.rank(WINDOWS),
    )
    windows, found = await long_context.infer(
        Telling(), variant, WINDOWS, order, AMPLE_MS, partial=True
    )
    np.testing.assert_array_equal(windows.input_ids, WINDOWS.input_ids)
    np.testing.assert_array_equal(found.spans.start, WINDOWS.input_ids.astype(np.float32))
    assert found.n_batches == -(-WINDOWS.n_windows // variant.max_batch)


async def test_what_was_read_when_the_time_is_short_is_the_answer_and_says_so() -> None:
    """The rest is cancelled at the model server."""
    backend = Halting(answers=2)
    service = make_service(backend)
    answered = await service.answer(
        EXAMPLE_QUESTION, SloRequest(variant="small", latency_ms=60_000, timeout_ms=3_000), now_ms()
    )
    assert answered.violations[-1] is SloViolation.PARTIAL
    assert answered.answer.text in WHOLE
    assert backend.cancelled == len(backend.asked) - 2 > 0
    labels = {"slo_class": "standard"}
    registry = service.metrics.registry
    assert registry.get_sample_value("bertier_partial_answers_total", labels) == 1


async def test_strict_takes_no_part_for_the_whole() -> None:
    """Its floor was certified for the whole context."""
    strict = SloRequest(variant="small", latency_ms=1_500, policy=SloPolicy.STRICT, min_f1=0.1)
    with pytest.raises(DeadlineExceeded):
        await make_service(Halting(answers=2)).answer(EXAMPLE_QUESTION, strict, now_ms())


async def test_a_window_that_fails_fails_the_question() -> None:
    """Another variant can be asked: a failure is no lack of time."""
    backend = FakeBackend()
    backend.error = BackendError("broken")
    variant = make_variant("v", 1)
    order = long_context.rank(WINDOWS)
    with pytest.raises(BackendError, match="broken"):
        await long_context.infer(backend, variant, WINDOWS, order, AMPLE_MS, partial=True)


async def test_a_context_that_cannot_be_read_whole_in_time_is_read_in_part() -> None:
    """Its better half, or less, is better than a 429 that would come again on an idle system."""
    backend, catalog = FakeBackend(), make_catalog([make_variant("slow", 2_000)], [0.5])
    service = make_service(backend, clock_ms=0.0)
    service.serving = serving_set(catalog)
    with pytest.raises(Overloaded):  # not even one window
        await service.answer(EXAMPLE_QUESTION, SloRequest(timeout_ms=2_500), 0.0)
    asked = SloRequest(latency_ms=5_000, timeout_ms=9_000)
    answered = await service.answer(EXAMPLE_QUESTION, asked, 0.0)
    assert SloViolation.PARTIAL in answered.violations
    assert 0 < len(backend.asked) < WINDOWS.n_windows
