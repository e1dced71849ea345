"""Questions, texts and answers of `bertier.v1` as our values and back. Knows no call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message

from gateway.domain import (
    Answered,
    Candidate,
    Classified,
    Cost,
    Option,
    Question,
    Served,
    Span,
    Texts,
)
from gateway.errors import (
    BadInput,
    EmptyText,
    InvalidField,
    Malformed,
    TextTooLong,
    TooManyItems,
)
from gateway.frontends import parsed_question, slo_headers
from gateway.frontends.parsed_question import OffsetUnit, ParsedQuestion, PassageText, Place
from gateway.frontends.slo_headers import MAX_ID_CHARS
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.routing import explain
from gateway.routing.policy import quantile_for
from gateway.settings import Settings


def to_parsed(request: pb.AnswerRequest, settings: Settings) -> ParsedQuestion:
    """Return the question of a message. Raises: TextTooLong, TooManyItems, InvalidField."""
    _check_size(request, settings)
    given = {field.name: value for field, value in request.ListFields()}
    question = Question(
        request.question,
        "",
        request.id,
        top_k=request.top_k if "top_k" in given else 1,
        max_answer_tokens=given.get("max_answer_tokens"),
        min_score=given.get("min_score"),
        max_no_answer_probability=given.get("max_no_answer_probability"),
    )
    parsed_question.check_options(question, settings)
    question, passages = parsed_question.about(question, *_texts(request, settings), settings)
    unit = OffsetUnit.CODE_POINTS
    if "offset_unit" in given:
        unit = parsed_question.offset_unit(request.offset_unit)
    return ParsedQuestion(question, passages, unit, request.sentence)


def to_texts(request: pb.ClassifyRequest, settings: Settings) -> Texts:
    """Return the texts of a message. Raises: TextTooLong."""
    _check_size(request, settings)
    pair = request.text_pair if request.HasField("text_pair") else None
    return Texts(request.text, pair, request.id, request.task)


def _check_size(request: pb.AnswerRequest | pb.ClassifyRequest, settings: Settings) -> None:
    if request.ByteSize() > settings.max_body_bytes:
        raise TextTooLong("message", request.ByteSize(), settings.max_body_bytes, "bytes")
    if len(request.id) > MAX_ID_CHARS:
        raise TextTooLong("id", len(request.id), MAX_ID_CHARS)


def slo_fields(request: Message | Malformed) -> dict[str, object]:
    """Return the SLO that the message itself carries, by the headers' names in snake case."""
    if not isinstance(request, pb.AnswerRequest | pb.ClassifyRequest | pb.PlanRequest):
        return {}
    said = {field.name: value for field, value in request.slo.ListFields()}
    bare = ("priority", "slo_class")
    return {name if name in bare else f"slo_{name}": value for name, value in said.items()}


def with_shared_texts(
    request: pb.AnswerManyRequest, settings: Settings
) -> Iterator[tuple[pb.AnswerRequest, BadInput | None]]:
    """Return every question with the texts that are sent once, and why it cannot be answered.

    Raises: InvalidField, TooManyItems, TextTooLong.
    """
    if not request.questions:
        raise InvalidField("questions: empty; send at least one")
    if not request.context and not request.contexts:
        raise EmptyText("context")
    parsed_question.about(Question("", ""), *_texts(request, settings), settings)
    return (_with_texts(i, question, request) for i, question in enumerate(request.questions))


def _with_texts(
    i: int, question: pb.AnswerRequest, shared: pb.AnswerManyRequest
) -> tuple[pb.AnswerRequest, BadInput | None]:
    twice = [name for name in ("context", "contexts") if getattr(question, name)]
    if twice:
        where = f"questions.{i}.{twice[0]}"
        return question, InvalidField(f"{where}: sent for all questions; leave it out")
    whole = pb.AnswerRequest(context=shared.context, contexts=shared.contexts)
    whole.MergeFrom(question)
    return whole, None


