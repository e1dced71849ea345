"""Questions, and their requests in both protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypedDict, TypeVar

from bertier import answers
from bertier.answers import Answer, Classification, PlanReport, Scored
from bertier.slo import SloArguments, json_of
from gateway.proto.bertier.v1 import qa_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Passage:
    """One of several texts that a question is asked about."""

    text: str
    id: str | None = None


Texts = str | Sequence[str | Passage]  # one context, or passages


class AnswerOptions(TypedDict, total=False):
    """What else may be said of a question; absent ones are as described in the API."""

    id: str | None  # sent back as it came
    top_k: int  # alternatives wanted
    max_answer_tokens: int
    min_score: float  # 0 to 1: an answer of a lower score is withheld
    max_no_answer_probability: float  # 0 to 1: in place of the variant's threshold
    offset_unit: str  # code-points, utf-16, utf-8
    sentence: bool  # whether to return the sentence around the answer


class AnswerArguments(AnswerOptions, SloArguments, total=False):
    """Everything that may be said of one question."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of many, with its own SLO if it has one; `context`: a text, or passages."""

    question: str
    context: Texts | None = None  # None: that of all, in `answers_about`
    id: str | None = None
    top_k: int = 1
    slo: SloArguments = field(default_factory=SloArguments)
    max_answer_tokens: int | None = None
    min_score: float | None = None
    max_no_answer_probability: float | None = None
    offset_unit: str | None = None
    sentence: bool | None = None

    def json(self) -> dict[str, Any]:
        own = {"slo": json_of(self.slo)} if self.slo else {}
        texts = {} if self.context is None else texts_as_json(self.context)
        return {"question": self.question, **texts, **self._options()} | own

    def message(self) -> pb.AnswerRequest:
        own = pb.SloRequest(**self.slo) if self.slo else None
        texts = {} if self.context is None else texts_of_message(self.context)
        return pb.AnswerRequest(question=self.question, slo=own, **texts, **self._options())

    def _options(self) -> dict[str, Any]:
        return _present(
            id=self.id,
            top_k=self.top_k,
            max_answer_tokens=self.max_answer_tokens,
            min_score=self.min_score,
            max_no_answer_probability=self.max_no_answer_probability,
            offset_unit=self.offset_unit,
            sentence=self.sentence,
        )


def ask_of(question: str, context: Texts, said: AnswerArguments) -> tuple[Ask, SloArguments]:
    """Return the question with its options, and its SLO."""
    options = {name: said.get(name) for name in AnswerOptions.__annotations__ if name in said}
    slo = {name: value for name, value in said.items() if name not in options}
    return replace(Ask(question, context), **options), SloArguments(**slo)  # type: ignore[arg-type, typeddict-item]


def texts_as_json(texts: Texts) -> dict[str, Any]:
    """Return the fields of a context, or of passages."""
    if isinstance(texts, str):
        return {"context": texts}
    return {"contexts": [each if isinstance(each, str) else _passage(each) for each in texts]}


def texts_of_message(texts: Texts) -> dict[str, Any]:
    """Return the same for a message."""
    if isinstance(texts, str):
        return {"context": texts}
    passages = [Passage(each) if isinstance(each, str) else each for each in texts]
    return {"contexts": [pb.Passage(**_passage(each)) for each in passages]}


def _passage(passage: Passage) -> dict[str, Any]:
    return _present(context=passage.text, id=passage.id)


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions of one request, each with its texts, or all about the same."""

    asks: Sequence[Ask]
    shared: Texts | None = None

    def shared_json(self) -> dict[str, Any]:
        """Return the body that holds the texts once."""
        assert self.shared is not None
        return {"questions": [ask.json() for ask in self.asks], **texts_as_json(self.shared)}

    def shared_message(self) -> pb.AnswerManyRequest:
        """Return the same as a message."""
        assert self.shared is not None
        questions = [ask.message() for ask in self.asks]
        return pb.AnswerManyRequest(questions=questions, **texts_of_message(self.shared))


def checked(asks: Iterable[Ask]) -> Iterator[Ask]:
    """Yield the questions. Raises: TypeError for what is no `Ask`."""
    for n, each in enumerate(asks):
        if not isinstance(each, Ask):
            raise TypeError(
                f"answers() takes bertier.Ask(question, context) items; item {n} is a {type(each).__name__}"
            )
        if each.context is None:
            raise TypeError(f"item {n} has no context; give it one, or use answers_about()")
        yield each


def about(asks: Iterable[str | Ask]) -> Iterator[Ask]:
    """Yield questions without a context. Raises: TypeError for one that has its own."""
    for n, each in enumerate(asks):
        ask = Ask(each) if isinstance(each, str) else each
        if getattr(ask, "context", "") is not None:
            raise TypeError(
                f"answers_about() takes texts and bertier.Ask(question) without a context; item {n} is neither"
            )
        yield ask


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call: where it goes over HTTP and over gRPC, and what its replies mean."""

    path: str
    rpc: str
    body: Mapping[str, Any]
    message: Any
    of_json: Callable[[Any], T]
    of_message: Callable[[Any], T]
    service: str = "QuestionAnswering"  # that has the rpc


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


def classify(text: str, text_pair: str | None, task: str | None) -> Operation[Classification]:
    """Return the call that classifies a text, or a pair of texts."""
    body = _present(text=text, text_pair=text_pair, task=task)
    return Operation(
        "/v1/classify",
        "Classify",
        body,
        pb.ClassifyRequest(**body),
        answers.classification_of_json,
        answers.classification_of_message,
        "Classification",
    )


def plan(
    question: str | None, context: str | None, n_tokens: int | None, task: str | None = None
) -> Operation[PlanReport]:
    """Return the call that says what such a request would get now; `task`: of a classification."""
    body = _present(question=question, context=context, n_tokens=n_tokens, task=task)
    return Operation(
        "/v1/plan",
        "Plan",
        body,
        pb.PlanRequest(**body),
        answers.plan_of_json,
        answers.plan_of_message,
    )


def feedback(
    given: Answer | str, own_id: str | None, right_ones: Sequence[str] | None, right: bool | None
) -> Operation[Scored]:
    """Return the call that reports whether an answer was right. Raises: ValueError, TypeError."""
    if (right_ones is None) is (right is None):
        raise ValueError("give either answers (none: []) or right")
    if isinstance(right_ones, str):
        raise TypeError("answers: give a list of texts")
    found = given if isinstance(given, Answer) else None
    request_id = given if found is None else found.request_id
    ids = _present(request_id=request_id, id=own_id if found is None else found.id)
    truth = {"right": right} if right_ones is None else {"answers": list(right_ones)}
    fields = truth if right_ones is None else {"answers": pb.RightAnswers(texts=right_ones)}
    return Operation(
        "/v1/feedback",
        "Feedback",
        ids | truth,
        pb.FeedbackRequest(**ids, **fields),
        answers.scored_of_json,
        answers.scored_of_message,
    )


def _present(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
