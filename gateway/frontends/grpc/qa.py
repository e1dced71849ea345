"""The service `bertier.v1.QuestionAnswering`: its messages to our values and back, and its three calls."""

# ruff: noqa: N802  # the protocol names its calls

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence

from google.protobuf.message import Message

from gateway.auth import access
from gateway.domain import Answered, Candidate, Option, Question
from gateway.errors import InvalidField, Malformed, Overloaded, TextTooLong, kind_of
from gateway.frontends import slo_headers
from gateway.frontends.grpc.call import (
    Call,
    Calls,
    Context,
    common_metadata,
    detail_of,
    log_failure,
    readable,
    status_of,
)
from gateway.frontends.slo_headers import MAX_ID_CHARS, MAX_PLAN_TOKENS
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.request.service import PlanReport
from gateway.routing import explain
from gateway.routing.policy import quantile_for
from gateway.settings import Settings

SERVICE = pb.DESCRIPTOR.services_by_name["QuestionAnswering"]


class QuestionAnswering:
    """Answer, AnswerStream and Plan."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service

    async def Answer(
        self, request: pb.AnswerRequest | Malformed, context: Context
    ) -> pb.AnswerResponse:
        return await self._calls.run(context, request, slo_fields(request), self._one)

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

    async def Plan(self, request: pb.PlanRequest | Malformed, context: Context) -> pb.PlanResponse:
        return await self._calls.run(
            context, request, slo_fields(request), self._plan, answers=False
        )

    async def _one(
        self, request: pb.AnswerRequest, call: Call
    ) -> tuple[pb.AnswerResponse, Mapping[str, str]]:
        answered = await self._answer(request, call)
        return to_response(request.id, answered), slo_headers.slo_headers(answered)

    async def _plan(
        self, request: pb.PlanRequest, call: Call
    ) -> tuple[pb.PlanResponse, Mapping[str, str]]:
        access.take(1)
        slo = call.slo_request(slo_fields(request), None)
        report = await self._service.plan(slo, *_plan_size(request))
        return to_plan(report), {}

    async def _answer(self, request: pb.AnswerRequest, call: Call) -> Answered:
        question = to_question(request, self._service.settings)
        slo = call.slo_request(slo_fields(request), None)
        return await self._service.answer(question, slo, call.arrived_ms, frontend="grpc")

    async def _item(self, request: pb.AnswerRequest | Malformed, call: Call) -> pb.AnswerItem:
        own_id = "" if isinstance(request, Malformed) else request.id[:MAX_ID_CHARS]
        try:
            with self._calls.observed(call, slo_fields(request)):
                answered = await self._answer(readable(request), call)
        except Exception as exc:  # noqa: BLE001  # sent as an item, logged with its cause
            log_failure(exc, call.request_id)
            return pb.AnswerItem(id=own_id, failure=to_failure(exc, call.request_id))
        return pb.AnswerItem(id=own_id, answer=to_response(own_id, answered))


def slo_fields(request: Message | Malformed) -> dict[str, object]:
    """Return the SLO that the message itself carries, by the headers' names in snake case."""
    if not isinstance(request, pb.AnswerRequest | pb.PlanRequest):
        return {}
    said = {field.name: value for field, value in request.slo.ListFields()}
    bare = ("priority", "slo_class")
    return {name if name in bare else f"slo_{name}": value for name, value in said.items()}


def to_question(request: pb.AnswerRequest, settings: Settings) -> Question:
    """Return the question of a message. Raises: TextTooLong, InvalidField."""
    if request.ByteSize() > settings.max_body_bytes:
        raise TextTooLong("message", request.ByteSize(), settings.max_body_bytes, "bytes")
    if len(request.id) > MAX_ID_CHARS:
        raise TextTooLong("id", len(request.id), MAX_ID_CHARS)
    top_k = request.top_k if request.HasField("top_k") else 1
    if not 1 <= top_k <= settings.max_top_k:
        raise InvalidField(f"top_k: {top_k} is not allowed; allowed: 1 to {settings.max_top_k}")
    return Question(request.question, request.context, request.id, top_k)


def to_response(own_id: str, answered: Answered) -> pb.AnswerResponse:
    """Return an answer as its message."""
    answer = answered.answer
    response = pb.AnswerResponse(
        id=own_id,
        answer=answer.text,
        start=answer.start,
        end=answer.end,
        score=answer.score,
        no_answer_probability=answer.no_answer_probability,
        alternatives=[
            pb.Alternative(answer=s.text, start=s.start, end=s.end, probability=s.probability)
            for s in answer.alternatives
        ],
        plan=answered.option.plan.name,
        variant=answered.variant,
        slo=_slo_result(answered),
        timings=_timings(answered),
    )
    if answered.slo.explain:
        response.explain.CopyFrom(_explanation(answered))
    return response


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
        gave=report.decision.violations,
        n_tokens=report.size.bucket,
        n_windows=report.size.n_windows,
        options=_options(report.candidates, chosen),
        nearest=[pb.PlanOption(**explain.describe_option(each)) for each in report.feasible],
        latency_ms=report.slo.latency_ms,
        min_f1=report.slo.min_f1,
        slo_class=report.slo.slo_class,
        policy=report.slo.policy,
        timeout_ms=report.slo.timeout_ms,
        max_f1_loss=report.slo.max_f1_loss,
        min_answerable_f1=report.slo.min_answerable_f1,
    )


def _plan_size(request: pb.PlanRequest) -> tuple[Question | None, int | None]:
    """Return what to plan for: a question, or a number of tokens, or neither."""
    n_tokens = request.n_tokens if request.HasField("n_tokens") else None
    if n_tokens is not None and not 1 <= n_tokens <= MAX_PLAN_TOKENS:
        raise InvalidField(f"n_tokens: {n_tokens} is not allowed; allowed: 1 to {MAX_PLAN_TOKENS}")
    if not request.question and not request.context:
        return None, n_tokens
    return Question(request.question, request.context), n_tokens


def _slo_result(answered: Answered) -> pb.SloResult:
    slo = answered.slo
    return pb.SloResult(
        latency_ms=slo.latency_ms,
        min_f1=slo.min_f1,
        slo_class=slo.slo_class,
        policy=slo.policy,
        timeout_ms=slo.timeout_ms,
        certified_f1=answered.option.certified_f1,
        predicted_ms=answered.option.predicted_ms,
        met=answered.met,
        max_f1_loss=slo.max_f1_loss,
        certified_f1_loss=answered.option.certified_loss,
        min_answerable_f1=slo.min_answerable_f1,
        certified_answerable_f1=answered.option.certified_answerable_f1,
    )


def _timings(answered: Answered) -> pb.Timings:
    t = answered.timings
    return pb.Timings(
        tokenize_ms=t.tokenize,
        route_ms=t.route,
        queue_ms=t.queue,
        infer_ms=t.infer,
        decode_ms=t.decode,
        total_ms=t.total,
    )


def _explanation(answered: Answered) -> pb.Explanation:
    return pb.Explanation(
        reason=answered.decision.reason,
        quantile=quantile_for(answered.slo.policy),
        spent_ms=slo_headers.spent_before_routing_ms(answered.timings),
        options=_options(answered.candidates, answered.option),
    )


def _options(candidates: Sequence[Candidate], chosen: Option | None) -> list[pb.PlanOption]:
    return [pb.PlanOption(**explain.describe_candidate(each, chosen)) for each in candidates]