def _texts(
    message: pb.AnswerRequest | pb.AnswerManyRequest, settings: Settings
) -> tuple[str | None, list[PassageText] | None]:
    """Return the context and the passages; an empty context beside passages is none.

    Raises: TooManyItems: 16 million empty passages fit into a message.
    """
    if len(message.contexts) > settings.max_passages:
        raise TooManyItems("contexts", len(message.contexts), settings.max_passages)
    passages = [
        PassageText(each.context, each.id if each.HasField("id") else None)
        for each in message.contexts
    ]
    return message.context if message.context or not passages else None, passages or None


def to_response(parsed: ParsedQuestion, answered: Answered) -> pb.AnswerResponse:
    """Return an answer as its message, shown as it was asked for."""
    answer = answered.answer
    place = parsed_question.place_of_answer(parsed, answer)
    around = parsed_question.sentence_of_answer(parsed, answer)
    response = pb.AnswerResponse(
        id=parsed.question.id,
        answer=answer.text,
        start=place.start if place else None,
        end=place.end if place else None,
        score=answer.score,
        no_answer_probability=answer.no_answer_probability,
        alternatives=[_alternative(parsed, span) for span in answer.alternatives],
        plan=answered.option.plan.name,
        variant=answered.variant,
        slo=_slo_result(answered),
        timings=_timings(answered),
        passage=_passage(place) if place else None,
        sentence=pb.Sentence(text=around.text, start=around.start, end=around.end)
        if around
        else None,
        cost=_cost(answered.cost),
        age_ms=answered.age_ms,
    )
    if answered.slo.explain:
        response.explain.CopyFrom(_explanation(answered))
    return response


def to_classify_response(classified: Classified, own_id: str) -> pb.ClassifyResponse:
    """Return a classification as its message; `own_id`: of the request."""
    found = classified.answer
    response = pb.ClassifyResponse(
        id=own_id,
        task=classified.slo.task,
        label=found.label,
        score=found.score,
        scores=[pb.LabelScore(label=s.label, probability=s.probability) for s in found.scores],
        plan=classified.option.plan.name,
        variant=classified.variant,
        slo=_slo_result(classified),
        timings=_timings(classified),
        cost=_cost(classified.cost),
        age_ms=classified.age_ms,
    )
    if classified.slo.explain:
        response.explain.CopyFrom(_explanation(classified))
    return response


def _alternative(parsed: ParsedQuestion, span: Span) -> pb.Alternative:
    place = parsed_question.place_of_span(parsed, span)
    return pb.Alternative(
        answer=place.text,
        start=place.start,
        end=place.end,
        probability=span.probability,
        passage=_passage(place),
    )


def _passage(place: Place) -> pb.PassageRef | None:
    return (
        None if place.passage is None else pb.PassageRef(index=place.passage, id=place.passage_id)
    )


def _cost(cost: Cost) -> pb.Cost:
    return pb.Cost(
        compute_ms=cost.compute_ms,
        largest_variant=cost.largest_variant,
        largest_compute_ms=cost.largest_compute_ms,
        saved_ms=cost.saved_ms,
    )


def _slo_result(answered: Served[Any]) -> pb.SloResult:
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


def _timings(answered: Served[Any]) -> pb.Timings:
    t = answered.timings
    return pb.Timings(
        tokenize_ms=t.tokenize,
        route_ms=t.route,
        queue_ms=t.queue,
        infer_ms=t.infer,
        decode_ms=t.decode,
        total_ms=t.total,
    )


def _explanation(answered: Served[Any]) -> pb.Explanation:
    return pb.Explanation(
        reason=answered.decision.reason,
        quantile=quantile_for(answered.slo.policy),
        spent_ms=slo_headers.spent_before_routing_ms(answered.timings),
        options=options(answered.candidates, answered.option),
    )


def options(candidates: Sequence[Candidate], chosen: Option | None) -> list[pb.PlanOption]:
    """Return the candidates as messages."""
    return [pb.PlanOption(**explain.describe_candidate(each, chosen)) for each in candidates]
