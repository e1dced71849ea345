"""The HTTP front, asked over ASGI, with a small fake in place of the model server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI

from gateway import breaker, errors, http_api, oip_http, problems
from gateway.clock import now_ms
from gateway.domain import Size
from gateway.metrics import Metrics
from gateway.service import AnswerService
from gateway.settings import Settings
from gateway.watcher import Watcher
from tests.fakes import (
    CONTEXT,
    QUESTION,
    FakeBackend,
    paired_small_and_large,
    serving_set,
    small_and_large,
)

ASKED = {"question": QUESTION, "context": CONTEXT}
NDJSON = {"content-type": "application/x-ndjson"}


def make_service(backend: FakeBackend | None = None, **settings: Any) -> AnswerService:
    """Return a service with `small` (5 ms, F1 0.5) and `large` (20 ms, F1 0.7)."""
    service = AnswerService(backend or FakeBackend(), Settings(**settings), Metrics())
    service.serving = serving_set(small_and_large())
    return service


def make_app(service: AnswerService) -> FastAPI:
    app = http_api.create(service, Watcher(service).readiness)
    app.include_router(oip_http.router(service))
    return app


def client(service: AnswerService) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=make_app(service))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def post(service: AnswerService, path: str = "/v1/answer", **request: Any) -> httpx.Response:
    async with client(service) as http:
        return await http.post(path, **request)


def outcome(service: AnswerService, slo_class: str, name: str) -> float:
    """Return how many requests were counted with this outcome."""
    labels = {"front": "http", "slo_class": slo_class, "outcome": name}
    return service.metrics.registry.get_sample_value("bertier_requests_total", labels) or 0.0


async def test_an_answer_is_an_exact_piece_of_the_context() -> None:
    """Callers highlight by offsets."""
    answer = (await post(make_service(), json=ASKED)).json()
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""
    assert 0.0 <= answer["score"] <= 1.0
    assert answer["alternatives"] == []


async def test_an_answer_says_what_it_was_given_under() -> None:
    """The promise and what became of it can be read without parsing the body."""
    response = await post(make_service(), json=ASKED, headers={"SLO-Min-F1": "0.6"})
    assert response.status_code == 200
    assert response.headers["slo-plan"] == response.headers["slo-variant"] == "large"
    assert response.headers["slo-f1"] == "0.7000"
    assert response.headers["slo-met"] == response.json()["slo"]["met"] == "true"
    idle_p95_ms = 1.5 * (20 + 2)
    assert idle_p95_ms < float(response.headers["slo-predicted-ms"]) < 1.3 * idle_p95_ms
    stages = [part.split(";dur=")[0] for part in response.headers["server-timing"].split(", ")]
    assert stages == ["tokenize", "route", "queue", "infer", "decode", "total"]


@pytest.mark.parametrize(
    ("headers", "variant"),
    [
        ({"SLO-Min-F1": "0.4"}, "small"),
        ({"SLO-Min-F1": "0.6"}, "large"),
        ({"X-SLO-Min-F1": "0.6"}, "large"),
        ({"SLO-Latency-Ms": "15"}, "small"),
        ({}, "large"),
        ({"SLO-Variant": "small"}, "small"),
    ],
)
async def test_the_headers_choose_the_variant(headers: dict[str, str], variant: str) -> None:
    """This is what the gateway is for."""
    response = await post(make_service(), json=ASKED, headers=headers)
    assert response.json()["variant"] == variant


async def test_explain_shows_what_struck_out_each_option() -> None:
    """A choice that cannot be explained cannot be trusted."""
    headers = {"SLO-Min-F1": "0.6", "SLO-Explain": "1"}
    explain = (await post(make_service(), json=ASKED, headers=headers)).json()["explain"]
    small, large = explain["options"]
    assert explain["reason"] == "meets_slo"
    assert (small["struck_out_by"], small["chosen"]) == (["below-floor"], False)
    assert (large["struck_out_by"], large["chosen"]) == ([], True)
    assert large["certified_f1"] == 0.7


async def test_a_loss_to_the_largest_variant_can_be_asked_for() -> None:
    """The header chooses, and answer, headers and explanation tell what is certified."""
    service = make_service()
    service.serving = serving_set(paired_small_and_large())
    headers = {"SLO-Max-F1-Loss": "0.15", "SLO-Explain": "1"}
    response = await post(service, json=ASKED, headers=headers)
    told = response.json()
    assert (told["variant"], told["slo"]["met"]) == ("small", "true")
    assert (told["slo"]["max_f1_loss"], told["slo"]["certified_f1_loss"]) == (0.15, 0.15)
    assert response.headers["slo-f1-loss"] == "0.1500"
    assert [o["certified_f1_loss"] for o in told["explain"]["options"]] == [0.15, 0.0]
    tighter = await post(service, json=ASKED, headers={"SLO-Max-F1-Loss": "0.1"})
    assert tighter.json()["variant"] == "large"
    item = ASKED | {"slo": {"max_f1_loss": 0.15}}
    (line,) = (await post(service, "/v1/answers", json=[item])).text.splitlines()
    assert json.loads(line)["variant"] == "small"


async def test_a_loss_that_no_plan_is_certified_for_is_refused_with_the_reason() -> None:
    """Of a catalog without such certificates the caller learns what to do instead."""
    service = make_service()
    headers = {"SLO-Max-F1-Loss": "0.1", "SLO-Policy": "strict"}
    refused = await post(service, json=ASKED, headers=headers)
    assert refused.status_code == 422
    assert "certifies no loss to the largest variant" in refused.json()["detail"]
    service.serving = serving_set(paired_small_and_large())
    headers["SLO-Latency-Ms"] = "25"
    near = (await post(service, json=ASKED, headers=headers)).json()
    assert "0.100 below the largest variant's" in near["detail"]
    assert [p["certified_f1_loss"] for p in near["nearest"]] == [0.15, 0.0]


async def test_explain_tells_quantiles_wait_and_every_constraint_of_each_plan() -> None:
    """Whoever asks why must not have to guess what was known."""
    service = make_service()
    assert service.serving is not None
    for _ in range(60):
        service.serving.latency.begin("large", Size(64, 1), now_ms())
    for _ in range(breaker.IN_A_ROW):
        service.serving.breakers.of("large").begin(now_ms()).failed(now_ms())
    headers = {"SLO-Min-F1": "0.6", "SLO-Latency-Ms": "60", "Priority": "u=7", "SLO-Explain": "1"}
    explain = (await post(service, json=ASKED, headers=headers)).json()["explain"]
    small, large = explain["options"]
    assert large["struck_out_by"] == ["late", "deadline", "urgency", "failing"]
    assert small["chosen"]
    assert explain["quantile"] == 0.95
    assert 0 <= explain["spent_ms"] < 60
    for option in (small, large):
        assert 0 < option["p50_ms"] < option["p95_ms"] < option["p99_ms"]
        assert option["p95_ms"] == option["predicted_ms"]
        waited = option["predicted_ms"] - option["idle_ms"]
        assert option["wait_ms"] == pytest.approx(waited, abs=0.002)
    assert large["wait_ms"] > small["wait_ms"] >= 0


async def test_a_pinned_variant_strikes_the_others_out() -> None:
    """What was not free to be chosen was not beaten."""
    headers = {"SLO-Variant": "small", "SLO-Explain": "1"}
    explain = (await post(make_service(), json=ASKED, headers=headers)).json()["explain"]
    struck = {o["plan"]: o["struck_out_by"] for o in explain["options"]}
    assert struck == {"small": ["below-floor"], "large": ["pinned"]}


async def test_without_explain_the_body_has_none() -> None:
    """The common answer stays short."""
    assert "explain" not in (await post(make_service(), json=ASKED)).json()


async def test_alternatives_and_id_come_back_when_asked_for() -> None:
    """Callers match answers by id and show the runners-up."""
    answer = (await post(make_service(), json=ASKED | {"id": "q1", "top_k": 3})).json()
    assert answer["id"] == "q1"
    assert len(answer["alternatives"]) == 3
    for span in answer["alternatives"]:
        assert CONTEXT[span["start"] : span["end"]] == span["answer"]


async def test_offsets_count_code_points() -> None:
    """One emoji is one position, whatever its bytes."""
    context = "🙂🙂 Éric gave 😀 their name"
    answer = (await post(make_service(), json={"question": QUESTION, "context": context})).json()
    assert context[answer["start"] : answer["end"]] == answer["answer"] != ""


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
    told = response.json()
    assert (response.status_code, told["type"]) == (status, f"urn:bertier:problem:{kind}")
    assert response.headers["content-type"] == "application/problem+json"
    assert told["status"] == status
    assert told["request_id"] == response.headers["x-request-id"]
    assert outcome(service, "standard", kind) == 1
    assert (await post(service, json=ASKED)).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "status", "says"),
    [
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
    response = await post(make_service(), json=ASKED, headers={header: value})
    detail = response.json()["detail"]
    assert response.status_code == status
    assert header.lower() in detail.lower()
    assert says in detail


async def test_a_header_that_comes_twice_is_refused() -> None:
    """Proxies disagree on which of the two counts."""
    twice = [("SLO-Min-F1", "0.1"), ("X-SLO-Min-F1", "0.9")]
    response = await post(make_service(), json=ASKED, headers=twice)
    assert response.status_code == 400
    assert "twice" in response.json()["detail"]


async def test_an_unknown_class_counts_under_a_bounded_label() -> None:
    """A caller cannot fill the metrics store."""
    service = make_service()
    await post(service, json=ASKED, headers={"SLO-Class": "x" * 50})
    assert outcome(service, "unknown", "unknown-class") == 1


async def test_an_infeasible_slo_names_what_is_feasible() -> None:
    """The caller can act on the refusal."""
    headers = {"SLO-Policy": "strict", "SLO-Latency-Ms": "20", "SLO-Min-F1": "0.6"}
    response = await post(make_service(), json=ASKED, headers=headers)
    assert response.status_code == 422
    assert response.json()["type"].endswith(":infeasible")
    assert [p["plan"] for p in response.json()["nearest"]] == ["small", "large"]


async def test_overload_says_when_to_come_back() -> None:
    """429 and Retry-After in whole seconds is what clients understand."""
    service = make_service()
    service.backend.error = errors.Overloaded("busy", 1200.0)  # type: ignore[attr-defined]
    response = await post(service, json=ASKED)
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
    response = await post(make_service(backend), json=ASKED)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answers", "/v1/plan", "/v2/models/qa/infer"])
async def test_a_body_that_never_ends_is_given_up(path: str) -> None:
    """Connections that trickle must not pile up."""

    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"question": '
        await asyncio.Event().wait()

    service = make_service(body_timeout_ms=20)
    response = await post(service, path, content=trickle())
    assert response.status_code == 408
    assert response.json()["type"] == "urn:bertier:problem:body-too-slow"
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("error", [errors.BackendError("secret"), ZeroDivisionError("secret")])
async def test_the_cause_of_an_internal_error_stays_inside(error: Exception) -> None:
    """It goes to the log, under the request id that the caller is told."""
    backend = FakeBackend()
    backend.error = error
    response = await post(make_service(backend), json=ASKED, headers={"X-Request-Id": "r-1"})
    assert "secret" not in response.text
    assert response.json()["detail"] == problems.FIXED_TEXT
    assert response.json()["request_id"] == response.headers["x-request-id"] == "r-1"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é"])
async def test_an_unfit_request_id_is_replaced(given: str) -> None:
    """It is written to logs and headers."""
    response = await post(make_service(), json=ASKED, headers=[("X-Request-Id", given.encode())])
    assert response.headers["x-request-id"] not in ("", given)


async def test_no_model_yet_is_503() -> None:
    """The port is open before the models are loaded."""
    service = make_service()
    service.serving = None
    async with client(service) as http:
        assert (await http.post("/v1/answer", json=ASKED)).status_code == 503
        assert (await http.get("/v1/variants")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["models are being loaded"]


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
    """A new error must get a status, or it would be told as internal."""
    abstract = (errors.BertierError, errors.BadInput)
    ours = [e for e in _tree(errors.BertierError) if e.__module__ == errors.__name__]
    unmapped = [
        e for e in ours if e not in abstract and not any(c in problems.KINDS for c in e.__mro__)
    ]
    assert len(ours) > 10
    assert unmapped == []


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.text.splitlines()]


MIXED = [
    ASKED | {"id": "a"},
    ASKED | {"id": "b", "slo": {"min_f1": 0.1}},
    {"id": "c", "question": "", "context": "x"},
    7,
    ASKED | {"id": "e", "slo": {"class": "gold"}},
    ASKED | {"id": "f", "slo": {"min_f1": 7}},
    ASKED | {"id": "g", "slo": {"variant": "small", "explain": True}},
]


def as_lines(items: list[Any]) -> bytes:
    return b"\n".join(json.dumps(item).encode() for item in items)


@pytest.mark.parametrize(
    "request_", [{"json": MIXED}, {"content": as_lines(MIXED), "headers": NDJSON}]
)
async def test_items_are_answered_in_order_and_fail_alone(request_: dict[str, Any]) -> None:
    """One bad item must not cost the others their answers."""
    response = await post(make_service(), "/v1/answers", **request_)
    a, b, c, d, e, f, g = lines(response)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert (a["id"], a["variant"]) == ("a", "large")
    assert (b["id"], b["variant"]) == ("b", "small")
    assert (c["id"], c["error"]["type"]) == ("c", "urn:bertier:problem:empty-text")
    assert (d["id"], d["error"]["status"]) == (None, 422)
    assert (e["id"], e["error"]["type"]) == ("e", "urn:bertier:problem:unknown-class")
    assert (f["id"], f["error"]["type"]) == ("f", "urn:bertier:problem:invalid-field")
    assert (g["variant"], g["explain"]["reason"]) == ("small", "pinned")


async def test_the_headers_slo_holds_for_each_item() -> None:
    """A list has one promise unless an item has its own."""
    headers = {"SLO-Min-F1": "0.1"}
    response = await post(make_service(), "/v1/answers", json=[ASKED, ASKED], headers=headers)
    assert [line["variant"] for line in lines(response)] == ["small", "small"]


async def test_a_bad_or_long_line_fails_alone() -> None:
    """A stream goes on after a line that cannot be read."""
    good = json.dumps(ASKED).encode()
    body = b"\n".join([b"{", good, b"", b'"' + b"x" * 500 + b'"', b'{"id": "\xff"}', good])
    service = make_service(max_body_bytes=300)
    response = await post(service, "/v1/answers", content=body, headers=NDJSON)
    told = [
        line["error"]["type"].rsplit(":")[-1] if "error" in line else "ok"
        for line in lines(response)
    ]
    assert told == ["malformed", "ok", "text-too-long", "malformed", "ok"]


@pytest.mark.parametrize(
    ("body", "status"), [(b"{}", 422), (b"[", 400), (b"[" + b" " * 2000 + b"]", 413)]
)
async def test_a_bad_list_is_refused_whole(body: bytes, status: int) -> None:
    """There is nothing to answer item by item."""
    response = await post(make_service(max_batch_bytes=1000), "/v1/answers", content=body)
    assert response.status_code == status


async def test_items_run_side_by_side_but_not_too_many() -> None:
    """One list must not take the whole gateway."""
    gate = asyncio.Event()
    backend = FakeBackend(gate)
    service = make_service(backend, max_concurrent_items=2)
    asking = asyncio.create_task(post(service, "/v1/answers", json=[ASKED] * 5))
    await backend.until_asked(2)
    for _ in range(20):  # turns of the loop in which a third could begin
        await asyncio.sleep(0)
    assert len(backend.asked) == 2
    gate.set()
    assert len(lines(await asking)) == 5


class Caller:
    """An ASGI caller that sends what it is told to, when it is told to, and can leave."""

    def __init__(self, path: str, headers: dict[str, str] | None = None) -> None:
        named = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": named,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, body: bytes, *, more: bool = False) -> None:
        self.inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    def start(self, app: Callable[..., Any]) -> asyncio.Task[None]:
        return asyncio.create_task(app(self.scope, self.inbox.get, self.sent.put))


@pytest.fixture
def held() -> tuple[FakeBackend, AnswerService]:
    """A service whose inferences do not end."""
    backend = FakeBackend(asyncio.Event())
    return backend, make_service(backend)


async def test_who_leaves_cancels_the_work(held: tuple[FakeBackend, AnswerService]) -> None:
    """Nobody waits for it any more."""
    backend, service = held
    caller = Caller("/v1/answer")
    caller.send(json.dumps(ASKED).encode())
    task = caller.start(make_app(service))
    await backend.until_asked()
    caller.leave()
    await task
    assert backend.cancelled == 1
    assert outcome(service, "standard", "gone") == 1


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-ndjson"}])
async def test_who_leaves_a_list_cancels_its_items(
    held: tuple[FakeBackend, AnswerService], headers: dict[str, str]
) -> None:
    """A long list is the costliest work to go on with for nobody."""
    backend, service = held
    caller = Caller("/v1/answers", headers)
    items = [ASKED, ASKED]
    caller.send(as_lines(items) if headers else json.dumps(items).encode())
    task = caller.start(make_app(service))
    await backend.until_asked(2)
    caller.leave()
    await task
    assert backend.cancelled == 2


async def test_who_leaves_while_sending_is_counted_as_gone() -> None:
    """It is no failure of ours."""
    service = make_service()
    caller = Caller("/v1/answer")
    caller.send(b'{"quest', more=True)
    caller.leave()
    await caller.start(make_app(service))
    assert outcome(service, "standard", "gone") == 1


async def test_a_line_is_answered_before_the_next_is_sent() -> None:
    """A stream may be a conversation."""
    caller = Caller("/v1/answers", {"content-type": "application/x-ndjson"})
    task = caller.start(make_app(make_service()))
    await caller.sent.get()
    for _ in range(3):
        caller.send(json.dumps(ASKED).encode() + b"\n", more=True)
        answered = await caller.sent.get()
        assert json.loads(answered["body"])["variant"] == "large"
    caller.send(b"")
    assert not (await caller.sent.get())["more_body"]
    task.cancel()


async def test_a_long_body_is_refused_before_it_is_read() -> None:
    """Its announced length is enough."""
    caller = Caller("/v1/answer", {"content-length": str(10 << 20)})
    await caller.start(make_app(make_service()))
    assert caller.sent.get_nowait()["status"] == 413
    assert caller.inbox.empty()


async def test_a_body_without_length_is_refused_at_the_limit() -> None:
    """What follows is never held."""
    caller = Caller("/v1/answer")
    for _ in range(10):
        caller.send(b" " * 400, more=True)
    await caller.start(make_app(make_service(max_body_bytes=1000)))
    assert caller.sent.get_nowait()["status"] == 413
    assert caller.inbox.qsize() == 7


@pytest.mark.parametrize(
    ("headers", "feasible", "plan", "reason"),
    [
        ({}, True, "large", "meets_slo"),
        ({"SLO-Latency-Ms": "15", "SLO-Min-F1": "0.6"}, False, "small", "most_accurate_in_time"),
        (
            {"SLO-Latency-Ms": "15", "SLO-Min-F1": "0.6", "SLO-Policy": "strict"},
            False,
            None,
            "infeasible",
        ),
    ],
)
async def test_a_plan_says_whether_a_promise_could_be_kept(
    headers: dict[str, str], feasible: bool, plan: str | None, reason: str
) -> None:
    """A client chooses its SLO without spending an inference."""
    service = make_service()
    report = (await post(service, "/v1/plan", headers=headers)).json()
    assert (report["feasible"], report["plan"], report["reason"]) == (feasible, plan, reason)
    assert [point["plan"] for point in report["nearest"]] != []
    assert service.backend.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "n_tokens", "n_windows"),
    [
        ({"n_tokens": 100}, 128, 1),
        ({"n_tokens": 1000}, 384, 4),
        (ASKED, 64, 1),
        ({}, 192, 1),
    ],
)
async def test_a_plan_is_for_a_size(body: dict[str, Any], n_tokens: int, n_windows: int) -> None:
    """Latency depends on how much there is to read."""
    report = (await post(make_service(), "/v1/plan", json=body)).json()
    assert (report["n_tokens"], report["n_windows"]) == (n_tokens, n_windows)


async def test_a_plan_needs_both_texts_or_neither() -> None:
    """Half a request has no size."""
    response = await post(make_service(), "/v1/plan", json={"question": "x"})
    assert response.status_code == 422


async def test_variants_shows_the_catalog_as_served() -> None:
    """What the certificate says, and whether it holds here."""
    async with client(make_service()) as http:
        report = (await http.get("/v1/variants")).json()
    assert [(v["name"], v["served"], v["trust"]) for v in report["variants"]] == [
        ("small", True, "certified"),
        ("large", True, "certified"),
    ]
    assert [p["certificate"]["floor"] for p in report["plans"]] == [0.5, 0.7]
    assert "golden" not in report["variants"][0]


async def test_readyz_shows_backend_and_trust() -> None:
    """On-call looks here first."""
    async with client(make_service()) as http:
        response = await http.get("/readyz")
    told = response.json()
    assert (response.status_code, told["ready"], told["backend"]) == (200, True, "fake")
    large = {
        "served": True,
        "trust": "certified",
        "problem": None,
        "failing": False,
        "measured_under_load": False,
        "confidence_shifted": False,
    }
    assert told["variants"]["large"] == large
    assert told["retry_in_ms"] is None


async def test_metrics_count_requests_by_class_and_outcome() -> None:
    """The dashboards read these names."""
    service = make_service()
    await post(service, json=ASKED, headers={"SLO-Class": "batch"})
    async with client(service) as http:
        text = (await http.get("/metrics")).text
    assert 'bertier_requests_total{front="http",outcome="ok",slo_class="batch"} 1.0' in text
    assert 'bertier_request_duration_seconds_count{front="http",slo_class="batch"} 1.0' in text


async def test_openapi_tells_bodies_headers_and_problems() -> None:
    """Clients are generated from it; every reference must lead somewhere."""
    async with client(make_service()) as http:
        document = (await http.get("/openapi.json")).json()
    answer = document["paths"]["/v1/answer"]["post"]
    headers = {p["name"] for p in answer["parameters"]}
    assert {"SLO-Latency-Ms", "SLO-Min-F1", "SLO-Class", "SLO-Policy", "Priority"} <= headers
    assert {"200", "400", "408", "413", "422", "429", "500", "503", "504"} == set(
        answer["responses"]
    )
    assert "SLO-Met" in answer["responses"]["200"]["headers"]
    text = json.dumps(document)
    for name in text.split("#/components/schemas/")[1:]:
        assert name.split('"')[0] in document["components"]["schemas"]
