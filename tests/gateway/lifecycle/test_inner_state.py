"""What a gateway shows of its inner state, where it shows it, and what it never shows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2 as httpx
import pytest

from gateway.api_keys import digest
from gateway.auth.access import Access
from gateway.cli import tables
from gateway.frontends.http import routes
from gateway.lifecycle.watcher import Watcher
from gateway.request.service import AnswerService
from gateway.settings import Settings
from gateway.shared_memory import SharedMemory, State, Workers
from tests.asgi import QUESTION_BODY, client, make_service
from tests.fakes import CONTEXT, QUESTION, FakeBackend

SECRET = "k" * 40


async def state_of(service: AnswerService) -> dict[str, Any]:
    async with client(service) as http:
        state: dict[str, Any] = (await http.get("/debug/state")).json()
        return state


async def test_work_in_flight_is_shown_and_gone_when_it_ends() -> None:
    """The counters of an idle gateway are 0, or something leaks."""
    gate = asyncio.Event()
    backend = FakeBackend(gate)
    service = make_service(backend, feedback_requests=5)
    async with client(service) as http:
        asking = asyncio.create_task(http.post("/v1/answer", json=QUESTION_BODY))
        await backend.until_asked()
        state = (await http.get("/debug/state")).json()
        assert (state["admission"]["in_flight"], state["queue"]["in_flight"]) == (1, 1)
        assert state["queue"]["variants"]["large"]["windows"] == 1
        gate.set()
        await asking
        state = (await http.get("/debug/state")).json()
    assert (state["admission"]["in_flight"], state["queue"]["in_flight"]) == (0, 0)
    assert state["queue"]["variants"]["large"]["windows"] == 0
    assert state["feedback"] == {"remembered": 1, "most": 5}
    assert state["caches"]["contexts_chars"] > 0


async def test_one_of_several_workers_says_which_it_is_and_what_all_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Who asks twice may see another worker's queues; the totals are those of the gateway."""
    service = make_service()
    assert (await state_of(service))["workers"] is None
    memory = SharedMemory(3)
    service.admission.workers = Workers(memory, 1)
    for number, in_flight in enumerate((4, 2, 0)):
        slot = memory.slot(number)
        slot.state, slot.in_flight, slot.connections = State.READY, in_flight, 10
    memory.slot(2).state = State.JOINING
    state = await state_of(service)
    workers = state["workers"]
    assert (workers["this"], workers["of"]) == (2, 3)
    assert (workers["in_flight"], workers["connections"]) == (6, 30)
    assert [w["state"] for w in workers["each"]] == ["ready", "ready", "joining"]
    tables.show_state(state)
    assert "worker     2 of 3; in flight: 6 in all (1 ready 4, 2 ready 2, 3 joining 0)" in (
        capsys.readouterr().out
    )


async def test_what_was_learned_and_what_fails_is_shown() -> None:
    """This is what one looks for when predictions are off."""
    service = make_service()
    async with client(service) as http:
        await http.post("/v1/answer", json=QUESTION_BODY)
        assert service.serving is not None
        service.serving.breakers.of("small").trip(1e12)
        state = (await http.get("/debug/state")).json()
    (cell,) = [c for c in state["predictor"]["cells"] if c["answers"]]
    assert (cell["variant"], cell["tokens"], state["predictor"]["answers"]) == ("large", 64, 1)
    assert state["breakers"]["small"] == "open"
    assert state["budgets"]["retries"] == {"left": 20.0, "most": 20.0}


async def test_no_text_is_shown() -> None:
    """Not even of answers that are kept."""
    service = make_service(feedback_requests=5, cache_bytes=1_000_000)
    async with client(service) as http:
        answer = (await http.post("/v1/answer", json=QUESTION_BODY)).json()["answer"]
        shown = (await http.get("/debug/state")).text
    for text in (QUESTION, CONTEXT, f'"{answer}"'):
        assert text not in shown


async def test_a_gateway_without_models_has_a_state_too() -> None:
    """That is when one looks."""
    service = make_service()
    service.serving = None
    state = await state_of(service)
    assert "queue" not in state
    tables.show_state(state)


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 200),
        ({"host": "::1"}, 200),
        ({"host": "0.0.0.0"}, 404),
        ({"metrics_port": 9999}, 404),
    ],
)
async def test_the_main_port_shows_it_on_loopback_alone(
    settings: dict[str, Any], status: int
) -> None:
    """It tells attackers how to hurt; the operations port is for operators."""
    async with client(make_service(**settings)) as http:
        assert (await http.get("/debug/state")).status_code == status


async def test_with_keys_it_needs_the_scope_of_metrics() -> None:
    """A key that asks questions shows nothing of the others."""
    keys = {"ask": {"sha256": digest(SECRET)}}
    service = make_service()
    settings = Settings(api_keys=keys)  # type: ignore[arg-type]  # parsed
    app = routes.create(
        service, Watcher(service).readiness, None, Access(settings, service.metrics)
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://t"
    ) as http:
        assert (await http.get("/debug/state")).status_code == 401
        headers = {"Authorization": f"Bearer {SECRET}"}
        assert (await http.get("/debug/state", headers=headers)).status_code == 403


async def test_the_command_prints_it_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """It is read in a terminal beside others."""
    service = make_service()
    async with client(service) as http:
        await http.post("/v1/answer", json=QUESTION_BODY)
        tables.show_state(json.loads((await http.get("/debug/state")).text))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "small" in printed
    assert "0 of 1024 in flight" in printed
