"""Answers and plans as JSON: for HTTP, the command line, and a parameter of OIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from gateway.domain import Answered, Candidate, Classified, Cost, Option, Served, Slo, Span
from gateway.frontends import parsed_question, slo_headers
from gateway.frontends.parsed_question import ParsedQuestion, Place
from gateway.frontends.schemas import (
    AlternativeBody,
    AnswerBody,
    ClassificationBody,
    CostBody,
    ExplainBody,
    ExplainedOptionBody,
    LabelScoreBody,
    OptionBody,
    PassageRefBody,
    PlanBody,
    SentenceBody,
    SloBody,
    SloOutcomeBody,
)
from gateway.request.service import PlanReport
from gateway.routing import explain
from gateway.routing.policy import quantile_for


def answer_body(answered: Answered, parsed: ParsedQuestion) -> bytes:
    """Return an answer as JSON, shown as it was asked for."""
    answer = answered.answer
    place = parsed_question.place_of_answer(parsed, answer)
    optional = _of_place(parsed, answered, place)
    if answered.age_ms is not None:
        optional["age_ms"] = round(answered.age_ms, 3)
    if answered.slo.explain:
        optional["explain"] = _explain(answered)
    body = AnswerBody(
        answer=answer.text,
        start=place.start if place else None,
        end=place.end if place else None,
        score=answer.score,
        no_answer_probability=answer.no_answer_probability,
        alternatives=[_alternative(parsed, span) for span in answer.alternatives],
        plan=answered.option.plan.name,
        variant=answered.variant,
        slo=_outcome(answered),
        cost=_cost(answered.cost),
        **optional,
    )
    return body.__pydantic_serializer__.to_json(body, exclude_unset=True, by_alias=True)


def classification_body(classified: Classified, own_id: str) -> bytes:
    """Return a classification as JSON; `own_id`: of the request, "" where it had none."""
    found, optional = classified.answer, dict[str, Any]({"id": own_id} if own_id else {})
    if classified.age_ms is not None:
        optional["age_ms"] = round(classified.age_ms, 3)
    if classified.slo.explain:
        optional["explain"] = _explain(classified)
    body = ClassificationBody(
        task=classified.slo.task,
        label=found.label,
        score=found.score,
        scores=[LabelScoreBody(label=s.label, probability=s.probability) for s in found.scores],
        plan=classified.option.plan.name,
        variant=classified.variant,
        slo=_outcome(classified),
        cost=_cost(classified.cost),
        **optional,
    )
    return body.__pydantic_serializer__.to_json(body, exclude_unset=True, by_alias=True)


def _of_place(parsed: ParsedQuestion, answered: Answered, place: Place | None) -> dict[str, Any]:
    """Return the fields that are there only where the request was such."""
    optional: dict[str, Any] = {"id": parsed.question.id} if parsed.question.id else {}
    if parsed.passages:
        optional["passage"] = None if place is None else _passage(place)
    if parsed.sentence:
        around = parsed_question.sentence_of_answer(parsed, answered.answer)
        optional["sentence"] = around and SentenceBody(
            text=around.text, start=around.start, end=around.end
        )
    return optional


def _alternative(parsed: ParsedQuestion, span: Span) -> AlternativeBody:
    place = parsed_question.place_of_span(parsed, span)
    passage = {} if place.passage is None else {"passage": _passage(place)}
    return AlternativeBody(
        answer=place.text,
        start=place.start,
        end=place.end,
        probability=span.probability,
        **passage,
    )


def _passage(place: Place) -> PassageRefBody:
    assert place.passage is not None
    own_id = {} if place.passage_id is None else {"id": place.passage_id}
    return PassageRefBody(index=place.passage, **own_id)


def _cost(cost: Cost) -> CostBody:
    return CostBody(
        compute_ms=round(cost.compute_ms, 3),
        largest_variant=cost.largest_variant,
        largest_compute_ms=round(cost.largest_compute_ms, 3),
        saved_ms=round(cost.saved_ms, 3),
    )


def plan_body(report: PlanReport) -> bytes:
    """Return a plan report as JSON."""
    decision, size = report.decision, report.size
    body = PlanBody(
        feasible=decision.option is not None and not decision.violations,
        plan=decision.option.plan.name if decision.option else None,
        reason=decision.reason,
        violations=list(decision.violations),
        slo=SloBody(**_slo_fields(report.slo)),
        n_tokens=size.bucket,
        n_windows=size.n_windows,
        options=_options(report.candidates, decision.option),
        nearest=[OptionBody.model_validate(explain.describe_option(o)) for o in report.feasible],
    )
    return body.model_dump_json(by_alias=True).encode()


def explanations(answers: Sequence[Served[Any]]) -> dict[str, str]:
    """Return the decisions of all items as JSON, for a parameter of an Open Inference response."""
    explained = [
        _explain(answered).model_dump(exclude_unset=True)
        for answered in answers
        if answered.slo.explain
    ]
    return {"slo_explanation": to_json(explained).decode()} if explained else {}


def _outcome(answered: Served[Any]) -> SloOutcomeBody:
    option = answered.option
    loss = option.certified_loss
    certified: dict[str, Any] = {} if loss is None else {"certified_f1_loss": loss}
    if (answerable := option.certified_answerable_f1) is not None:
        certified["certified_answerable_f1"] = answerable
    return SloOutcomeBody(
        **_slo_fields(answered.slo),
        met=answered.met,
        certified_f1=option.certified_f1,
        **certified,
        predicted_ms=round(option.predicted_ms, 3),
        total_ms=round(answered.timings.total, 3),
    )


def _slo_fields(slo: Slo) -> dict[str, Any]:
    return {
        "slo_class": slo.slo_class,
        "latency_ms": slo.latency_ms,
        "min_f1": slo.min_f1,
        **({} if slo.max_f1_loss is None else {"max_f1_loss": slo.max_f1_loss}),
        **({} if slo.min_answerable_f1 is None else {"min_answerable_f1": slo.min_answerable_f1}),
        "policy": slo.policy,
        "timeout_ms": slo.timeout_ms,
    }


def _explain(answered: Served[Any]) -> ExplainBody:
    served_by = answered.served_by
    tried: dict[str, Any] = {} if served_by is None else {"catalog": served_by.value}
    return ExplainBody(
        reason=answered.decision.reason,
        quantile=quantile_for(answered.slo.policy),
        spent_ms=round(slo_headers.spent_before_routing_ms(answered.timings), 3),
        **tried,
        options=_options(answered.candidates, answered.option),
    )


def _options(candidates: tuple[Candidate, ...], chosen: Option | None) -> list[ExplainedOptionBody]:
    return [
        ExplainedOptionBody.model_validate(explain.describe_candidate(w, chosen))
        for w in candidates
    ]
