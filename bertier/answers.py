"""Typed replies: answers with their SLO outcome, and plans. From JSON and from messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gateway.proto.bertier.v1 import qa_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PassageRef:
    """One of the passages that were sent."""

    index: int  # from 0, in the order sent
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another span; `probability` is its share of the n-best mass."""

    text: str
    start: int
    end: int
    probability: float
    passage: PassageRef | None = None  # None: there is one context


@dataclass(frozen=True, slots=True)
class Sentence:
    """The sentence around an answer."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Compute, ms of one core by the profiles of the gateway's host, beside that of the largest variant."""

    compute_ms: float  # 0: a cached answer
    largest_variant: str
    largest_compute_ms: float
    saved_ms: float


@dataclass(frozen=True, slots=True)
class SloOutcome:
    """The SLO with every default filled in, and its outcome."""

    slo_class: str
    latency_ms: float
    min_f1: float
    policy: str
    timeout_ms: float
    certified_f1: float
    predicted_ms: float
    violations: tuple[str, ...]  # late, below-floor, ...; empty: the SLO was met
    max_f1_loss: float | None = None
    min_answerable_f1: float | None = None
    certified_answerable_f1: float | None = None
    total_ms: float | None = None  # what it took in the gateway

    @property
    def met(self) -> bool:
        return not self.violations


@dataclass(frozen=True, slots=True)
class PlanOption:
    """A plan with its predictions for this request."""

    plan: str
    certified_f1: float
    idle_ms: float
    predicted_ms: float
    cost_ms: float
    trust: str
    chosen: bool = False
    rejection_reasons: tuple[str, ...] = ()
    # Of candidates: predicted latency quantiles, and the part of `predicted_ms` that is a wait.
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    wait_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `context[start:end] == text`, in code points; no answer: empty, offsets None.

    Of passages, offsets count in the one that `passage` says.
    """

    text: str
    start: int | None
    end: int | None
    score: float  # calibrated probability that this is right
    no_answer_probability: float
    alternatives: tuple[Alternative, ...]
    plan: str
    variant: str
    slo: SloOutcome
    id: str | None = None
    reason: str | None = None  # with explain: why this plan
    options: tuple[PlanOption, ...] = ()  # with explain: all that were considered
    passage: PassageRef | None = None
    sentence: Sentence | None = None  # where it was asked for
    cost: Cost | None = None  # None: an older gateway
    age_ms: float | None = None  # of a cached answer: since it was first given
    request_id: str = field(default="", compare=False)  # for `feedback`; in the gateway's log

    def __bool__(self) -> bool:
        return self.start is not None


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label with its calibrated probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The label of a text, or of a pair of texts. In `slo`, F1 is the accuracy."""

    label: str
    score: float  # calibrated probability that this is right
    scores: tuple[LabelScore, ...]  # of all labels, the best first
    task: str
    plan: str
    variant: str
    slo: SloOutcome
    id: str | None = None
    reason: str | None = None  # with explain: why this plan
    options: tuple[PlanOption, ...] = ()  # with explain: all that were considered
    cost: Cost | None = None
    age_ms: float | None = None  # of a cached answer: since it was first given
    request_id: str = field(default="", compare=False)  # in the gateway's log


