"""The problem documents that callers of the HTTP frontend get for errors."""

from __future__ import annotations

import json

import pytest

from gateway import errors
from gateway.frontends import problems
from tests.asgi import QUESTION_BODY, client, make_service, outcome, post
from tests.fakes import FakeBackend

BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "no body": (b"", 400, "malformed"),
    "not JSON": (b"{", 400, "malformed"),
    "invalid UTF-8": (b'{"question": "\xff", "context": "x"}', 400, "malformed"),
    "lone surrogate": (rb'{"question": "\ud800", "context": "x"}', 400, "malformed"),
    "deeply nested": (b"[" * 5000, 400, "malformed"),
    "a list": (b"[]", 422, "invalid-field"),
    "missing field": (b'{"question": "x"}', 422, "invalid-field"),
    "number as text": (b'{"question": 1, "context": "x"}', 422, "invalid-field"),
    "null as text": (b'{"question": null, "context": "x"}', 422, "invalid-field"),
    "unknown field": (b'{"question": "x", "context": "x", "y": 1}', 422, "invalid-field"),
    "text as number": (b'{"question": "x", "context": "x", "top_k": "2"}', 422, "invalid-field"),
    "top_k zero": (b'{"question": "x", "context": "x", "top_k": 0}', 422, "invalid-field"),
    "top_k huge": (b'{"question": "x", "context": "x", "top_k": 999}', 422, "invalid-field"),
    "empty question": (b'{"question": "", "context": "x"}', 422, "empty-text"),
    "invisible context": (rb'{"question": "x", "context": "\u00ad\u200b"}', 422, "empty-text"),
    "blank context": (b'{"question": "x", "context": " \\n"}', 422, "empty-text"),
    "long question": (
        json.dumps({"question": "x" * 3000, "context": "x"}).encode(),
        413,
        "text-too-long",
    ),
    "long context": (
        json.dumps({"question": "x", "context": "x" * 100_001}).encode(),
        413,
        "text-too-long",
    ),
    "ten MB": (b" " * (10 << 20), 413, "text-too-long"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_a_problem_with_its_own_type(name: str) -> None:
    """Each cause has a status and a stable type, and the next request works."""
    body, status, kind = BAD_BODIES[name]
    service = make_service()
    response = await post(service, content=body)
    problem = response.json()
    assert (response.status_code, problem["type"]) == (status, f"urn:bertier:problem:{kind}")
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert outcome(service, "standard", kind) == 1
    assert (await post(service, json=QUESTION_BODY)).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "status", "says"),
    [
        ("SLO-Latency", "50", 400, "slo-latency-ms"),
        ("X-SLO-Min-F", "0.5", 400, "slo-min-f1"),
        ("SLO-Latency-Ms", "NaN", 400, "1 to 60000"),
        ("SLO-Latency-Ms", "-5", 400, "1 to 60000"),
        ("SLO-Latency-Ms", "1e3", 400, "1 to 60000"),
        ("SLO-Latency-Ms", "60001", 400, "1 to 60000"),
        ("SLO-Latency-Ms", "0", 400, "1 to 60000"),
        ("SLO-Latency-Ms", "", 400, "1 to 60000"),
        ("SLO-Min-F1", "1.01", 400, "0 to 1"),
        ("SLO-Min-F1", "inf", 400, "0 to 1"),
        ("SLO-Policy", "best", 400, "strict"),
        ("SLO-Explain", "yes", 400, "0 or 1"),
        ("Priority", "u=9", 400, "u=0 to u=7"),
        ("SLO-Class", "gold", 400, "interactive"),
        ("SLO-Class", "", 400, "interactive"),
        ("SLO-Variant", "huge", 400, "small"),
    ],
)
async def test_a_bad_header_is_refused_with_its_name_and_range(
    header: str, value: str, status: int, says: str
) -> None:
    """Never clamped in silence: an overflow elsewhere once meant the highest priority."""
    response = await post(make_service(), json=QUESTION_BODY, headers={header: value})
    detail = response.json()["detail"]
    assert response.status_code == status
    assert header.lower() in detail.lower()
    assert says in detail


async def test_a_header_that_comes_twice_is_refused() -> None:
    """Proxies disagree on which of the two counts."""
    twice = [("SLO-Min-F1", "0.1"), ("X-SLO-Min-F1", "0.9")]
    response = await post(make_service(), json=QUESTION_BODY, headers=twice)
    assert response.status_code == 400
    assert "twice" in response.json()["detail"]


