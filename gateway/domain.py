"""The values of a request on its way through the gateway: frozen, free of I/O and of protocols' words.

Legend for shapes: W windows of one question, S tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.catalog.schema import ANSWERABLE, Plan

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one context, as the caller wrote both."""

    question: str
    context: str
    id: str = ""
    top_k: int = 1
    max_answer_tokens: int | None = None  # None: as many as are certified


@dataclass(frozen=True, slots=True)
class Windows:
    """A tokenized question: overlapping windows over its context, padded to one length bucket."""

    input_ids: Ints  # (W, S)
    attention_mask: Ints  # (W, S)
    token_type_ids: Ints  # (W, S)
    offsets: Ints  # (W, S, 2), code points of the context
    is_context: Bools  # (W, S)
    n_tokens: int  # tokens of the longest window, padding left out

    @property
    def n_windows(self) -> int:
        return len(self.input_ids)

    def count_tokens(self) -> tuple[int, int]:
        """Return the tokens of the text, and all of them, padding included."""
        n_text = self.n_tokens if self.n_windows == 1 else int(self.attention_mask.sum())
        return n_text, self.input_ids.size

    def window(self, row: int) -> Windows:
        """Return one of the windows, alone."""
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
    """What a model says of each token of each window."""

    start: Floats  # (W, S)
    end: Floats  # (W, S)


@dataclass(frozen=True, slots=True)
class Inference:
    """What a backend returns for one question, and where the time went."""

    logits: Logits
    queue_ms: float  # waiting in this process before the model server had it
    infer_ms: float
    n_batches: int = 1  # requests to the model server that the windows went in


@dataclass(frozen=True, slots=True)
class Span:
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


class Trust(StrEnum):
    """Does the certificate hold on this host, and for what is asked?

    The golden inputs tell of the host; that it is broken, the shadow answers do.
    """

    CERTIFIED = "certified"
    TRANSFERRED = "transferred"
    UNCERTIFIED = "uncertified"
    BROKEN = "broken"


BY_TRUST = (Trust.UNCERTIFIED, Trust.TRANSFERRED, Trust.CERTIFIED)  # on a host, the least first


class SloPolicy(StrEnum):
    STRICT = "strict"
    PREFER_LATENCY = "prefer-latency"
    PREFER_ACCURACY = "prefer-accuracy"


@dataclass(frozen=True, slots=True)
class SloRequest:
    """What the caller said about the SLO; None where nothing was said."""

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
    tightest_class: str | None = None  # the caller's key allows no latency below this one's


@dataclass(frozen=True, slots=True)
class Slo:
    """The promise of one request, every default filled in."""

    latency_ms: float
    min_f1: float
    policy: SloPolicy
    timeout_ms: float  # the deadline, counted from the arrival
    slo_class: str
    priority: int = 3
    variant: str | None = None
    explain: bool = False
    max_f1_loss: float | None = None  # to the largest variant; None: not asked for
    min_answerable_f1: float | None = None  # of questions with an answer; None: not asked for


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a request is."""

    bucket: int  # tokens of a window, padded
    n_windows: int


class Reason(StrEnum):
    """Why the policy chose what it chose; a bounded set, used as a metric label."""

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


class Gave(StrEnum):
    """Which promise was not kept: the words of SLO-Met."""

    LATE = "late"
    BELOW_FLOOR = "below-floor"
    ESCALATION_CUT = "escalation-cut"
    PARTIAL = "partial"
    UNCERTIFIED = "uncertified"


class Option(NamedTuple):  # made for every plan of every request: a tuple costs a quarter
    """A plan as the policy sees it for one request."""

    plan: Plan
    trust: Trust
    size_bytes: int
    cost_ms: float
    idle_ms: float  # predicted quantile of the end-to-end time on an idle system
    predicted_ms: float  # the same with the work in flight
    behind_ms: float = 0.0  # that all who wait unread would take on the cores, were this their plan
    wait_ms: float = 0.0  # what of `predicted_ms` is a wait for work in flight

    @property
    def certified_f1(self) -> float:
        """The floor that holds; a broken certificate promises nothing."""
        return 0.0 if self.trust is Trust.BROKEN else self.plan.certified_f1

    @property
    def certified_answerable_f1(self) -> float | None:
        """The floor on questions that have an answer; None: not certified."""
        if self.trust is Trust.BROKEN:
            return None
        return self.plan.certificate.floor_of(ANSWERABLE)

    @property
    def certified_loss(self) -> float | None:
        return None if self.trust is Trust.BROKEN else self.plan.certified_loss


class Struck(StrEnum):
    """What speaks against a plan beside the promises it would not keep."""

    DEADLINE = "deadline"  # predicted to end after it
    FAILING = "failing"  # a variant of it is left alone
    PINNED = "pinned"  # another one was asked for


@dataclass(frozen=True, slots=True)
class Weighed:
    """An option with all that was known of it: quantiles of the time predicted, work in flight counted."""

    option: Option
    p50_ms: float
    p95_ms: float
    p99_ms: float
    struck_out_by: tuple[Gave | Struck, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen and why; no option: refused for `reason`."""

    option: Option | None
    reason: Reason
    gave: tuple[Gave, ...] = ()
    retry_after_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, ms."""

    tokenize: float = 0.0
    route: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    decode: float = 0.0
    total: float = 0.0


STAGES = ("tokenize", "route", "queue", "infer", "decode")  # of a request, as in Timings


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with the promise it was given under, and what became of it."""

    answer: Answer
    slo: Slo
    decision: Decision
    option: Option
    variant: str
    gave: tuple[Gave, ...]
    timings: Timings
    weighed: tuple[Weighed, ...]  # where the whole decision was asked for

    @property
    def met(self) -> str:
        """The words of SLO-Met."""
        return ",".join(self.gave) or "true"
