"""What travels over HTTP: JSON bodies as strict models, and their way to our own values."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SkipValidation,
    Tag,
    ValidationError,
)
from pydantic_core import from_json

from gateway.domain import Asked, Question, SloPolicy, SloRequest, Texts
from gateway.errors import BadInput, InvalidField, Malformed
from gateway.frontends import parsed_question
from gateway.frontends.parsed_question import OffsetUnit, ParsedQuestion, PassageText
from gateway.frontends.slo_headers import MAX_ID_CHARS, MAX_PLAN_TOKENS
from gateway.qa.codec import MAX_ANSWER_TOKENS
from gateway.request.feedback import Truth
from gateway.settings import MAX_PASSAGES, Settings
from gateway.slo import MAX_LATENCY_MS

M = TypeVar("M", bound=BaseModel)


class Sent(BaseModel):
    """The body of a request: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ReplyBody(BaseModel):
    """The body of a response."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class PassageBody(Sent):
    """One of several passages."""

    context: str = Field(description="Its text.")
    id: str | None = Field(None, max_length=MAX_ID_CHARS, description="Sent back as it came.")


def _form_of(value: object) -> str:
    return "text" if isinstance(value, str) else "passage"


AnyPassage = Annotated[
    Annotated[str, Tag("text")] | Annotated[PassageBody, Tag("passage")], Discriminator(_form_of)
]


def _passages(sent: list[str | PassageBody] | None) -> list[PassageText] | None:
    if sent is None:
        return None
    return [
        PassageText(each) if isinstance(each, str) else PassageText(each.context, each.id)
        for each in sent
    ]


class QuestionBody(Sent):
    """One question about one context, or about several passages."""

    question: str = Field(description="At least one visible character.")
    context: str | None = Field(
        None, description="The text that holds the answer, if there is one. This or `contexts`."
    )
    contexts: list[AnyPassage] | None = Field(
        None,
        max_length=MAX_PASSAGES,
        description="Passages, one of which may hold the answer. In place of `context`.",
    )
    id: str | None = Field(None, max_length=MAX_ID_CHARS, description="Sent back as it came.")
    top_k: int = Field(1, ge=1, description="How many alternatives to return; 1: none.")
    max_answer_tokens: int | None = Field(
        None, ge=1, le=MAX_ANSWER_TOKENS, description=f"Absent: {MAX_ANSWER_TOKENS}."
    )
    min_score: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="An answer of a lower score is withheld."
    )
    max_no_answer_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The best span answers up to this probability of no answer, whatever the variant's threshold.",
    )
    offset_unit: OffsetUnit = Field(
        OffsetUnit.CODE_POINTS, strict=False, description="What `start` and `end` count."
    )
    sentence: bool = Field(
        default=False, description="Whether to return the sentence around the answer."
    )

    def to_parsed(self, settings: Settings) -> ParsedQuestion:
        """Raises: InvalidField, TooManyItems, TextTooLong."""
        question = Question(
            self.question,
            "",
            self.id or "",
            self.top_k,
            self.max_answer_tokens,
            (),
            self.min_score,
            self.max_no_answer_probability,
        )
        parsed_question.check_options(question, settings)
        question, passages = parsed_question.about(
            question, self.context, _passages(self.contexts), settings
        )
        return ParsedQuestion(question, passages, self.offset_unit, self.sentence)


class SloFields(Sent):
    """An SLO as a JSON object; absent fields come from the headers."""

    latency_ms: float | None = Field(None, ge=1, le=MAX_LATENCY_MS, allow_inf_nan=False)
    min_f1: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    max_f1_loss: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    min_answerable_f1: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    slo_class: str | None = Field(None, alias="class")
    policy: SloPolicy | None = Field(None, strict=False)
    priority: int | None = Field(None, ge=0, le=7)
    variant: str | None = None
    explain: bool | None = None

    def over(self, request: SloRequest) -> SloRequest:
        """Return the request overridden by the fields that are set here."""
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return replace(request, **{k: v for k, v in said.items() if v is not None})


class ItemBody(QuestionBody):
    """One question of a list or stream."""

    slo: SloFields = SloFields()


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """A question as it was sent, and why it cannot be answered."""

    sent: dict[str, Any]
    error: BadInput


class SharedQuestionsBody(Sent):
    """Many questions about one context, or about the same passages, which are sent once."""

    # Checked by `items`: pydantic takes 15 s for a union of 11 million texts, which fit into a body.
    questions: SkipValidation[list[str | dict[str, Any]]] = Field(
        description="Each is a text, or an item as in a list, without `context` and `contexts`."
    )
    context: str | None = Field(None, description="This or `contexts`.")
    contexts: list[AnyPassage] | None = Field(
        None, max_length=MAX_PASSAGES, description="In place of `context`."
    )

    def items(self, settings: Settings) -> Iterator[dict[str, Any] | RefusedItem]:
        """Return the items of the list that says the same.

        Raises: InvalidField, TooManyItems, TextTooLong.
        """
        _check_questions(self.questions)
        parsed_question.about(Question("", ""), self.context, _passages(self.contexts), settings)
        shared = {
            name: getattr(self, name)
            for name in ("context", "contexts")
            if getattr(self, name) is not None
        }
        return (self._item(i, question, shared) for i, question in enumerate(self.questions))

    def _item(
        self, i: int, question: str | dict[str, Any], shared: dict[str, Any]
    ) -> dict[str, Any] | RefusedItem:
        item = {"question": question} if isinstance(question, str) else question
        twice = [name for name in ("context", "contexts") if name in item]
        if twice:
            return RefusedItem(
                item,
                InvalidField(f"questions.{i}.{twice[0]}: sent for all questions; leave it out"),
            )
        return {**item, **shared}


def _check_questions(questions: object) -> None:
    """Raise InvalidField for all that is no list of texts and objects."""
    if not isinstance(questions, list):
        raise InvalidField("questions: not a list")
    if not questions:
        raise InvalidField("questions: empty; send at least one")
    if not set(map(type, questions)) <= {str, dict}:  # of millions, six times as fast as a loop
        wrong = next(i for i, each in enumerate(questions) if type(each) not in (str, dict))
        raise InvalidField(f"questions.{wrong}: neither a text nor an object")


class TextsBody(Sent):
    """A text, or a pair of texts, to classify."""

    text: str = Field(description="At least one visible character.")
    text_pair: str | None = Field(None, description="The second text, of a task that has pairs.")
    task: str | None = Field(
        None, description="The classification. Absent: the only one that is served."
    )
    id: str | None = Field(None, max_length=MAX_ID_CHARS, description="Sent back as it came.")

    def to_texts(self) -> Texts:
        return Texts(self.text, self.text_pair, self.id or "", self.task or "")


class PlanRequestBody(Sent):
    """What to plan for: a question with its context, or texts to classify, or a number of tokens, or a typical request."""

    question: str | None = None
    context: str | None = None
    text: str | None = None
    text_pair: str | None = None
    task: str | None = Field(None, description="Of a classification. Absent: question answering.")
    n_tokens: int | None = Field(None, ge=1, le=MAX_PLAN_TOKENS)

    def to_asked(self) -> Asked[Any] | None:
        """Return what is asked; None: only its length matters. Raises: InvalidField."""
        if self.text is not None:
            if self.question is not None or self.context is not None:
                raise InvalidField("text: sent with a question; send one of the two")
            return Texts(self.text, self.text_pair, task=self.task or "")
        if self.text_pair is not None:
            raise InvalidField("text: missing; text_pair is the second of two texts to classify")
        if self.task is not None and (self.question is not None or self.context is not None):
            raise InvalidField("task: sent with a question; it names a classification")
        if self.question is None and self.context is None:
            return None
        if self.question is None or self.context is None:
            raise InvalidField("question, context: send both, or neither")
        return Question(self.question, self.context)


class FeedbackBody(Sent):
    """Whether an answer was right: the right answers, or a verdict."""

    request_id: str = Field(description="`X-Request-Id` of the response that had the answer.")
    id: str = Field("", max_length=MAX_ID_CHARS, description="The question's own, if it had one.")
    answers: list[str] | None = Field(
        None, description="Right answers; an empty list: the question has none."
    )
    right: bool | None = Field(None, description="In place of `answers`: whether it was right.")

    @property
    def key(self) -> tuple[str, str]:
        return self.request_id, self.id

    @property
    def truth(self) -> Truth:
        return Truth(None if self.answers is None else tuple(self.answers), self.right)


class ScoredBody(ReplyBody):
    """How the answer scores."""

    plan: str
    variant: str
    f1: float = Field(description="By `answers`, the best of them; 1 or 0 by a verdict.")
    exact: float = Field(description="1: the answer is one of `answers`, by the SQuAD rule.")


class PassageRefBody(ReplyBody):
    """One of the `contexts`."""

    index: int = Field(description="From 0, in the order sent.")
    id: str | None = Field(None, description="There when the passage had one.")


class SentenceBody(ReplyBody):
    """The sentence around an answer."""

    text: str
    start: int
    end: int


class CostBody(ReplyBody):
    """Compute, ms of one core by the profiles of this host, beside that of the largest variant."""

    compute_ms: float = Field(description="Of the variants that were asked; 0: a cached answer.")
    largest_variant: str
    largest_compute_ms: float = Field(description="Had the largest variant been asked.")
    saved_ms: float = Field(
        description="The difference; below 0 where a cascade cost more than the largest variant."
    )


class AlternativeBody(ReplyBody):
    """Another span; `probability` is its share of the n-best mass."""

    answer: str
    start: int
    end: int
    probability: float
    passage: PassageRefBody | None = Field(None, description="There with `contexts`.")


class SloBody(ReplyBody):
    """The SLO of the request, with every default filled in."""

    slo_class: str = Field(alias="class")
    latency_ms: float
    min_f1: float
    max_f1_loss: float | None = Field(None, description="There when a loss was asked for.")
    min_answerable_f1: float | None = Field(None, description="There when it was asked for.")
    policy: SloPolicy
    timeout_ms: float


class SloOutcomeBody(SloBody):
    """The SLO and its outcome; `met` is `true`, or the violations, comma-separated."""

    met: str
    certified_f1: float
    certified_f1_loss: float | None = Field(None, description="There where it is certified.")
    certified_answerable_f1: float | None = Field(None, description="Likewise.")
    predicted_ms: float
    total_ms: float = Field(description="What it took, from the request read to the answer.")


class OptionBody(ReplyBody):
    """A plan with its predictions for this request."""

    plan: str
    certified_f1: float
    certified_f1_loss: float | None = Field(
        None, description="To the largest variant; null: not certified."
    )
    certified_answerable_f1: float | None = Field(
        None, description="Of questions that have an answer; null: not certified."
    )
    floor_scope: str = Field(description="Setting `floor_scope`: `lower` or `all`.")
    idle_ms: float
    predicted_ms: float
    cost_ms: float
    trust: str


class ExplainedOptionBody(OptionBody):
    """A candidate with its predictions; `rejection_reasons`: empty if it only costs more."""

    p50_ms: float = Field(description="Predicted latency quantile, with the work in flight.")
    p95_ms: float
    p99_ms: float
    wait_ms: float = Field(
        description="The part of `predicted_ms` that is a wait for work in flight."
    )
    chosen: bool
    rejection_reasons: list[str]


class ExplainBody(ReplyBody):
    """Why this plan was chosen: all candidates and the reason."""

    reason: str
    quantile: float = Field(description="The latency quantile that had to meet the target.")
    spent_ms: float = Field(description="Time already spent when the plan was chosen.")
    catalog: Literal["current", "candidate"] | None = Field(
        None, description="That answered, while a candidate is tried beside the current one."
    )
    options: list[ExplainedOptionBody]


class AnswerBody(ReplyBody):
    """The answer; unanswerable: empty, offsets null.

    Offsets count in the context or, with `contexts`, in the passage; code points, or what `offset_unit` says.
    """

    id: str | None = Field(None, description="There when the request had one.")
    answer: str
    start: int | None
    end: int | None
    score: float = Field(description="Calibrated probability that the answer is right.")
    no_answer_probability: float
    alternatives: list[AlternativeBody]
    passage: PassageRefBody | None = Field(
        None, description="There with `contexts`; null: no answer."
    )
    sentence: SentenceBody | None = Field(
        None, description="There when it was asked for; null: no answer."
    )
    plan: str
    variant: str
    slo: SloOutcomeBody
    cost: CostBody
    age_ms: float | None = Field(
        None, description="Of a cached answer: since it was first given. Absent: it is new."
    )
    explain: ExplainBody | None = Field(None, description="There with `SLO-Explain: 1`.")


class LabelScoreBody(ReplyBody):
    """A label with its calibrated probability."""

    label: str
    probability: float


class ClassificationBody(ReplyBody):
    """The most probable label, and all of them."""

    id: str | None = Field(None, description="There when the request had one.")
    task: str
    label: str
    score: float = Field(description="Calibrated probability that the label is right.")
    scores: list[LabelScoreBody] = Field(description="Of all labels, the most probable first.")
    plan: str
    variant: str
    slo: SloOutcomeBody = Field(description="F1 is the accuracy here.")
    cost: CostBody
    age_ms: float | None = Field(
        None, description="Of a cached answer: since it was first given. Absent: it is new."
    )
    explain: ExplainBody | None = Field(None, description="There with `SLO-Explain: 1`.")


class PlanBody(ReplyBody):
    """What would happen to such a request now; `nearest`: what an idle system could offer."""

    feasible: bool = Field(description="A plan meets the whole SLO now.")
    plan: str | None = Field(description="The plan that would answer; null: refused.")
    reason: str
    violations: list[str]
    slo: SloBody
    n_tokens: int = Field(description="Of one window, padded to its length bucket.")
    n_windows: int
    options: list[ExplainedOptionBody]
    nearest: list[OptionBody]


class ReadyBody(ReplyBody):
    """Whether questions can be answered, and no more."""

    ready: bool


class ProblemBody(BaseModel):
    """A failure (RFC 9457)."""

    type: str = Field(description="Stable; `urn:bertier:problem:...`.")
    title: str
    status: int
    detail: str
    request_id: str
    nearest: list[OptionBody] | None = Field(None, description="Of an infeasible SLO.")
    retry_after_ms: float | None = Field(None, description="Of an overloaded gateway.")


def read(model: type[M], body: bytes) -> M:
    """Return a body as its model; a byte-order mark before it is skipped. Raises: Malformed, InvalidField."""
    try:
        return model.model_validate_json(body.removeprefix(BOM_UTF8))
    except ValidationError as exc:
        raise bad_input(exc) from exc


def read_json(body: bytes | bytearray) -> Any:
    """Return any JSON value; a byte-order mark before it is skipped. Raises: Malformed."""
    try:
        return from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as exc:
        raise Malformed(f"body: invalid JSON: {exc}") from exc


def check(model: type[M], value: Any) -> M:
    """Return a JSON value as a model. Raises: InvalidField."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        raise bad_input(exc) from exc


def bad_input(exc: ValidationError) -> BadInput:
    """Return our error for the first thing that is wrong; it never quotes the caller's text."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Malformed(f"body: {first['msg']}")
    where = ".".join(str(part)[:40] for part in first["loc"]) or "body"
    return InvalidField(f"{where}: {first['msg']}")
