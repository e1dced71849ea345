"""The values of a request on its way through the gateway. Frozen; no I/O and no protocol.

Legend for shapes: W windows of one question, S tokens of a window, L labels of a classification.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from gateway.catalog.schema import ANSWERABLE, QA, Plan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
A = TypeVar("A")  # what a task gives: an Answer, or a Classification


class Asked(Generic[A]):
    """What is asked of a task that gives an `A`: a Question, or Texts to classify."""

    __slots__ = ()

    @property
    def task(self) -> str:
        """The name of the task in the catalog; "": the only classification there."""
        raise NotImplementedError

    @property
    def texts(self) -> Mapping[str, str]:
        """The caller's texts, by the names of their fields."""
        raise NotImplementedError

    def without_texts(self) -> Asked[A]:
        """Return all that may change the answer, apart from the texts."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Passage:
    """One of several texts that a question is asked about, and where it begins in the joined text."""

    text: str
    start: int


PASSAGE_BREAK = "\n"  # between the passages of a joined text; no answer holds it


@dataclass(frozen=True, slots=True)
class Question(Asked["Answer"]):
    """One question about one context, or about passages joined to one; as the caller wrote them."""

    question: str
    context: str
    id: str = ""
    top_k: int = 1
    max_answer_tokens: int | None = None  # None: as many as are certified
    passage_starts: tuple[int, ...] = ()  # where each begins in `context`; none: it is one text
    # The caller's own threshold; None: the variant's, which its certificate is about.
    min_score: float | None = None
    max_no_answer_probability: float | None = None

    task: ClassVar[str] = QA

    @property
    def texts(self) -> Mapping[str, str]:
        return {"question": self.question, "context": self.context}

    def without_texts(self) -> Question:
        return replace(self, question="", context="", id="")

    def named_passages(self) -> list[tuple[str, Passage]]:
        """Return the texts to read, each with the name of its field."""
        starts = self.passage_starts
        if not starts:
            return [("context", Passage(self.context, 0))]
        ends = [*(start - len(PASSAGE_BREAK) for start in starts[1:]), len(self.context)]
        return [
            (f"contexts.{i}", Passage(self.context[start:end], start))
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def passage_at(self, position: int) -> int:
        """Return the index of the passage at a position of the joined text; 0: there is one text."""
        return max(0, bisect_right(self.passage_starts, position) - 1)


@dataclass(frozen=True, slots=True)
class Texts(Asked["Classification"]):
    """A text, or a pair of texts, to classify; as the caller wrote them."""

    text: str
    text_pair: str | None = None
    id: str = ""
    task: str = ""

    @property
    def texts(self) -> Mapping[str, str]:
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {"text": self.text, **pair}

    def without_texts(self) -> Texts:
        return replace(self, text="", text_pair=None, id="")


@dataclass(frozen=True, slots=True)
class Windows:
    """A tokenized question: overlapping windows over its context, padded to one length bucket.

    Texts to classify are one window; their `offsets` and `is_context` say nothing.
    """

    input_ids: Ints  # (W, S)
    attention_mask: Ints  # (W, S)
    token_type_ids: Ints  # (W, S)
    offsets: Ints  # (W, S, 2), code points of the context
    is_context: Bools  # (W, S)
    n_tokens: int  # tokens of the longest window, without padding
    is_cut: bool = False  # texts to classify were longer than the window

    @property
    def n_windows(self) -> int:
        return len(self.input_ids)

    def count_tokens(self) -> tuple[int, int]:
        """Return the number of tokens of the text, and the same with padding."""
        n_text = self.n_tokens if self.n_windows == 1 else int(self.attention_mask.sum())
        return n_text, self.input_ids.size

    def window(self, row: int) -> Windows:
        """Return one window as windows of its own."""
        part = slice(row, row + 1)
        return Windows(
            self.input_ids[part],
            self.attention_mask[part],
            self.token_type_ids[part],
            self.offsets[part],
            self.is_context[part],
            self.n_tokens,
        )


@dataclass(frozen=True, slots=True)
class Logits:
    """What a model returns for each token of each window."""

    start: Floats  # (W, S)
    end: Floats  # (W, S)


@dataclass(frozen=True, slots=True)
class LabelLogits:
    """What a classification model returns for each window."""

    labels: Floats  # (W, L)


@dataclass(frozen=True, slots=True)
class Inference:
    """What a backend returns for one question, and how long it took."""

    logits: Logits | LabelLogits  # by the task of the variant
    queue_ms: float  # wait in this process before the request was sent to the model server
    infer_ms: float
    n_batches: int = 1  # requests to the model server that carried the windows

    @property
    def spans(self) -> Logits:
        """The logits of a variant that answers questions."""
        assert isinstance(self.logits, Logits)
        return self.logits


class Span(
    NamedTuple
):  # the n-best of each request are built: a tuple costs a third of a dataclass
    """A piece of the context: `text == context[start:end]`, with its share of the n-best mass."""

    text: str
    start: int
    end: int
    probability: float
    logit: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question; unanswerable: `text == ""` and no offsets."""

    text: str
    start: int | None
    end: int | None
    score: float
    no_answer_probability: float
    alternatives: tuple[Span, ...] = field(default=())
    best: Span | None = None  # the best span, whatever the threshold says; None: there is none
    other_score: float = 0.0  # the score if the threshold had decided the other way


