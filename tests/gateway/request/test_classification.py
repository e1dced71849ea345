"""Texts to classify on the path of every request: the task's own plans, floors and labels."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.catalog.schema import QA
from gateway.catalog.store import Catalog
from gateway.domain import Question, Reason, SloPolicy, SloRequest, SloViolation, Texts
from gateway.errors import (
    BackendUnavailable,
    BertierError,
    EmptyText,
    InvalidField,
    InvalidHeader,
    TextTooLong,
    UnknownRequest,
    UnknownTask,
    UnknownVariant,
)
from gateway.observability.metrics import Metrics
from gateway.request.feedback import Truth
from gateway.request.service import AnswerService
from tests.fakes import (
    CONTEXT,
    QUESTION,
    TOPIC,
    FakeBackend,
    make_cascade,
    patient,
    serving_set,
    small_and_large,
    with_entails,
    with_topic,
)

MIXED = with_topic(small_and_large())
ASKED = Question(QUESTION, CONTEXT)
TEXT = Texts("The boat left.")
ANY = SloRequest(latency_ms=60_000)


def make_service(
    backend: FakeBackend | None = None, catalog: Catalog = MIXED, **settings: Any
) -> AnswerService:
    service = AnswerService(
        backend or FakeBackend(), patient(**settings), Metrics(), clock=lambda: 0.0
    )
    service.serving = serving_set(catalog)
    return service


async def test_a_mixed_repository_answers_both() -> None:
    """Each request goes to the plans of its own task, whatever the others certify."""
    service = make_service(backend := FakeBackend())
    classified = await service.answer(TEXT, ANY, 0.0)
    answered = await service.answer(ASKED, ANY, 0.0)
    assert (classified.answer.label, classified.variant) == ("sport", "topic-large")
    assert [s.label for s in classified.answer.scores] == ["sport", "city", "river"]
    assert (answered.answer.text, answered.variant) == ("The", "large")
    assert backend.asked == ["topic-large", "large"]


@pytest.mark.parametrize(
    ("request_", "variant"),
    [
        (ANY, "topic-large"),  # the default floor: the task's best, 0.9, less the class's allowance
        (replace(ANY, min_f1=0.8), "topic-small"),
        (replace(ANY, min_f1=0.85), "topic-large"),
        (replace(ANY, min_f1=0.1, variant="topic-large"), "topic-large"),
    ],
)
async def test_the_floor_is_that_of_the_task(request_: SloRequest, variant: str) -> None:
    """A certified accuracy says nothing of a certified F1."""
    classified = await make_service().answer(TEXT, request_, 0.0)
    assert (classified.variant, classified.met) == (variant, "true")
    assert classified.slo.task == "topic"


async def test_questions_are_routed_as_without_a_classification() -> None:
    """A cheap classifier with a high floor is no plan for a question."""
    report = await make_service().plan(replace(ANY, min_f1=0.6))
    assert {c.option.plan.name for c in report.candidates} == {"small", "large"}
    assert (await make_service().answer(ASKED, ANY, 0.0)).slo.min_f1 == pytest.approx(0.68)


async def test_work_of_another_task_counts() -> None:
    """All tasks share the cores: a busy classifier makes questions wait, and they go to a smaller model."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(backend)
    busy = [asyncio.create_task(service.answer(TEXT, ANY, 0.0)) for _ in range(4)]
    await backend.until_asked(2)  # of two cores
    report = await service.plan(SloRequest(latency_ms=40, min_f1=0.6))
    assert report.decision.option is not None
    assert report.decision.option.plan.name == "small"
    assert backend.gate is not None
    backend.gate.set()
    await asyncio.gather(*busy)


@pytest.mark.parametrize(
    ("logit", "variant", "asked"),
    [(6.0, "topic-small", 1), (1.0, "topic-large", 2)],
)
async def test_a_cascade_escalates_where_the_label_is_doubted(
    logit: float, variant: str, asked: int
) -> None:
    """The calibrated probability of the label is the score that thresholds are about."""
    small, large = (v for v in MIXED.variants if v.task == "topic")
    cascade = make_cascade([small, large], 0.85, threshold=0.7, reach=[1.0, 0.1])
    plans = tuple(p for p in MIXED.plans if p.name != "topic-large")
    direct = replace(MIXED.direct("topic-large"), name="topic-large")
    catalog = replace(MIXED, plans=(*plans, cascade, direct))
    backend = FakeBackend()
    backend.logits["topic-small"] = logit
    service = make_service(backend, catalog)
    classified = await service.answer(TEXT, replace(ANY, min_f1=0.85), 0.0)
    assert classified.option.plan.name == "topic-small-topic-large"
    assert (classified.variant, len(backend.asked)) == (variant, asked)


async def test_a_text_that_is_cut_is_answered_in_part() -> None:
    """No certificate covers half a text."""
    classified = await make_service().answer(Texts("river " * 500), ANY, 0.0)
    assert classified.violations == (SloViolation.PARTIAL,)


async def test_an_answer_is_cached_for_its_task_alone() -> None:
    """The same text may be asked of another task."""
    catalog = with_topic(with_entails(small_and_large()))
    service = make_service(backend := FakeBackend(), catalog, cache_bytes=1_000_000)
    pair = Texts("Boats swim.", "They float.", task="entails")
    first = await service.answer(pair, ANY, 0.0)
    again = await service.answer(pair, ANY, 0.0)
    await service.answer(Texts("Boats swim.", task="topic"), ANY, 0.0)
    assert again.age_ms == 0.0
    assert again.answer == first.answer
    assert backend.asked == ["entails-small", "topic-large"]


