"""The service `bertier.v1.QuestionAnswering`: its messages to our values and back, and its calls."""

# ruff: noqa: N802  # the protocol names its calls

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from gateway.auth import access
from gateway.catalog.schema import QA
from gateway.domain import Answered, Asked, Question, Texts
from gateway.errors import BadInput, InvalidField, Malformed, Overloaded, kind_of
from gateway.frontends import slo_headers
from gateway.frontends.grpc.call import (
    Call,
    Calls,
    Context,
    abort,
    common_metadata,
    detail_of,
    log_failure,
    readable,
    status_of,
)
from gateway.frontends.grpc.questions import (
    options,
    slo_fields,
    to_parsed,
    to_response,
    with_shared_texts,
)
from gateway.frontends.parsed_question import ParsedQuestion
from gateway.frontends.slo_headers import MAX_ID_CHARS, MAX_PLAN_TOKENS
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.request.feedback import Truth
from gateway.request.service import PlanReport
from gateway.routing import explain

T = TypeVar("T")
SERVICE = pb.DESCRIPTOR.services_by_name["QuestionAnswering"]


class QuestionAnswering:
    """Answer, AnswerStream, AnswerMany, Plan and Feedback."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service

    async def Answer(
        self, request: pb.AnswerRequest | Malformed, context: Context
    ) -> pb.AnswerResponse:
        return await self._calls.run(context, request, slo_fields(request), self._one, task=QA)

    async def AnswerStream(
        self, requests: AsyncIterable[pb.AnswerRequest | Malformed], context: Context
    ) -> None:
        """Answer in input order; a failure is an item and does not end the stream."""
        call = await self._calls.begin_stream(context)

        async def work(request: pb.AnswerRequest | Malformed) -> pb.AnswerItem:
            return await self._item(request, call.again())

        limit = self._service.settings.max_concurrent_items
        await context.send_initial_metadata(common_metadata(call))
        await slo_headers.map_in_order(requests, work, context.write, limit)

    async def AnswerMany(self, request: pb.AnswerManyRequest | Malformed, context: Context) -> None:
        """Answer questions about the same texts, in their order; a failure is an item."""
        call = await self._calls.begin_stream(context)
        try:
            questions = with_shared_texts(readable(request), self._service.settings)
        except Exception as exc:  # noqa: BLE001  # one table maps every error
            await abort(context, call, exc)

        async def work(question: tuple[pb.AnswerRequest, BadInput | None]) -> pb.AnswerItem:
            return await self._item(question[0], call.again(), question[1])

        limit = self._service.settings.max_concurrent_items
        await context.send_initial_metadata(common_metadata(call))
        await slo_headers.map_in_order(_each(questions), work, context.write, limit)

    async def Plan(self, request: pb.PlanRequest | Malformed, context: Context) -> pb.PlanResponse:
        return await self._calls.run(
            context, request, slo_fields(request), self._plan, answers=False
        )

    async def Feedback(
        self, request: pb.FeedbackRequest | Malformed, context: Context
    ) -> pb.FeedbackResponse:
        return await self._calls.run(context, request, {}, self._feedback, answers=False)

    async def _one(
        self, request: pb.AnswerRequest, call: Call
    ) -> tuple[pb.AnswerResponse, Mapping[str, str]]:
        parsed, answered = await self._answer(request, call)
        return to_response(parsed, answered), slo_headers.slo_headers(answered)

    async def _plan(
        self, request: pb.PlanRequest, call: Call
    ) -> tuple[pb.PlanResponse, Mapping[str, str]]:
        access.take(1)
        slo = call.slo_request(slo_fields(request), None)
        asked, n_tokens = _plan_size(request)
        report = await self._service.plan(slo, asked, n_tokens, request.task or QA)
        return to_plan(report), {}

    async def _feedback(
        self, request: pb.FeedbackRequest, _: Call
    ) -> tuple[pb.FeedbackResponse, Mapping[str, str]]:
        access.take(1)
        key = (request.request_id, request.id)
        scored = await self._service.feedback.report(key, to_truth(request))
        return pb.FeedbackResponse(**asdict(scored)), {}

    async def _answer(
        self, request: pb.AnswerRequest, call: Call
    ) -> tuple[ParsedQuestion, Answered]:
        parsed = to_parsed(request, self._service.settings)
        slo = call.slo_request(slo_fields(request), None)
        answered = await self._service.answer(
            parsed.question, slo, call.arrived_ms, frontend="grpc"
        )
        return parsed, answered

    async def _item(
        self, request: pb.AnswerRequest | Malformed, call: Call, wrong: BadInput | None = None
    ) -> pb.AnswerItem:
        """Answer one of many; `wrong`: why it cannot be answered."""
        own_id = "" if isinstance(request, Malformed) else request.id[:MAX_ID_CHARS]
        try:
            with self._calls.observed(call, slo_fields(request), QA):
                if wrong is not None:
                    raise wrong
                parsed, answered = await self._answer(readable(request), call)
        except Exception as exc:  # noqa: BLE001  # sent as an item, logged with its cause
            log_failure(exc, call.request_id)
            return pb.AnswerItem(id=own_id, failure=to_failure(exc, call.request_id))
        return pb.AnswerItem(id=own_id, answer=to_response(parsed, answered))


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def to_failure(error: Exception, request_id: str) -> pb.Failure:
    """Return an error as an item of a stream."""
    return pb.Failure(
        type=kind_of(error),
        code=status_of(error).name,
        detail=detail_of(error, request_id),
        retry_after_ms=error.retry_after_ms if isinstance(error, Overloaded) else None,
    )


def to_plan(report: PlanReport) -> pb.PlanResponse:
    """Return a plan report as its message."""
    chosen = report.decision.option
    return pb.PlanResponse(
        feasible=chosen is not None and not report.decision.violations,
        plan=chosen.plan.name if chosen else "",
        reason=report.decision.reason,
        violations=report.decision.violations,
        n_tokens=report.size.bucket,
        n_windows=report.size.n_windows,
        options=options(report.candidates, chosen),
        nearest=[pb.PlanOption(**explain.describe_option(each)) for each in report.feasible],
        latency_ms=report.slo.latency_ms,
        min_f1=report.slo.min_f1,
        slo_class=report.slo.slo_class,
        policy=report.slo.policy,
        timeout_ms=report.slo.timeout_ms,
        max_f1_loss=report.slo.max_f1_loss,
        min_answerable_f1=report.slo.min_answerable_f1,
    )


def to_truth(request: pb.FeedbackRequest) -> Truth:
    """Return what a message says of an answer."""
    kind = request.WhichOneof("truth")
    answers = tuple(request.answers.texts) if kind == "answers" else None
    return Truth(answers, request.right if kind == "right" else None)


def _plan_size(request: pb.PlanRequest) -> tuple[Asked[Any] | None, int | None]:
    """Return what to plan for: a question, or texts, or a number of tokens, or neither."""
    n_tokens = request.n_tokens if request.HasField("n_tokens") else None
    if n_tokens is not None and not 1 <= n_tokens <= MAX_PLAN_TOKENS:
        raise InvalidField(f"n_tokens: {n_tokens} is not allowed; allowed: 1 to {MAX_PLAN_TOKENS}")
    if request.text:
        if request.question or request.context:
            raise InvalidField("text: sent with a question; send one of the two")
        pair = request.text_pair if request.HasField("text_pair") else None
        return Texts(request.text, pair, task=request.task), n_tokens
    if not request.question and not request.context:
        return None, n_tokens
    return Question(request.question, request.context), n_tokens