async def test_an_infeasible_slo_names_what_is_feasible() -> None:
    """The caller can act on the refusal."""
    headers = {"SLO-Policy": "strict", "SLO-Latency-Ms": "20", "SLO-Min-F1": "0.6"}
    response = await post(make_service(), json=QUESTION_BODY, headers=headers)
    assert response.status_code == 422
    assert response.json()["type"].endswith(":infeasible")
    assert [p["plan"] for p in response.json()["nearest"]] == ["small", "large"]


async def test_overload_says_when_to_come_back() -> None:
    """429 and Retry-After in whole seconds is what clients understand."""
    service = make_service()
    service.backend.error = errors.Overloaded("busy", 1200.0)  # type: ignore[attr-defined]
    response = await post(service, json=QUESTION_BODY)
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert response.json()["retry_after_ms"] == 1200.0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BackendUnavailable("nobody"), 503),
        (errors.DeadlineExceeded("late"), 504),
        (errors.BackendError("internals"), 500),
        (ZeroDivisionError("internals"), 500),
    ],
)
async def test_a_failure_inside_has_its_status(error: Exception, status: int) -> None:
    """Callers and proxies act on the status."""
    backend = FakeBackend()
    backend.error = error
    response = await post(make_service(backend), json=QUESTION_BODY)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf"), 1e30])
async def test_logits_that_are_not_finite_are_a_failure_that_may_pass(logit: float) -> None:
    """Another model, or the same one later, may answer: 503, and never "no answer"."""
    backend = FakeBackend()
    backend.logits = {"small": logit, "large": logit}
    unhurried = {"SLO-Latency-Ms": "60000"}  # on a busy host, too, the larger one is asked first
    response = await post(make_service(backend), json=QUESTION_BODY, headers=unhurried)
    assert response.status_code == 503
    assert response.json()["type"] == "urn:bertier:problem:invalid-logits"
    assert "not finite" in response.json()["detail"]
    assert response.headers["retry-after"] == "1"
    assert backend.asked == ["large", "small"]


async def test_a_byte_order_mark_before_a_body_is_skipped() -> None:
    """Editors and PowerShell write one; it says nothing."""
    for path, body in (
        ("/v1/answer", QUESTION_BODY),
        ("/v1/answers", [QUESTION_BODY]),
        ("/v1/plan", QUESTION_BODY),
    ):
        marked = "\ufeff".encode() + json.dumps(body).encode()
        assert (await post(make_service(), path, content=marked)).status_code == 200


@pytest.mark.parametrize("error", [errors.BackendError("secret"), ZeroDivisionError("secret")])
async def test_the_cause_of_an_internal_error_stays_inside(error: Exception) -> None:
    """It goes to the log, under the request id that the caller gets."""
    backend = FakeBackend()
    backend.error = error
    response = await post(
        make_service(backend), json=QUESTION_BODY, headers={"X-Request-Id": "r-1"}
    )
    assert "secret" not in response.text
    assert response.json()["detail"] == problems.FIXED_TEXT
    assert response.json()["request_id"] == response.headers["x-request-id"] == "r-1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é"])
async def test_an_unfit_request_id_is_replaced(given: str) -> None:
    """It is written to logs and headers."""
    response = await post(
        make_service(), json=QUESTION_BODY, headers=[("X-Request-Id", given.encode())]
    )
    assert response.headers["x-request-id"] not in ("", given)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/answer", 405), ("POST", "/readyz", 405)],
)
async def test_the_frameworks_own_errors_are_problems(method: str, path: str, status: int) -> None:
    """One shape of failure, wherever it arises."""
    async with client(make_service()) as http:
        response = await http.request(method, path)
    assert (response.status_code, response.json()["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"


def _tree(root: type[errors.BertierError]) -> list[type[errors.BertierError]]:
    below = [cls for sub in root.__subclasses__() for cls in _tree(sub)]
    return [root, *below]


def test_every_error_has_a_place_in_the_table() -> None:
    """A new error must get a status, or it would be reported as internal."""
    abstract = (errors.BertierError, errors.BadInput)
    ours = [e for e in _tree(errors.BertierError) if e.__module__ == errors.__name__]
    unmapped = [
        e for e in ours if e not in abstract and not any(c in problems.KINDS for c in e.__mro__)
    ]
    assert len(ours) > 10
    assert unmapped == []


def test_blame_needs_no_status() -> None:
    """gRPC counts by the same rule: the gateway broke the SLO where HTTP says 429 or 5xx, quotas apart."""
    for error, kind in problems.KINDS.items():
        ours = kind.status in (429, *range(500, 600)) and error is not errors.QuotaExceeded
        assert errors.is_gateway_at_fault(error.__new__(error)) == ours, error.__name__
    assert errors.is_gateway_at_fault(ValueError("a bug"))
    assert errors.kind_of(ValueError("a bug")) == problems.INTERNAL.name
