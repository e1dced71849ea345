"""Questions, and their requests in both protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from bertier import answers
from bertier.answers import Answer, PlanReport
from bertier.slo import SloArguments, json_of
from gateway.proto.bertier.v1 import qa_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of many, with its own SLO if it has one."""

    question: str
    context: str
    id: str | None = None
    top_k: int = 1
    slo: SloArguments = field(default_factory=SloArguments)

    def json(self) -> dict[str, Any]:
        own = {"slo": json_of(self.slo)} if self.slo else {}
        return (
            _present(question=self.question, context=self.context, id=self.id, top_k=self.top_k)
            | own
        )

    def message(self) -> pb.AnswerRequest:
        own = {"slo": pb.SloRequest(**self.slo)} if self.slo else {}
        return pb.AnswerRequest(
            question=self.question, context=self.context, id=self.id, top_k=self.top_k, **own
        )


def checked(asks: Iterable[Ask]) -> Iterator[Ask]:
    """Yield the questions. Raises: TypeError for what is no `Ask`."""
    for n, each in enumerate(asks):
        if not isinstance(each, Ask):
            raise TypeError(
                f"answers() takes bertier.Ask(question, context) items; item {n} is a {type(each).__name__}"
            )
        yield each


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call: where it goes over HTTP and over gRPC, and what its replies mean."""

    path: str
    rpc: str
    body: Mapping[str, Any]
    message: Any
    of_json: Callable[[Any], T]
    of_message: Callable[[Any], T]


def answer(ask: Ask) -> Operation[Answer]:
    """Return the call that answers one question."""
    return Operation(
        "/v1/answer",
        "Answer",
        ask.json(),
        ask.message(),
        answers.answer_of_json,
        answers.answer_of_message,
    )


def plan(question: str | None, context: str | None, n_tokens: int | None) -> Operation[PlanReport]:
    """Return the call that says what such a request would get now."""
    body = _present(question=question, context=context, n_tokens=n_tokens)
    return Operation(
        "/v1/plan",
        "Plan",
        body,
        pb.PlanRequest(**body),
        answers.plan_of_json,
        answers.plan_of_message,
    )


def _present(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