class LabelScore(NamedTuple):
    """A label with its calibrated probability."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The label of texts; `score`: calibrated probability that it is right."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]  # of all labels, the best first

    @property
    def text(self) -> str:
        """What logs show of every answer: the label."""
        return self.label


class Trust(StrEnum):
    """Whether a certificate holds on this host and for the questions that are asked.

    Golden inputs decide whether it holds on the host; shadow answers can show that it is broken.
    """

    CERTIFIED = "certified"
    TRANSFERRED = "transferred"
    UNCERTIFIED = "uncertified"
    BROKEN = "broken"


BY_TRUST = (
    Trust.UNCERTIFIED,
    Trust.TRANSFERRED,
    Trust.CERTIFIED,
)  # on a host, the least trusted first


class SloPolicy(StrEnum):
    STRICT = "strict"
    PREFER_LATENCY = "prefer-latency"
    PREFER_ACCURACY = "prefer-accuracy"


@dataclass(frozen=True, slots=True)
class SloRequest:
    """The SLO fields that the caller sent; None for a field that was not sent."""

    latency_ms: float | None = None
    min_f1: float | None = None
    slo_class: str | None = None
    policy: SloPolicy | None = None
    priority: int = 3
    variant: str | None = None
    explain: bool = False
    timeout_ms: float | None = None
    max_f1_loss: float | None = None
    min_answerable_f1: float | None = None
    tightest_class: str | None = None  # the caller's key allows no latency below this class's


@dataclass(frozen=True, slots=True)
class Slo:
    """The service level objective of one request, with every default filled in."""

    latency_ms: float
    min_f1: float
    policy: SloPolicy
    timeout_ms: float  # the deadline, counted from the arrival of the request
    slo_class: str
    priority: int = 3
    variant: str | None = None
    explain: bool = False
    max_f1_loss: float | None = None  # loss to the largest variant; None: no limit
    min_answerable_f1: float | None = None  # floor on questions that have an answer; None: no floor
    task: str = QA  # whose certificates the floors are about; "": not known yet


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a request needs."""

    bucket: int  # tokens of a window, padded
    n_windows: int


class Reason(StrEnum):
    """Why the policy made its choice; a bounded set, used as a metric label."""

    MEETS_SLO = "meets_slo"
    PINNED = "pinned"
    MOST_ACCURATE_IN_TIME = "most_accurate_in_time"
    FASTEST = "fastest"
    LEAST_LATE = "least_late"
    MOST_ACCURATE = "most_accurate"
    INFEASIBLE = "infeasible"
    BUSY = "busy"
    SHED = "shed"
    TOO_LATE = "too_late"
    UNAVAILABLE = "unavailable"


class SloViolation(StrEnum):
    """A part of the SLO that an answer does not meet; the values of `SLO-Met`."""

    LATE = "late"
    BELOW_FLOOR = "below-floor"
    ESCALATION_CUT = "escalation-cut"
    PARTIAL = "partial"
    UNCERTIFIED = "uncertified"


