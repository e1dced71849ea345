"""Answers and plans as JSON: for HTTP, the command line, and a parameter of OIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from gateway.domain import Answered, Candidate, Option, Slo
from gateway.frontends import slo_headers
from gateway.frontends.schemas import (
    AlternativeBody,
    AnswerBody,
    ExplainBody,
    ExplainedOptionBody,
    OptionBody,
    PlanBody,
    SloBody,
    SloOutcomeBody,
)
from gateway.request.service import PlanReport
from gateway.routing import explain
from gateway.routing.policy import quantile_for


def answer_body(answered: Answered, question_id: str) -> bytes:
    """Return an answer as JSON."""
    answer = answered.answer
    optional: dict[str, Any] = {"id": question_id} if question_id else {}
    if answered.slo.explain:
        optional["explain"] = _explain(answered)
    body = AnswerBody(
        answer=answer.text,
        start=answer.start,
        end=answer.end,
        score=answer.score,
        no_answer_probability=answer.no_answer_probability,
        alternatives=[
            AlternativeBody(answer=s.text, start=s.start, end=s.end, probability=s.probability)
            for s in answer.alternatives
        ],
        plan=answered.option.plan.name,
        variant=answered.variant,
        slo=_outcome(answered),
        **optional,
    )
    return body.__pydantic_serializer__.to_json(body, exclude_unset=True, by_alias=True)


def plan_body(report: PlanReport) -> bytes:
    """Return a plan report as JSON."""
    decision, size = report.decision, report.size
    body = PlanBody(
        feasible=decision.option is not None and not decision.violations,
        plan=decision.option.plan.name if decision.option else None,
        reason=decision.reason,
        gave=list(decision.violations),
        slo=SloBody(**_slo_fields(report.slo)),
        n_tokens=size.bucket,
        n_windows=size.n_windows,
        options=_options(report.candidates, decision.option),
        nearest=[OptionBody.model_validate(explain.describe_option(o)) for o in report.feasible],
    )
    return body.model_dump_json(by_alias=True).encode()


def explanations(answers: Sequence[Answered]) -> dict[str, str]:
    """Return the decisions of all items as JSON, for a parameter of an Open Inference response."""
    explained = [_explain(answered).model_dump() for answered in answers if answered.slo.explain]
    return {"slo_explanation": to_json(explained).decode()} if explained else {}


def _outcome(answered: Answered) -> SloOutcomeBody:
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


def _explain(answered: Answered) -> ExplainBody:
    return ExplainBody(
        reason=answered.decision.reason,
        quantile=quantile_for(answered.slo.policy),
        spent_ms=round(slo_headers.spent_before_routing_ms(answered.timings), 3),
        options=_options(answered.candidates, answered.option),
    )


def _options(candidates: tuple[Candidate, ...], chosen: Option | None) -> list[ExplainedOptionBody]:
    return [
        ExplainedOptionBody.model_validate(explain.describe_candidate(w, chosen))
        for w in candidates
    ]
