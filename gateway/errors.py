"""Every error that the gateway raises on purpose. Knows neither HTTP nor gRPC.

    BertierError
    ├── BadInput             the caller's fault; names the field and what is allowed
    │   ├── Malformed        cannot be parsed as a request
    │   │   ├── MalformedText
    │   │   ├── InvalidHeader
    │   │   ├── HeadTooLarge request line and headers exceed their limit
    │   │   └── HeadTooSlow  request line and headers did not arrive in time
    │   ├── TextTooLong      question, context or body exceeds its limit
    │   ├── TooManyItems     more questions in one request than allowed
    │   ├── UnsupportedEncoding  the body's compression is not supported
    │   ├── BodyTooSlow      the body did not arrive in time
    │   ├── InvalidField     a field that is empty, of the wrong type, or unknown
    │   │   └── EmptyText
    │   ├── UnknownClass     no such class in the settings
    │   ├── UnknownVariant   no such variant in the catalog
    │   ├── UnknownTask      no variant of this task in the catalog
    │   ├── UnknownRequest   feedback on an answer that is not remembered
    │   └── FeedbackConflict feedback that contradicts an earlier one
    ├── Unauthenticated      no key, or an unknown one
    ├── Forbidden            the key does not allow this
    ├── Infeasible           strict SLO that even an idle system cannot meet
    ├── Overloaded           the SLO cannot be met now; says when to retry
    │   ├── QuotaExceeded    the key's requests per second are used up
    │   └── TooManyConnections   the limit of open connections is reached
    ├── DeadlineExceeded     the deadline of the request has passed
    ├── ClientGone           the caller left before the answer was ready; nothing is sent
    ├── BackendError         the model server failed
    │   ├── ModelCrashed         this input ended two model instances: it is not sent to a third
    │   ├── InvalidLogits        the model server returned unusable logits
    │   └── BackendUnavailable   the model server cannot be reached, or is not ready
    │       └── VariantUnavailable   the server answers, but the model is not ready
    └── RepositoryError      a model repository or catalog that cannot be served
        └── VariantsUnserved     the files are sound, but the model server does not serve them; may recover

Each frontend maps these to its own status in one table. The text of an error is safe to show to a caller.
Each class has a `kind`: the stable name that both frontends send and that metrics and logs count by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


def _as_it_was(
    kind: type[BertierError], texts: tuple[Any, ...], own: Mapping[str, Any]
) -> BertierError:
    error = kind.__new__(kind)
    error.args = texts
    error.__dict__.update(own)
    return error


class BertierError(Exception):
    """Root of the tree; `str(error)` may be shown to the caller."""

    kind: ClassVar[str] = "internal"
    gateway_at_fault: ClassVar[bool] = (
        True  # the gateway or its load, not the caller, broke the SLO
    )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as it is: between workers; a class may take other arguments than its text."""
        return _as_it_was, (type(self), self.args, self.__dict__)


class BadInput(BertierError):
    """The request cannot be served as written."""

    gateway_at_fault = False


class Malformed(BadInput):
    """The request could not be read."""

    kind = "malformed"


class MalformedText(Malformed):
    def __init__(self, field: str, position: int) -> None:
        super().__init__(
            f"{field}: not valid Unicode at character {position} (a lone surrogate); send UTF-8"
        )


class InvalidHeader(Malformed):
    kind = "invalid-header"

    def __init__(self, name: str, value: str, allowed: str) -> None:
        super().__init__(f"{name}: {value[:80]!r} is not allowed; allowed: {allowed}")
        self.name = name


class HeadTooLarge(Malformed):
    kind = "head-too-large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"request line and headers: more than {limit_bytes} bytes; send fewer or shorter headers"
        )


class HeadTooSlow(Malformed):
    kind = "head-too-slow"

    def __init__(self, timeout_ms: float) -> None:
        super().__init__(
            f"request line and headers: not complete after {timeout_ms:g} ms; send them faster"
        )


class TextTooLong(BadInput):
    kind = "text-too-long"

    def __init__(self, field: str, size: int, limit: int, unit: str = "characters") -> None:
        super().__init__(f"{field}: {size} {unit}, the limit is {limit}; send less text")


class TooManyItems(BadInput):
    kind = "too-many-items"

    def __init__(self, field: str, n_items: int, limit: int) -> None:
        super().__init__(f"{field}: {n_items} items, the limit is {limit}; send several requests")


class BodyTooSlow(BadInput):
    kind = "body-too-slow"

    def __init__(self, timeout_ms: float) -> None:
        super().__init__(f"body: not complete after {timeout_ms:g} ms; send it faster, or in parts")


class UnsupportedEncoding(BadInput):
    kind = "unsupported-encoding"

    def __init__(self, coding: str, supported: Sequence[str]) -> None:
        super().__init__(
            f"Content-Encoding: {coding[:80]!r} is not supported; supported: {', '.join(supported)},"
            " one of them, or none"
        )
        self.supported = tuple(supported)


class InvalidField(BadInput):
    """A field is missing, unknown, or of a kind that cannot be used."""

    kind = "invalid-field"


