"""The outcome of one request, and whether it met its SLO."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any

from gateway.errors import BertierError
from loadtest.drive.schedule import Request
from optimizer.data import evaluate


class Outcome(StrEnum):
    ANSWERED = "answered"
    SHED = "shed"  # refused for load: 429, RESOURCE_EXHAUSTED
    REFUSED = "refused"  # infeasible SLO: 422, FAILED_PRECONDITION
    EXPIRED = "expired"  # the server's deadline: 504, DEADLINE_EXCEEDED
    FAILED = "failed"  # any other answer of the server
    LOST = "lost"  # the connection was refused or broke
    SILENT = "silent"  # no reply while the client waited


UNREACHED = (Outcome.LOST, Outcome.SILENT)


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a server to one request."""

    outcome: Outcome
    detail: str = ""  # without an answer: the status and the server's message
    answer: str = ""
    plan: str = ""
    variant: str = ""
    met: str = ""  # SLO-Met
    certified_f1: float = 0.0
    predicted_ms: float = inf
    retry_after_s: float = 0.0  # Retry-After of a refusal


@dataclass(frozen=True, slots=True)
class Result:
    """One request with its reply; times in ms since the start of the run."""

    request: Request
    sent_ms: float
    ended_ms: float
    reply: Reply

    @property
    def answered(self) -> bool:
        return self.reply.outcome is Outcome.ANSWERED

    @property
    def lag_ms(self) -> float:
        """Return how late the client sent it."""
        return self.sent_ms - self.request.at_ms

    @property
    def latency_ms(self) -> float:
        """Return the time from when it was due, not from when it was sent; inf: no answer."""
        return self.ended_ms - self.request.at_ms if self.answered else inf

    @property
    def in_time(self) -> bool:
        return self.latency_ms <= self.request.slo.latency_ms

    @property
    def f1(self) -> float:
        """Return the token F1 of the answer, by the SQuAD 2.0 rule; 0: none was given."""
        return (
            evaluate.f1(self.reply.answer, self.request.example.answers) if self.answered else 0.0
        )

    @property
    def certified(self) -> bool:
        """Return whether the plan that answered is certified for the requested floor."""
        return self.answered and self.reply.certified_f1 >= self.request.slo.min_f1 - 1e-6

    def as_json(self) -> dict[str, Any]:
        """Return the line of requests.jsonl; the texts are in the question set, by id."""
        slo, reply = self.request.slo, self.reply
        return {
            "index": self.request.index,
            "at_ms": round(self.request.at_ms, 3),
            "lag_ms": round(self.lag_ms, 3),
            "latency_ms": round(self.ended_ms - self.request.at_ms, 3),
            "slo_class": slo.slo_class,
            "slo_latency_ms": slo.latency_ms,
            "slo_min_f1": slo.min_f1,
            "slo_policy": str(slo.policy),
            "feasible": self.request.feasible,
            "question": self.request.example.id,
            "outcome": str(reply.outcome),
            "detail": reply.detail,
            "in_time": self.in_time,
            "f1": round(self.f1, 4) if self.answered else None,
            "answer": reply.answer if self.answered else None,
            "plan": reply.plan or None,
            "variant": reply.variant or None,
            "met": reply.met or None,
            "certified_f1": reply.certified_f1 if self.answered else None,
            "predicted_ms": reply.predicted_ms if reply.predicted_ms < inf else None,
        }


class TargetLost(BertierError):
    """Nobody is there to be measured, or not any more; the message says where, when and how."""
