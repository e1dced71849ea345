"""What is logged of a request, what never is, and what becomes of lines that cannot be written."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from gateway.errors import BackendError
from gateway.frontends.http import oip, routes
from gateway.lifecycle.watcher import Watcher
from gateway.observability import logs
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests.fakes import CONTEXT, QUESTION, ROOT, FakeBackend, patient, serving_set, small_and_large

QUESTION_BODY = {"question": QUESTION, "context": CONTEXT}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {
    "x-request-id": "r-1",
    "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01",
    "authorization": "Bearer hunter2",
}
# A gateway that is asked once; it prints the status of the answer, and logs as much as it can.
ASKING = """
import asyncio, logging, aiohttp
from gateway.observability import logs
from tests import live
from tests.fakes import CONTEXT, QUESTION

lost = []
logs.set_up("debug", "json").on_lost = lambda: lost.append(1)

async def main():
    async with live.gateway() as running, aiohttp.ClientSession() as http:
        running.service.observer.log_access(1.0, texts=False)
        asked = {"question": QUESTION, "context": CONTEXT}
        url = f"http://{running.http_url}/v1/answer"
        async with http.post(url, json=asked) as response:
            print(response.status, len(lost) > 0)

asyncio.run(main())
"""
LOGGING = """
import logging
from gateway.observability import logs

lost = []
logs.set_up("debug", "console").on_lost = lambda: lost.append(1)
logging.error("nobody reads this")
print(200, len(lost) > 0)
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Take the logging of a test away after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logs.request_id.set("")
    logs.trace_id.set("")


async def post(
    path: str = "/v1/answer", body: Any = None, *, texts: bool = False, **backend: Any
) -> httpx.Response:
    """Ask a gateway that logs every request."""
    service = AnswerService(FakeBackend(), patient(), Metrics())
    service.observer.log_access(1.0, texts=texts)
    service.serving = serving_set(small_and_large())
    for name, value in backend.items():
        setattr(service.backend, name, value)
    app = routes.create(service, Watcher(service).readiness)
    app.include_router(oip.router(service))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post(path, json=body or QUESTION_BODY, headers=HEADERS)


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().err.splitlines()]


async def test_an_access_line_tells_class_plan_variant_outcome_and_timings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Enough to see what became of a request, by its id or its trace."""
    logs.set_up("info", "json")
    await post()
    (line,) = lines(capsys)
    times = {name: line.pop(name) for name in list(line) if name.endswith("_ms")}
    stages = ("tokenize", "route", "queue", "infer", "decode", "total")
    assert set(times) == {f"{stage}_ms" for stage in stages}
    assert times["total_ms"] >= times["tokenize_ms"] > 0
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "gateway.request_log",
        "message": "request",
        "request_id": "r-1",
        "trace_id": TRACE,
        "frontend": "http",
        "class": "standard",
        "outcome": "ok",
        "plan": "large",
        "variant": "large",
        "reason": "meets_slo",
        "met": "true",
    }


async def test_every_line_of_a_failure_has_the_ids_of_its_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The caller's problem document names the request; the log must lead to the cause."""
    logs.set_up("info", "json")
    assert (await post(error=BackendError("broke"))).status_code == 500
    description = lines(capsys)
    assert {line["message"] for line in description} >= {
        "request",
        "urn:bertier:problem:backend-error",
    }
    assert {(line["request_id"], line["trace_id"]) for line in description} == {("r-1", TRACE)}
    assert "broke" in next(line["error"] for line in description if "error" in line)
    (access,) = (line for line in description if line["message"] == "request")
    assert (access["outcome"], "plan" in access) == ("backend-error", False)


async def test_an_open_inference_call_has_a_line_for_each_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its questions are answered apart, perhaps by different plans."""
    logs.set_up("info", "json")
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [2], "data": [text, text]}
        for name, text in QUESTION_BODY.items()
    ]
    assert (await post("/v2/models/qa/infer", {"inputs": inputs})).status_code == 200
    assert [line["variant"] for line in lines(capsys)] == ["large", "large"]


@pytest.mark.parametrize("form", ["json", "console"])
async def test_texts_and_secrets_are_in_no_line_at_any_level(
    capsys: pytest.CaptureFixture[str], form: Any
) -> None:
    """A log goes to many more people than the service."""
    logs.set_up("debug", form)
    await post()
    await post(error=BackendError("broke"))
    await post(body={"question": QUESTION, "context": CONTEXT, "top_k": "many"})
    logged = capsys.readouterr().err
    assert "r-1" in logged
    assert "Normans" not in logged
    assert "hunter2" not in logged


async def test_texts_are_logged_where_the_operator_asks_for_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While a new source of questions is brought in, one wants to see them."""
    logs.set_up("info", "json")
    await post(texts=True)
    (line,) = lines(capsys)
    assert (line["question"], line["context"]) == (QUESTION, CONTEXT)
    assert line["answer"] in CONTEXT


async def test_the_console_shows_the_same_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in a text must not look like another line."""
    logs.set_up("info", "console")
    await post(body={"question": "Who?\n2026 ERROR forged", "context": CONTEXT}, texts=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"[r-1 {TRACE}] request frontend=" in line
    assert 'variant="large"' in line


def test_the_share_of_requests_is_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A busy gateway must not write a book."""
    logs.set_up("info", "json")
    observer = AnswerService(FakeBackend(), patient(), Metrics()).observer

    def logged(share: float, n: int) -> int:
        observer.log_access(share, texts=False)
        for _ in range(n):
            with observer.request("http", "standard", "qa"):
                pass
        return len(lines(capsys))

    assert 400 < logged(0.5, 1000) < 600
    assert logged(0.0, 100) == 0


@pytest.mark.parametrize(("script", "stderr"), [(ASKING, "2>/dev/full"), (LOGGING, "2>&-")])
def test_a_full_disk_or_closed_stderr_stops_nothing(script: str, stderr: str) -> None:
    """The log is for the service, not the service for the log."""
    command = f"exec \"{sys.executable}\" -c '{script}' {stderr}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=ROOT, stdout=subprocess.PIPE, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.decode().strip()) == (0, "200 True")