class EmptyText(InvalidField):
    kind = "empty-text"

    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: empty; it needs at least one visible character")


class UnknownClass(BadInput):
    kind = "unknown-class"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"SLO-Class: {name[:80]!r} is not known; known: {', '.join(known)}")


class UnknownVariant(BadInput):
    kind = "unknown-variant"

    def __init__(self, name: str, known: Sequence[str], task: str | None = None) -> None:
        """`task`: the variant is of this one, and another was asked."""
        what = "not served" if task is None else f"of the task {task!r}, which is not asked here"
        super().__init__(f"SLO-Variant: {name[:80]!r} is {what}; served: {', '.join(known)}")


class UnknownTask(BadInput):
    kind = "unknown-task"


class NoQuestions(UnknownTask):
    def __init__(self, served: Sequence[str]) -> None:
        super().__init__(
            "questions are not answered here: this repository has no question-answering model, only"
            f" classifications ({', '.join(served)}, at /v1/classify); publish one with 'bertier-optimize"
            " publish'"
        )


class NoClassification(UnknownTask):
    def __init__(self, name: str, served: Sequence[str]) -> None:
        what = f"task: {name[:80]!r} is not served" if name else "no classification is served"
        known = (
            f"; served: {', '.join(served)}"
            if served
            else ": this repository answers questions only"
        )
        super().__init__(
            f"{what}{known}; train and publish a classification with a study file that has a [task]"
        )


class UnknownRequest(BadInput):
    kind = "unknown-request"

    def __init__(self, request_id: str, own_id: str, remembered: int) -> None:
        if not remembered:
            super().__init__("this gateway takes no feedback; its setting feedback_requests is 0")
            return
        own = f" with the question id {own_id[:80]!r}" if own_id else " without a question id"
        super().__init__(
            f"request_id: {request_id[:80]!r}{own} is no answer of yours among the last {remembered} of this"
            " gateway; send feedback sooner, with the X-Request-Id of the response and, if the question had one,"
            " its `id`. Classifications take no feedback"
        )


class FeedbackConflict(BadInput):
    kind = "feedback-conflict"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id: {request_id[:80]!r} has other feedback already; the first one counts"
        )


class Infeasible(BertierError):
    """No plan meets this strict SLO, even on an idle system; `nearest`: what an idle system can meet."""

    kind = "infeasible"
    gateway_at_fault = False

    def __init__(self, message: str, nearest: Sequence[dict[str, Any]]) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)


class Overloaded(BertierError):
    """The SLO could be met on a less busy system; try again after `retry_after_ms`."""

    kind = "overloaded"

    def __init__(self, message: str, retry_after_ms: float) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class QuotaExceeded(Overloaded):
    kind = "quota-exceeded"
    gateway_at_fault = False

    def __init__(self, name: str, per_s: float, retry_after_ms: float) -> None:
        super().__init__(
            f"the key {name} may send {per_s:g} requests a second; wait, or ask for a larger quota",
            retry_after_ms,
        )


class TooManyConnections(Overloaded):
    kind = "too-many-connections"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"busy: all {limit} allowed connections are in use; try again later, or send several"
            " requests over one connection",
            1e3,
        )


class Unauthenticated(BertierError):
    kind = "unauthenticated"
    gateway_at_fault = False

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; send one that is valid as `Authorization: Bearer KEY`")


class Forbidden(BertierError):
    """The key is valid, but does not allow this."""

    kind = "forbidden"
    gateway_at_fault = False


class DeadlineExceeded(BertierError):
    """The deadline passed before the answer was ready."""

    kind = "deadline-exceeded"


class ClientGone(BertierError):
    """The caller left before the answer was ready; no response is sent."""

    kind = "gone"
    gateway_at_fault = False


class BackendError(BertierError):
    """The model server failed on this request."""

    kind = "backend-error"


class ModelCrashed(BackendError):
    """Two instances of a model ended while they processed this request; a third would end, too."""


class InvalidLogits(BackendError):
    kind = "invalid-logits"

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"{model}: the model server returned logits that are {why}; try again")


class BackendUnavailable(BackendError):
    """No model server answers, or the model is not loaded."""

    kind = "backend-unavailable"


class VariantUnavailable(BackendUnavailable):
    """The model server answers, but does not serve this model or version at present."""


class RepositoryError(BertierError):
    """A model repository that cannot be served; the message names the file and what to do."""


class VariantsUnserved(RepositoryError):
    """The model server does not serve the variants that the catalog names; may recover by itself."""

    def __init__(self, what: str, problems: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {why}" for name, why in problems.items())
        super().__init__(f"{what}: {reasons}")


def kind_of(error: BaseException) -> str:
    """Return the kind of an error; one that is not in the tree is `internal`."""
    return error.kind if isinstance(error, BertierError) else BertierError.kind


def is_gateway_at_fault(error: BaseException) -> bool:
    """Return whether the gateway or its load broke the SLO; a caller's own quota does not count."""
    return error.gateway_at_fault if isinstance(error, BertierError) else True
