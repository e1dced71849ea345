"""When a client retries: only passing failures, not before the gateway says so, not forever."""

from __future__ import annotations

import pytest

from bertier import Retries, errors
from bertier.errors import Failure

BUSY = errors.Overloaded(Failure("overloaded", "busy", retry_after_ms=400.0))
AWAY = errors.Unreachable(Failure("unreachable", "nobody there"))


@pytest.mark.parametrize(
    ("error", "attempt", "spent_ms", "wait_ms"),
    [
        (BUSY, 1, 0.0, 400.0),  # as the gateway said
        (AWAY, 1, 0.0, 50.0),  # without a hint: the usual backoff
        (AWAY, 3, 0.0, 200.0),  # twice as long each time
        (AWAY, 4, 0.0, None),  # enough attempts
        (BUSY, 1, 700.0, None),  # would end later than the caller's patience
        (errors.Infeasible(Failure("infeasible", "never")), 1, 0.0, None),
        (errors.DeadlineExceeded(Failure("deadline-exceeded", "late")), 1, 0.0, None),
    ],
)
def test_waits(
    error: errors.ApiError, attempt: int, spent_ms: float, wait_ms: float | None
) -> None:
    """What would fail again is not asked again, and no wait outlasts the caller's patience."""
    retries = Retries(attempts=4, patience_ms=1000.0)
    assert retries.wait_ms(error, attempt, spent_ms, jitter=0.0) == wait_ms


def test_callers_spread() -> None:
    """A thousand callers who were refused together do not come back together."""
    assert Retries().wait_ms(BUSY, 1, 0.0, jitter=1.0) == 450.0


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (401, "unauthenticated", errors.Denied),
        ("PERMISSION_DENIED", "forbidden", errors.Denied),
        (422, "empty-text", errors.InvalidRequest),
        (422, "infeasible", errors.Infeasible),
        (500, "internal", errors.ServerFailed),
        ("INTERNAL", "internal", errors.ServerFailed),
        ("DATA_LOSS", "data_loss", errors.ServerFailed),
    ],
)
def test_both_protocols_raise_one_tree(
    status: int | str, kind: str, expected: type[errors.ApiError]
) -> None:
    """Who changes the protocol changes no `except`."""
    assert type(errors.error_of(status, Failure(kind, "said"))) is expected