class Option(
    NamedTuple
):  # one is built per plan and request: a tuple costs a quarter of a dataclass
    """A plan as the policy sees it for one request."""

    plan: Plan
    trust: Trust
    size_bytes: int
    cost_ms: float
    idle_ms: float  # predicted quantile of the end-to-end time on an idle system
    predicted_ms: float  # the same with the work in flight
    behind_ms: float = 0.0  # how long before the target it must answer, so that waiting requests can take it in time, too
    wait_ms: float = 0.0  # the part of `predicted_ms` that is a wait for work in flight

    @property
    def price(self) -> tuple[float, int]:
        """What the policy keeps low among the options that meet an SLO: compute, then memory."""
        return self.cost_ms, self.size_bytes

    @property
    def reach_ms(self) -> float:
        """The latency compared with the deadline: the idle one while a core is free, else the predicted one.

        Latencies learned under load are corrected by answers only. Refusing by them on a free core would leave
        no answers to correct them.
        """
        return self.predicted_ms if self.wait_ms else self.idle_ms

    @property
    def certified_f1(self) -> float:
        """The certified floor; 0 for a broken certificate."""
        return 0.0 if self.trust is Trust.BROKEN else self.plan.certificate.floor

    @property
    def certified_answerable_f1(self) -> float | None:
        """The certified floor on questions that have an answer; None: not certified."""
        if self.trust is Trust.BROKEN:
            return None
        return self.plan.certificate.floor_of(ANSWERABLE)

    @property
    def certified_loss(self) -> float | None:
        return None if self.trust is Trust.BROKEN else self.plan.certified_loss


class RejectionReason(StrEnum):
    """Why a plan is rejected, other than for violating the SLO."""

    DEADLINE = "deadline"  # predicted to end after the deadline
    FAILING = "failing"  # the circuit breaker of one of its variants is open
    PINNED = "pinned"  # the request pins another variant


@dataclass(frozen=True, slots=True)
class Candidate:
    """An option with its predicted latency quantiles (with the work in flight) and why it was rejected."""

    option: Option
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rejection_reasons: tuple[SloViolation | RejectionReason, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen option and the reason; without an option the request is refused for `reason`."""

    option: Option | None
    reason: Reason
    violations: tuple[SloViolation, ...] = ()
    retry_after_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """How a prediction turned out; `ratio` is observed / predicted P95."""

    variant: str
    in_p95: bool
    in_p99: bool
    ratio: float


class Timings(NamedTuple):
    """How long each stage of one request took, ms."""

    tokenize: float = 0.0
    route: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    decode: float = 0.0
    total: float = 0.0


STAGES = Timings._fields[:-1]  # of a request


@dataclass(frozen=True, slots=True)
class Cost:
    """The compute of an answer, ms of one core by the profiles of this host, beside the largest variant's."""

    compute_ms: float  # of the variants that were asked; 0: the answer was kept
    largest_variant: str
    largest_compute_ms: float  # had it been asked

    @property
    def saved_ms(self) -> float:
        """Compute saved; below 0 where a cascade cost more than the largest variant."""
        return self.largest_compute_ms - self.compute_ms


class SetName(StrEnum):
    """Which of two catalogs answers, while a candidate is tried beside the current one."""

    CURRENT = "current"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class Served(Generic[A]):
    """An answer with its SLO, the decision behind it, and what it violates."""

    answer: A
    slo: Slo
    decision: Decision
    option: Option
    variant: str
    violations: tuple[SloViolation, ...]
    timings: Timings
    candidates: tuple[Candidate, ...]  # with `explain` only
    cost: Cost
    age_ms: float | None = None  # since it was first given, of a cached answer; None: it is new
    served_by: SetName | None = None  # None: no candidate is tried

    @property
    def met(self) -> str:
        """The value of `SLO-Met`."""
        return ",".join(self.violations) or "true"


# For annotations; a value is made as `Served(...)`.
Answered: TypeAlias = Served[Answer]
Classified: TypeAlias = Served[Classification]