@dataclass(frozen=True, slots=True)
class Scored:
    """How an answer scores by what was reported of it."""

    plan: str
    variant: str
    f1: float
    exact: float


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would happen to such a request now; `nearest`: what an idle system could offer."""

    feasible: bool
    plan: str | None  # None: refused, for `reason`
    reason: str
    violations: tuple[str, ...]
    n_tokens: int
    n_windows: int
    options: tuple[PlanOption, ...]
    nearest: tuple[PlanOption, ...]


def answer_of_json(payload: dict[str, Any]) -> Answer:
    explained = payload.get("explain") or {}
    return Answer(
        text=payload["answer"],
        start=payload["start"],
        end=payload["end"],
        score=payload["score"],
        no_answer_probability=payload["no_answer_probability"],
        alternatives=tuple(
            Alternative(
                a["answer"], a["start"], a["end"], a["probability"], _made(PassageRef, a, "passage")
            )
            for a in payload["alternatives"]
        ),
        plan=payload["plan"],
        variant=payload["variant"],
        slo=_outcome(payload["slo"] | {"slo_class": payload["slo"]["class"]}),
        id=payload.get("id"),
        reason=explained.get("reason"),
        options=tuple(_option(o) for o in explained.get("options", ())),
        passage=_made(PassageRef, payload, "passage"),
        sentence=_made(Sentence, payload, "sentence"),
        cost=_made(Cost, payload, "cost"),
        age_ms=payload.get("age_ms"),
    )


def answer_of_message(payload: pb.AnswerResponse) -> Answer:
    explained = payload.HasField("explain")
    return Answer(
        text=payload.answer,
        start=payload.start if payload.HasField("start") else None,
        end=payload.end if payload.HasField("end") else None,
        score=payload.score,
        no_answer_probability=payload.no_answer_probability,
        alternatives=tuple(
            Alternative(a.answer, a.start, a.end, a.probability, _read(PassageRef, a, "passage"))
            for a in payload.alternatives
        ),
        plan=payload.plan,
        variant=payload.variant,
        slo=_outcome({**_fields(payload.slo), "total_ms": payload.timings.total_ms}),
        id=payload.id or None,
        reason=payload.explain.reason if explained else None,
        options=tuple(_option(_fields(o)) for o in payload.explain.options) if explained else (),
        passage=_read(PassageRef, payload, "passage"),
        sentence=_read(Sentence, payload, "sentence"),
        cost=_read(Cost, payload, "cost"),
        age_ms=payload.age_ms if payload.HasField("age_ms") else None,
    )


def classification_of_json(payload: dict[str, Any]) -> Classification:
    explained = payload.get("explain") or {}
    return Classification(
        label=payload["label"],
        score=payload["score"],
        scores=tuple(LabelScore(s["label"], s["probability"]) for s in payload["scores"]),
        task=payload["task"],
        plan=payload["plan"],
        variant=payload["variant"],
        slo=_outcome(payload["slo"] | {"slo_class": payload["slo"]["class"]}),
        id=payload.get("id"),
        reason=explained.get("reason"),
        options=tuple(_option(o) for o in explained.get("options", ())),
        cost=_made(Cost, payload, "cost"),
        age_ms=payload.get("age_ms"),
    )


def classification_of_message(payload: pb.ClassifyResponse) -> Classification:
    explained = payload.HasField("explain")
    return Classification(
        label=payload.label,
        score=payload.score,
        scores=tuple(LabelScore(s.label, s.probability) for s in payload.scores),
        task=payload.task,
        plan=payload.plan,
        variant=payload.variant,
        slo=_outcome({**_fields(payload.slo), "total_ms": payload.timings.total_ms}),
        id=payload.id or None,
        reason=payload.explain.reason if explained else None,
        options=tuple(_option(_fields(o)) for o in payload.explain.options) if explained else (),
        cost=_read(Cost, payload, "cost"),
        age_ms=payload.age_ms if payload.HasField("age_ms") else None,
    )


def with_request_id(found: T, request_id: str | None) -> T:
    """Return an answer or a classification with the id of its request; anything else as it is."""
    if not isinstance(found, Answer | Classification):
        return found
    return replace(found, request_id=request_id or "")


def plan_of_json(payload: dict[str, Any]) -> PlanReport:
    return PlanReport(
        feasible=payload["feasible"],
        plan=payload["plan"],
        reason=payload["reason"],
        violations=tuple(payload["violations"]),
        n_tokens=payload["n_tokens"],
        n_windows=payload["n_windows"],
        options=tuple(_option(o) for o in payload["options"]),
        nearest=tuple(_option(o) for o in payload["nearest"]),
    )


def plan_of_message(payload: pb.PlanResponse) -> PlanReport:
    return PlanReport(
        feasible=payload.feasible,
        plan=payload.plan or None,
        reason=payload.reason,
        violations=tuple(payload.violations),
        n_tokens=payload.n_tokens,
        n_windows=payload.n_windows,
        options=tuple(_option(_fields(o)) for o in payload.options),
        nearest=tuple(_option(_fields(o)) for o in payload.nearest),
    )


def scored_of_json(payload: dict[str, Any]) -> Scored:
    return Scored(*(payload[name] for name in ("plan", "variant", "f1", "exact")))


def scored_of_message(payload: pb.FeedbackResponse) -> Scored:
    return Scored(payload.plan, payload.variant, payload.f1, payload.exact)


def _made(kind: Callable[..., T], payload: dict[str, Any], name: str) -> T | None:
    """Return a part of a JSON object, without fields that are unknown here; None: it is not there."""
    part = payload.get(name)
    known = inspect.signature(kind).parameters
    return None if part is None else kind(**{k: v for k, v in part.items() if k in known})


def _read(kind: Callable[..., T], payload: Any, name: str) -> T | None:
    """Return a part of a message; None: it is not there."""
    return kind(**_fields(getattr(payload, name))) if payload.HasField(name) else None


def _fields(message: Any) -> dict[str, Any]:
    """Return every field of a message that is there, or has no presence to lack."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _outcome(payload: dict[str, Any]) -> SloOutcome:
    return SloOutcome(
        slo_class=payload["slo_class"],
        latency_ms=payload["latency_ms"],
        min_f1=payload["min_f1"],
        policy=payload["policy"],
        timeout_ms=payload["timeout_ms"],
        certified_f1=payload["certified_f1"],
        predicted_ms=payload["predicted_ms"],
        violations=() if payload["met"] == "true" else tuple(payload["met"].split(",")),
        max_f1_loss=payload.get("max_f1_loss"),
        min_answerable_f1=payload.get("min_answerable_f1"),
        certified_answerable_f1=payload.get("certified_answerable_f1"),
        total_ms=payload.get("total_ms"),
    )


def _option(payload: dict[str, Any]) -> PlanOption:
    return PlanOption(
        plan=payload["plan"],
        certified_f1=payload["certified_f1"],
        idle_ms=payload["idle_ms"],
        predicted_ms=payload["predicted_ms"],
        cost_ms=payload["cost_ms"],
        trust=payload["trust"],
        chosen=payload.get("chosen", False),
        rejection_reasons=tuple(payload.get("rejection_reasons", ())),
        **{name: payload.get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "wait_ms")},
    )