async def test_a_repository_without_questions_serves() -> None:
    """A team that classifies needs no question-answering model."""
    service = make_service(catalog=MIXED.only("topic"))
    assert (await service.answer(TEXT, ANY, 0.0)).variant == "topic-large"
    with pytest.raises(UnknownTask, match="no question-answering model, only classifications"):
        await service.answer(ASKED, ANY, 0.0)


@pytest.mark.parametrize(
    ("catalog", "texts", "request_", "error", "message"),
    [
        (small_and_large(), TEXT, ANY, UnknownTask, "this repository answers questions only"),
        (
            MIXED,
            replace(TEXT, task="mood"),
            ANY,
            UnknownTask,
            "'mood' is not served; served: topic",
        ),
        (MIXED, replace(TEXT, task=QA), ANY, InvalidField, "'qa' answers questions"),
        (with_entails(MIXED), TEXT, ANY, InvalidField, "send one of topic, entails"),
        (MIXED, Texts("a", "b"), ANY, InvalidField, "text_pair: the task topic classifies one"),
        (
            with_entails(MIXED),
            Texts("a", task="entails"),
            ANY,
            InvalidField,
            "text_pair: missing; the task entails",
        ),
        (MIXED, Texts(" "), ANY, EmptyText, "text: empty"),
        (MIXED, Texts("a" * 300_000), ANY, TextTooLong, "text: 300000 characters"),
        (
            MIXED,
            TEXT,
            replace(ANY, min_answerable_f1=0.1),
            InvalidHeader,
            "SLO-Min-Answerable-F1: '0.1' is not allowed; allowed: none with a classification",
        ),
        (MIXED, TEXT, replace(ANY, variant="large"), UnknownVariant, "is of the task 'qa'"),
        (MIXED, TEXT, replace(ANY, variant="huge"), UnknownVariant, "is not served; served: topic"),
    ],
)
async def test_what_cannot_be_classified_is_refused(
    catalog: Catalog,
    texts: Texts,
    request_: SloRequest,
    error: type[BertierError],
    message: str,
) -> None:
    """The error says what to change, before any model is asked."""
    service = make_service(backend := FakeBackend(), catalog)
    with pytest.raises(error) as refused:
        await service.answer(texts, request_, 0.0)
    assert message in str(refused.value)
    assert backend.asked == []
    assert service.admission.in_flight == 0


async def test_a_question_may_not_pin_a_classifier() -> None:
    """It would be answered by labels."""
    with pytest.raises(UnknownVariant, match="'topic-small' is of the task 'topic'"):
        await make_service().answer(ASKED, replace(ANY, variant="topic-small"), 0.0)


async def test_a_task_whose_models_all_fail_is_not_ready_alone() -> None:
    """The others are served on."""
    service = make_service()
    assert service.serving is not None
    lost = dict.fromkeys(("topic-small", "topic-large"), "lost")
    service.serving = service.serving.without(lost)
    with pytest.raises(BackendUnavailable):
        await service.answer(TEXT, ANY, 0.0)
    assert (await service.answer(ASKED, ANY, 0.0)).variant == "large"


async def test_the_only_classification_is_admitted_with_its_floor() -> None:
    """What no plan can meet now is refused before its body is read, as a question is."""
    service = make_service()
    admission = await service.admit(ANY, "http", None)
    service.leave(admission)
    assert admission.slo.min_f1 == pytest.approx(0.88)
    assert admission.slo.task == "topic"


async def test_of_several_classifications_one_is_admitted_before_it_is_known() -> None:
    """The task stands in the body; until it is read no floor may refuse the request."""
    service = make_service(catalog=with_entails(MIXED))
    strict = SloRequest(latency_ms=60_000, policy=SloPolicy.STRICT)
    admission = await service.admit(strict, "http", None)
    assert (admission.slo.min_f1, admission.slo.task) == (0.0, "")
    named = replace(TEXT, task="topic")
    classified = await service.answer(named, strict, 0.0, admission=admission)
    service.leave(admission)
    assert classified.slo.min_f1 == pytest.approx(0.88)
    assert classified.slo.task == "topic"
    assert classified.decision.reason is Reason.MEETS_SLO


async def test_a_plan_can_be_asked_for() -> None:
    """A caller sees what a classification would get, without one."""
    service = make_service(backend := FakeBackend())
    named = await service.plan(ANY, n_tokens=1_000, task="topic")
    sized = await service.plan(ANY, TEXT)
    assert {c.option.plan.name for c in named.candidates} == {"topic-small", "topic-large"}
    assert (named.size.bucket, named.size.n_windows) == (384, 1)
    assert sized.size.bucket == 64
    assert backend.asked == []


async def test_feedback_is_of_questions_alone() -> None:
    """F1 of a label would be no number anybody asked for."""
    service = make_service(feedback_requests=10)
    await service.answer(replace(TEXT, id="a"), ANY, 0.0)
    with pytest.raises(UnknownRequest):
        await service.feedback.report(("", "a"), Truth(right=True))


def test_a_part_lives_as_long_as_a_request_uses_it() -> None:
    """Parts and whole hold no cycle: what is replaced is gone at once, and its models can be unloaded."""
    import gc
    import weakref

    serving = serving_set(MIXED)
    seen = weakref.ref(serving)
    part = serving.of(TOPIC.name)
    kept = weakref.ref(part)
    gc.disable()
    try:
        del serving
        assert seen() is None
        assert kept() is part
        del part
        assert kept() is None
    finally:
        gc.enable()
