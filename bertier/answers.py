"""What comes back, typed: answers, the promise kept or not, plans. From JSON and from messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.proto.bertier.v1 import qa_pb2 as pb


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another span; `probability` is its share of the n-best mass."""

    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The promise with every default filled in, and what became of it."""

    slo_class: str
    latency_ms: float
    min_f1: float
    policy: str
    timeout_ms: float
    certified_f1: float
    predicted_ms: float
    gave: tuple[str, ...]  # late, below-floor, ...; none: the promise was kept
    max_f1_loss: float | None = None
    min_answerable_f1: float | None = None
    certified_answerable_f1: float | None = None

    @property
    def met(self) -> bool:
        return not self.gave


@dataclass(frozen=True, slots=True)
class PlanOption:
    """A plan as it stood for this request."""

    plan: str
    certified_f1: float
    idle_ms: float
    predicted_ms: float
    cost_ms: float
    trust: str
    chosen: bool = False
    struck_out_by: tuple[str, ...] = ()
    # Of what was weighed: quantiles of the time predicted, and what of `predicted_ms` is a wait.
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    wait_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `context[start:end] == text`, in code points; no answer: empty, offsets None."""

    text: str
    start: int | None
    end: int | None
    score: float  # calibrated probability that this is right
    no_answer_probability: float
    alternatives: tuple[Alternative, ...]
    plan: str
    variant: str
    slo: Outcome
    id: str | None = None
    reason: str | None = None  # with explain: why this plan
    options: tuple[PlanOption, ...] = ()  # with explain: all that were considered

    def __bool__(self) -> bool:
        return self.start is not None


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would happen to such a request now; `nearest`: what an idle system could promise."""

    feasible: bool
    plan: str | None  # None: refused, for `reason`
    reason: str
    gave: tuple[str, ...]
    n_tokens: int
    n_windows: int
    options: tuple[PlanOption, ...]
    nearest: tuple[PlanOption, ...]


def answer_of_json(told: dict[str, Any]) -> Answer:
    explained = told.get("explain") or {}
    return Answer(
        text=told["answer"],
        start=told["start"],
        end=told["end"],
        score=told["score"],
        no_answer_probability=told["no_answer_probability"],
        alternatives=tuple(
            Alternative(a["answer"], a["start"], a["end"], a["probability"])
            for a in told["alternatives"]
        ),
        plan=told["plan"],
        variant=told["variant"],
        slo=_outcome(told["slo"] | {"slo_class": told["slo"]["class"]}),
        id=told.get("id"),
        reason=explained.get("reason"),
        options=tuple(_option(o) for o in explained.get("options", ())),
    )


def answer_of_message(told: pb.AnswerResponse) -> Answer:
    explained = told.HasField("explain")
    return Answer(
        text=told.answer,
        start=told.start if told.HasField("start") else None,
        end=told.end if told.HasField("end") else None,
        score=told.score,
        no_answer_probability=told.no_answer_probability,
        alternatives=tuple(
            Alternative(a.answer, a.start, a.end, a.probability) for a in told.alternatives
        ),
        plan=told.plan,
        variant=told.variant,
        slo=_outcome(_fields(told.slo)),
        id=told.id or None,
        reason=told.explain.reason if explained else None,
        options=tuple(_option(_fields(o)) for o in told.explain.options) if explained else (),
    )


def plan_of_json(told: dict[str, Any]) -> PlanReport:
    return PlanReport(
        feasible=told["feasible"],
        plan=told["plan"],
        reason=told["reason"],
        gave=tuple(told["gave"]),
        n_tokens=told["n_tokens"],
        n_windows=told["n_windows"],
        options=tuple(_option(o) for o in told["options"]),
        nearest=tuple(_option(o) for o in told["nearest"]),
    )


def plan_of_message(told: pb.PlanResponse) -> PlanReport:
    return PlanReport(
        feasible=told.feasible,
        plan=told.plan or None,
        reason=told.reason,
        gave=tuple(told.gave),
        n_tokens=told.n_tokens,
        n_windows=told.n_windows,
        options=tuple(_option(_fields(o)) for o in told.options),
        nearest=tuple(_option(_fields(o)) for o in told.nearest),
    )


def _fields(message: Any) -> dict[str, Any]:
    """Return every field of a message that is there, or has no presence to lack."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _outcome(told: dict[str, Any]) -> Outcome:
    return Outcome(
        slo_class=told["slo_class"],
        latency_ms=told["latency_ms"],
        min_f1=told["min_f1"],
        policy=told["policy"],
        timeout_ms=told["timeout_ms"],
        certified_f1=told["certified_f1"],
        predicted_ms=told["predicted_ms"],
        gave=() if told["met"] == "true" else tuple(told["met"].split(",")),
        max_f1_loss=told.get("max_f1_loss"),
        min_answerable_f1=told.get("min_answerable_f1"),
        certified_answerable_f1=told.get("certified_answerable_f1"),
    )


def _option(told: dict[str, Any]) -> PlanOption:
    return PlanOption(
        plan=told["plan"],
        certified_f1=told["certified_f1"],
        idle_ms=told["idle_ms"],
        predicted_ms=told["predicted_ms"],
        cost_ms=told["cost_ms"],
        trust=told["trust"],
        chosen=told.get("chosen", False),
        struck_out_by=tuple(told.get("struck_out_by", ())),
        **{name: told.get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "wait_ms")},
    )
