"""What is kept of decisions, read by what replays them; and what becomes of lines that have no room."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from gateway import settings
from gateway.clock import now_ms
from gateway.domain import Question, Slo, SloPolicy, SloRequest
from gateway.errors import BackendError, BertierError, TextTooLong
from gateway.frontends.http import routes
from gateway.lifecycle.watcher import Watcher
from gateway.observability import decision_log
from gateway.observability.decision_log import DecisionLog, Entry
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from gateway.settings import Settings, SettingsError
from loadtest.lab import replay
from tests import live
from tests.fakes import CONTEXT, QUESTION, FakeBackend, serving_set, small_and_large

EXAMPLE_QUESTION = Question(QUESTION, CONTEXT)
LOST = "bertier_decisions_lost_total"
SLO = Slo(50.0, 0.5, SloPolicy.STRICT, 50.0, "interactive")
STRICT = SloRequest(latency_ms=9000, min_f1=0.9, policy=SloPolicy.STRICT)


def make_service(
    path: Path | None, backend: FakeBackend | None = None, **more: Any
) -> AnswerService:
    description = Settings(decisions_file=path, **more)
    service = AnswerService(backend or FakeBackend(), description, Metrics())
    service.serving = serving_set(small_and_large())
    return service


async def ask(service: AnswerService, request: SloRequest, arrived_ms: float | None = None) -> None:
    """Ask one question; an error of ours is what it comes to."""
    with suppress(BertierError):
        await service.answer(
            EXAMPLE_QUESTION, request, now_ms() if arrived_ms is None else arrived_ms
        )


def lost(service: AnswerService) -> float | None:
    return service.metrics.registry.get_sample_value(LOST)


def keep(log: DecisionLog, n: int) -> None:
    for _ in range(n):
        log.add(Entry(SLO, 0.0))


async def test_every_end_of_a_question_is_kept(tmp_path: Path) -> None:
    """Answered, refused, too late before it was read, failed."""
    backend = FakeBackend()
    service = make_service(tmp_path / "d.jsonl", backend, retry_share=0.0)
    await ask(service, SloRequest(latency_ms=5000, min_f1=0.6))
    await ask(service, STRICT)
    await ask(service, SloRequest(), now_ms() - 10_000)
    backend.error = BackendError("broken")
    await ask(service, SloRequest(latency_ms=5000, min_f1=0.4))
    service.decisions.write()
    found = {d.outcome: d for d in replay.read(tmp_path / "d.jsonl")}
    ends = {end: (d.plan, d.reason, d.bucket) for end, d in found.items()}
    assert ends == {
        "answered": ("large", "meets_slo", 64),
        "refused": (None, "infeasible", 64),
        "expired": (None, "too_late", None),
        "failed": ("small", "meets_slo", 64),
    }
    assert found["answered"].took_ms > 0
    assert found["answered"].predicted_ms is not None
    assert found["refused"].predicted_ms is None
    assert found["refused"].policy is SloPolicy.STRICT


async def test_a_deadline_that_ends_the_work_and_a_caller_that_leaves_are_kept(
    tmp_path: Path,
) -> None:
    """Both were load: the plan was chosen, the model was asked."""
    backend = FakeBackend(asyncio.Event())
    service = make_service(tmp_path / "d.jsonl", backend)
    await ask(service, SloRequest(timeout_ms=300))
    leaving = asyncio.create_task(service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms()))
    await backend.until_asked(2)
    leaving.cancel()
    await asyncio.wait([leaving])
    service.decisions.write()
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    ends = [(line["outcome"], line["gone"], line["plan"] is not None) for line in lines]
    assert ends == [("expired", False, True), ("failed", True, True)]


async def test_what_a_caller_did_wrong_was_no_decision(tmp_path: Path) -> None:
    """No policy could have answered it."""
    service = make_service(tmp_path / "d.jsonl", max_context_chars=10)
    with pytest.raises(TextTooLong):
        await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())
    service.decisions.write()
    assert not (tmp_path / "d.jsonl").exists()


async def test_a_refusal_before_the_request_was_read_is_kept_without_a_size(tmp_path: Path) -> None:
    """It must not be silently missing: under load these are most."""
    gate = asyncio.Event()
    backend = FakeBackend(gate)
    service = make_service(tmp_path / "d.jsonl", backend, max_in_flight=1)
    first = asyncio.create_task(service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms()))
    await backend.until_asked(1)
    app = routes.create(service, Watcher(service).readiness)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        body = {"question": QUESTION, "context": CONTEXT}
        refused = await http.post("/v1/answer", json=body, headers={"SLO-Class": "interactive"})
    assert refused.status_code == 429
    gate.set()
    await first
    service.decisions.write()
    found = {d.outcome: d for d in replay.read(tmp_path / "d.jsonl")}
    unread = found["refused"]
    assert (unread.bucket, unread.plan, unread.reason) == (None, None, "full")
    assert unread.slo_class == "interactive"
    assert found["answered"].bucket == 64


async def test_every_frontend_of_a_live_gateway_records_what_replay_reads(tmp_path: Path) -> None:
    """HTTP, a list and the Open Inference Protocol, gRPC; no text is in the file."""
    import grpc.aio

    from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc

    path = tmp_path / "d.jsonl"
    item = {"question": QUESTION, "context": CONTEXT, "id": "secret-id"}
    texts = {"shape": [1], "datatype": "BYTES"}
    tensors = {
        "inputs": [
            {"name": "question", "data": [QUESTION], **texts},
            {"name": "context", "data": [CONTEXT], **texts},
        ]
    }
    async with live.gateway(decisions_file=path) as running:
        base = f"http://{running.http_url}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
            for where, body in (
                ("/v1/answer", item),
                ("/v1/answers", [item, item]),
                ("/v2/models/qa/infer", tensors),
            ):
                description = await http.post(where, json=body, headers={"SLO-Latency-Ms": "9000"})
                assert description.status_code == 200, description.text
        async with grpc.aio.insecure_channel(running.grpc_url) as channel:
            stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]
            await stub.Answer(qa_pb2.AnswerRequest(question=QUESTION, context=CONTEXT))
        running.service.decisions.write()
    found = replay.read(path)
    assert [d.outcome for d in found] == ["answered"] * 5
    assert [d.latency_ms for d in found] == [9000.0] * 4 + [250.0]
    written = path.read_text()
    for text in (QUESTION, CONTEXT, "secret-id", "Normans"):
        assert text not in written


async def test_a_full_disk_loses_lines_and_nothing_else() -> None:
    """They are counted; questions are answered all the same."""
    service = make_service(Path("/dev/full"))
    await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())
    service.decisions.write()
    assert lost(service) == 1
    await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())


async def test_without_a_file_nothing_is_kept() -> None:
    """What nobody asked for costs nothing."""
    service = make_service(None)
    await service.answer(EXAMPLE_QUESTION, SloRequest(), now_ms())
    await asyncio.wait_for(service.decisions.run(), 5)
    service.decisions.write()
    assert lost(service) == 0


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A disk that hangs must not end the process; what waits is still written."""
    description: list[int] = []
    log = DecisionLog(tmp_path / "d.jsonl", description.append)
    keep(log, decision_log.CAPACITY + 3)
    assert sum(description) == 3
    log.write()
    assert (tmp_path / "d.jsonl").read_bytes().count(b"\n") == decision_log.CAPACITY


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    """So logrotate needs no signal; and a folder that is gone loses lines until it is back."""
    description: list[int] = []
    folder = tmp_path / "records"
    folder.mkdir()
    log = DecisionLog(folder / "d.jsonl", description.append)
    keep(log, 2)
    log.write()
    (folder / "d.jsonl").rename(folder / "d.1.jsonl")
    keep(log, 1)
    log.write()
    assert len(replay.read(folder / "d.1.jsonl")) == 2
    assert len(replay.read(folder / "d.jsonl")) == 1
    folder.rename(tmp_path / "elsewhere")
    keep(log, 4)
    log.write()
    assert description == [4]
    folder.mkdir()
    keep(log, 1)
    log.write()
    assert len(replay.read(folder / "d.jsonl")) == 1


def test_half_a_line_of_a_killed_gateway_is_taken_back(tmp_path: Path) -> None:
    """A record stays readable to its end, whatever ended the gateway before."""
    path = tmp_path / "d.jsonl"
    log = DecisionLog(path, lambda _: None)
    keep(log, 1)
    log.write()
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    again = DecisionLog(path, lambda _: None)
    keep(again, 1)
    again.write()
    assert len(replay.read(path)) == 2


def test_a_file_in_no_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    """Better than to find the record empty a week later."""
    with pytest.raises(SettingsError, match=r"decisions_file.*folder that exists"):
        settings.read(decisions_file=tmp_path / "none" / "d.jsonl")
