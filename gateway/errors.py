"""Every error the gateway raises on purpose, in its own words: no HTTP, no gRPC.

    BertierError
    ├── BadInput             the caller's fault; says which field and what is allowed
    │   ├── Malformed        not readable as a request at all
    │   │   ├── MalformedText
    │   │   ├── InvalidHeader
    │   │   ├── HeadTooLarge request line and headers over their limit
    │   │   └── HeadTooSlow  they did not come in time
    │   ├── TextTooLong      question, context or body over its limit
    │   ├── TooManyItems     more questions in one request than are served at once
    │   ├── UnsupportedEncoding  the body is compressed in a way that is not read here
    │   ├── BodyTooSlow      the body did not come in time
    │   ├── InvalidField     readable, but empty, of the wrong type, or unknown
    │   │   └── EmptyText
    │   ├── UnknownClass     no such class in the settings
    │   └── UnknownVariant   no such variant in the catalog
    ├── Unauthenticated      no key, or one that nobody has
    ├── Forbidden            a key that may not do this
    ├── Infeasible           strict SLO that not even an idle system could meet
    ├── Overloaded           could be met, but not now; says when to come back
    │   ├── QuotaExceeded    of this key: more requests a second than it may send
    │   └── TooManyConnections   all that may be open are in use
    ├── DeadlineExceeded     the time is up
    ├── BackendError         the model server failed
    │   ├── ModelCrashed         it ended at this input, twice: nobody else is asked the same
    │   ├── InvalidLogits        it answered, but with nothing that an answer can be read from
    │   └── BackendUnavailable   nobody there, or not ready
    │       └── VariantUnavailable   the server is there, the model is not ready
    └── RepositoryError      a model repository or catalog that cannot be served
        └── VariantsUnserved     its files are sound, but the model server does not serve them: it may pass

Each front maps these to its own status in one table; text here is safe to show to a caller.
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
    """No plan meets this strict SLO, even on an idle system; `nearest` says what would be met."""

    def __init__(self, message: str, nearest: Sequence[dict[str, Any]]) -> None:
        super().__init__(message)
        self.nearest = tuple(nearest)


class Overloaded(BertierError):
    """The promise could be kept on a less busy system; try again after `retry_after_ms`."""

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
            f"busy: {limit} connections are in use, the most there may be; try again later, or send several"
            " requests over one connection",
            1e3,
        )


class Unauthenticated(BertierError):
    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; send one that is valid as `Authorization: Bearer KEY`")


class Forbidden(BertierError):
    """The key is known, but not for this."""


class DeadlineExceeded(BertierError):
    """The request's time was up before an answer was there."""


class BackendError(BertierError):
    """The model server failed on this request."""


class ModelCrashed(BackendError):
    """Two instances of a model ended while they had this request: a third would, too."""


class InvalidLogits(BackendError):
    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"{model}: the model server returned logits that are {why}; try again")


class BackendUnavailable(BackendError):
    """No model server answers, or the model is not loaded."""


class VariantUnavailable(BackendUnavailable):
    """The model server answers, but does not serve this model or version, at least not now."""


class RepositoryError(BertierError):
    """A model repository that cannot be served; the message names the file and what to do."""


class VariantsUnserved(RepositoryError):
    """The model server does not serve variants as the catalog names them; that may pass."""

    def __init__(self, what: str, problems: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {why}" for name, why in problems.items())
        super().__init__(f"{what}: {reasons}")
