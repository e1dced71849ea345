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
    │   └── UnknownVariant   no such variant in the catalog
    ├── Unauthenticated      no key, or an unknown one
    ├── Forbidden            the key does not allow this
    ├── Infeasible           strict SLO that even an idle system cannot meet
    ├── Overloaded           the SLO cannot be met now; says when to retry
    │   ├── QuotaExceeded    the key's requests per second are used up
    │   └── TooManyConnections   the limit of open connections is reached
    ├── DeadlineExceeded     the deadline of the request has passed
    ├── BackendError         the model server failed
    │   ├── ModelCrashed         this input ended two model instances: it is not sent to a third
    │   ├── InvalidLogits        the model server returned unusable logits
    │   └── BackendUnavailable   the model server cannot be reached, or is not ready
    │       └── VariantUnavailable   the server answers, but the model is not ready
    └── RepositoryError      a model repository or catalog that cannot be served
        └── VariantsUnserved     the files are sound, but the model server does not serve them; may recover

Each frontend maps these to its own status in one table. The text of an error is safe to show to a caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BertierError(Exception):
    """Root of the tree; `str(error)` may be shown to the caller."""


class BadInput(BertierError):
    """The request cannot be served as written."""


class Malformed(BadInput):
    """The request could not be read."""


class MalformedText(Malformed):
    def __init__(self, field: str, position: int) -> None:
        super().__init__(
            f"{field}: not valid Unicode at character {position} (a lone surrogate); send UTF-8"
        )


class InvalidHeader(Malformed):
    def __init__(self, name: str, value: str, allowed: str) -> None:
        super().__init__(f"{name}: {value[:80]!r} is not allowed; allowed: {allowed}")
        self.name = name


class HeadTooLarge(Malformed):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"request line and headers: more than {limit_bytes} bytes; send fewer or shorter headers"
        )


class HeadTooSlow(Malformed):
    def __init__(self, timeout_ms: float) -> None:
        super().__init__(
            f"request line and headers: not complete after {timeout_ms:g} ms; send them faster"
        )


class TextTooLong(BadInput):
    def __init__(self, field: str, size: int, limit: int, unit: str = "characters") -> None:
        super().__init__(f"{field}: {size} {unit}, the limit is {limit}; send less text")


class TooManyItems(BadInput):
    def __init__(self, field: str, n_items: int, limit: int) -> None:
        super().__init__(f"{field}: {n_items} items, the limit is {limit}; send several requests")


class BodyTooSlow(BadInput):
    def __init__(self, timeout_ms: float) -> None:
        super().__init__(f"body: not complete after {timeout_ms:g} ms; send it faster, or in parts")


class UnsupportedEncoding(BadInput):
    def __init__(self, coding: str, supported: Sequence[str]) -> None:
        super().__init__(
            f"Content-Encoding: {coding[:80]!r} is not supported; supported: {', '.join(supported)},"
            " one of them, or none"
        )
        self.supported = tuple(supported)


class InvalidField(BadInput):
    """A field is missing, unknown, or of a kind that cannot be used."""


class EmptyText(InvalidField):
    def __init__(self, field: str) -> None:
        super().__init__(f"{field}: empty; it needs at least one visible character")


class UnknownClass(BadInput):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"SLO-Class: {name[:80]!r} is not known; known: {', '.join(known)}")


class UnknownVariant(BadInput):
    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"SLO-Variant: {name[:80]!r} is not served; served: {', '.join(known)}")


class Infeasible(BertierError):
    """No plan meets this strict SLO, even on an idle system; `nearest`: what an idle system can meet."""

    def __init__(self, message: str, nearest: Sequence[dict[str, Any]]) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)


class Overloaded(BertierError):
    """The SLO could be met on a less busy system; try again after `retry_after_ms`."""

    def __init__(self, message: str, retry_after_ms: float) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class QuotaExceeded(Overloaded):
    def __init__(self, name: str, per_s: float, retry_after_ms: float) -> None:
        super().__init__(
            f"the key {name} may send {per_s:g} requests a second; wait, or ask for a larger quota",
            retry_after_ms,
        )


class TooManyConnections(Overloaded):
    def __init__(self, limit: int) -> None:
        super().__init__(
            f"busy: all {limit} allowed connections are in use; try again later, or send several"
            " requests over one connection",
            1e3,
        )


class Unauthenticated(BertierError):
    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; send one that is valid as `Authorization: Bearer KEY`")


class Forbidden(BertierError):
    """The key is valid, but does not allow this."""


class DeadlineExceeded(BertierError):
    """The deadline passed before the answer was ready."""


class BackendError(BertierError):
    """The model server failed on this request."""


class ModelCrashed(BackendError):
    """Two instances of a model ended while they processed this request; a third would end, too."""


class InvalidLogits(BackendError):
    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"{model}: the model server returned logits that are {why}; try again")


class BackendUnavailable(BackendError):
    """No model server answers, or the model is not loaded."""


class VariantUnavailable(BackendUnavailable):
    """The model server answers, but does not serve this model or version at present."""


class RepositoryError(BertierError):
    """A model repository that cannot be served; the message names the file and what to do."""


class VariantsUnserved(RepositoryError):
    """The model server does not serve the variants that the catalog names; may recover by itself."""

    def __init__(self, what: str, problems: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {why}" for name, why in problems.items())
        super().__init__(f"{what}: {reasons}")
