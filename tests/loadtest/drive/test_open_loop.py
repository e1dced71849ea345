"""The driver sends on time whatever the server does, and knows when there is nothing to measure."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.domain import SloPolicy
from loadtest.drive import load_clients, open_loop
from loadtest.drive.open_loop import Client
from loadtest.drive.outcomes import Outcome, Result, TargetLost
from loadtest.stack import free_ports
from tests import live
from tests.loadtest.driving import mortal, schedule, slo


def outcomes(results: tuple[Result, ...]) -> list[Outcome]:
    return [r.reply.outcome for r in results]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_every_reply_says_whether_its_slo_was_met(protocol: str) -> None:
    """Both protocols tell the same of the same answer."""
    async with live.gateway() as running:
        where = running.http_url if protocol == "http" else running.grpc_url
        async with load_clients.of(f"{protocol}://{where}") as load_client:
            run = await open_loop.play(schedule([0, 5, 10], slo(min_f1=0.6)), load_client)
    assert [r.request.index for r in run.results] == [0, 1, 2]
    assert {(r.reply.answer, r.reply.plan, r.reply.met) for r in run.results} == {
        ("The", "large", "true")
    }
    assert all(r.certified and r.in_time and r.f1 == 0.0 for r in run.results)


def test_a_certified_floor_is_read_with_all_its_digits() -> None:
    """The header rounds; a floor asked for to the last digit would look broken."""
    floor = 0.339622641509434
    body = json.dumps({"answer": "Ada", "slo": {"certified_f1": floor, "predicted_ms": 3.25}})
    reply = load_clients._from_http(200, {"SLO-F1": "0.3396"}, body.encode())
    asked = schedule([0], slo(min_f1=floor))[0]
    assert Result(asked, 0.0, 5.0, reply).certified
    assert reply.predicted_ms == 3.25


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_slow_server_holds_nothing_back(protocol: str) -> None:
    """A closed loop would wait for the first answer; the wait would be missing from every latency."""
    async with live.gateway() as running:
        gate = running.backend.gate = asyncio.Event()
        where = running.http_url if protocol == "http" else running.grpc_url
        async with load_clients.of(f"{protocol}://{where}") as load_client:
            playing = asyncio.ensure_future(open_loop.play(schedule([0, 10, 60]), load_client))
            while running.service.admission.in_flight < 3:  # noqa: ASYNC110 (there is no event for it)
                await asyncio.sleep(0.01)
            gate.set()
            run = await playing
    first, _, last = run.results
    assert first.ended_ms >= last.sent_ms >= 60
    assert first.latency_ms == first.ended_ms


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_refusal_is_no_error_and_no_answer(protocol: str) -> None:
    """An SLO that no plan meets is refused on purpose; a shed or a failure is something else."""
    async with live.gateway() as running:
        where = running.http_url if protocol == "http" else running.grpc_url
        async with load_clients.of(f"{protocol}://{where}") as load_client:
            requested = slo(1_000, 0.99, SloPolicy.STRICT)
            run = await open_loop.play(schedule([0], requested), load_client)
    assert outcomes(run.results) == [Outcome.REFUSED]
    assert "no plan meets" in run.results[0].reply.detail


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "grpc://127.0.0.1:{port}"])
async def test_a_run_against_nothing_says_where_and_why(url: str) -> None:
    """A mistyped port is the most common load test of all."""
    (port,) = free_ports(1)
    async with load_clients.of(url.format(port=port)) as load_client:
        with pytest.raises(
            TargetLost, match=rf"127\.0\.0\.1:{port}.*(refused|Connect call failed)"
        ):
            await open_loop.play(schedule([0]), load_client)


async def test_a_server_that_dies_ends_the_run_without_a_figure() -> None:
    """What was seen until then is kept; what it means nobody may know."""
    seen: list[Result] = []
    async with mortal(answers=3) as url, load_clients.of(url) as load_client:
        with pytest.raises(TargetLost) as caught:
            await open_loop.play(schedule([20.0 * i for i in range(500)]), load_client, seen.extend)
    assert "into the run: request 3 of 500 got" in str(caught.value)
    assert "3 had been answered. A broken run has no figures" in str(caught.value)
    assert outcomes(tuple(seen))[:4] == [Outcome.ANSWERED] * 3 + [Outcome.LOST]
    assert len(seen) < 20, "it went on asking nobody"


def test_a_url_without_a_protocol_is_refused() -> None:
    """Guessing one would measure the wrong thing."""
    with pytest.raises(TargetLost, match="give http://HOST:PORT or grpc://HOST:PORT"):
        load_clients.of("127.0.0.1:8080")


@pytest.mark.parametrize(
    ("client", "word"),
    [
        (Client(0.1, 2.0, 30.0, 0.3), ""),
        (Client(0.1, 12.0, 30.0, 0.3), "12.0 ms late"),
        (Client(0.1, 2.0, 30.0, 0.95), "95% of its one core"),
    ],
)
def test_a_run_reports_that_the_client_was_the_bottleneck(client: Client, word: str) -> None:
    """Its numbers would be its own, not the server's."""
    assert word in client.complaint()
    assert bool(client.complaint()) == bool(word)
