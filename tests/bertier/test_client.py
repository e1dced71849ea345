"""The client against a real gateway's two frontends: the same values and errors, whichever way it asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import bertier
from bertier import Ask, AsyncClient, Client, Retries, SloArguments
from gateway.errors import BackendUnavailable
from tests import live
from tests.fakes import CONTEXT, QUESTION
from tests.live import Running

MISSPELT: Any = {"min_f2": 0.5}
ONCE = Retries(attempts=1)


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with live.gateway() as running:
        yield running


def http(running: Running) -> str:
    return f"http://{running.http_url}"


def grpc(running: Running) -> str:
    return f"grpc://{running.grpc_url}"


both = pytest.mark.parametrize("url_of", [http, grpc])


async def in_thread(url: str, ask: Callable[[Client], Any], retries: Retries = ONCE) -> Any:
    """Ask as a program without an event loop does, beside the gateway's own loop."""

    def work() -> Any:
        with Client(url, retries=retries) as client:
            return ask(client)

    return await asyncio.to_thread(work)


@both
async def test_an_answer_comes_typed(gateway: Running, url_of: Callable[[Running], str]) -> None:
    """A caller highlights by offsets and reads the SLO outcome, over either protocol."""
    answer = await in_thread(
        url_of(gateway),
        lambda c: c.answer(QUESTION, CONTEXT, id="a", top_k=2, min_f1=0.6, latency_ms=30_000),
    )
    assert answer
    assert CONTEXT[answer.start : answer.end] == answer.text != ""
    assert (answer.id, answer.plan, answer.variant) == ("a", "large", "large")
    assert (answer.slo.min_f1, answer.slo.policy, answer.slo.met) == (0.6, "prefer-latency", True)
    assert answer.alternatives[0].text == answer.text


@both
async def test_an_event_loop_gets_what_a_thread_gets(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """Both clients are one API."""
    url = url_of(gateway)
    async with AsyncClient(url) as client:
        assert await client.ready()
        answer = await client.answer(QUESTION, CONTEXT, min_f1=0.6)
    threaded = await in_thread(url, lambda c: (c.ready(), c.answer(QUESTION, CONTEXT, min_f1=0.6)))
    assert threaded[0]
    assert (answer.text, answer.start, answer.variant) == (
        threaded[1].text,
        threaded[1].start,
        threaded[1].variant,
    )


@both
async def test_no_answer_is_false(gateway: Running, url_of: Callable[[Running], str]) -> None:
    """`if answer:` means what it says."""
    gateway.backend.answerable = False
    answer = await in_thread(url_of(gateway), lambda c: c.answer(QUESTION, CONTEXT))
    assert not answer
    assert (answer.text, answer.start, answer.end) == ("", None, None)


@both
async def test_the_reason_comes_when_asked(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """Who explains a choice needs all that were considered."""
    answer = await in_thread(
        url_of(gateway), lambda c: c.answer(QUESTION, CONTEXT, min_f1=0.6, explain=True)
    )
    assert answer.reason == "meets_slo"
    small, large = answer.options
    assert (small.rejection_reasons, large.chosen) == (("below-floor",), True)


@both
async def test_many_questions_come_back_in_order(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """A failed question is a value in its place, more of them than one request carries."""
    asks = [Ask(QUESTION, CONTEXT, id=str(i)) for i in range(70)]
    asks[3] = Ask("", CONTEXT, id="3")
    asks[4] = Ask(QUESTION, CONTEXT, id="4", slo={"min_f1": 0.6, "slo_class": "batch"})
    found = await in_thread(url_of(gateway), lambda c: list(c.answers(asks, min_f1=0.1)))
    async with AsyncClient(url_of(gateway)) as client:
        assert len([f async for f in client.answers(asks[:2])]) == 2
    assert [f.id for f in found if isinstance(f, bertier.Answer)] == [
        str(i) for i in range(70) if i != 3
    ]
    assert isinstance(found[3], bertier.InvalidRequest)
    assert (found[4].slo.slo_class, found[4].variant, found[5].variant) == (
        "batch",
        "large",
        "small",
    )


@both
async def test_a_plan_is_asked_without_an_answer(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """The plan for an SLO can be looked up."""
    report = await in_thread(url_of(gateway), lambda c: c.plan(n_tokens=100, min_f1=0.6))
    assert (report.feasible, report.plan, report.n_tokens) == (True, "large", 128)
    assert {o.plan for o in report.options} == {"small", "large"}


@both
async def test_an_infeasible_slo_names_what_is_feasible(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """A refusal lists feasible SLOs."""
    ask = SloArguments(min_f1=0.99, policy="strict")
    with pytest.raises(bertier.Infeasible) as caught:
        await in_thread(url_of(gateway), lambda c: c.answer(QUESTION, CONTEXT, **ask))
    assert {p["plan"] for p in caught.value.nearest} <= {"small", "large"}
    assert caught.value.request_id


@both
@pytest.mark.parametrize(
    ("slo", "said"),
    [
        ({"min_f1": 1.5}, "SLO-Min-F1"),
        ({"latency_ms": float("nan")}, "SLO-Latency-Ms"),
        ({"slo_class": "no-such"}, "no-such"),
    ],
)
async def test_what_cannot_be_asked_raises(
    gateway: Running, url_of: Callable[[Running], str], slo: SloArguments, said: str
) -> None:
    """The gateway's own words reach the caller."""
    with pytest.raises(bertier.InvalidRequest, match=said):
        await in_thread(url_of(gateway), lambda c: c.answer(QUESTION, CONTEXT, **slo))


async def test_a_misspelt_slo_is_refused(gateway: Running) -> None:
    """An argument that is none never reaches the network in silence."""
    with pytest.raises(TypeError, match="min_f2"):
        await in_thread(http(gateway), lambda c: c.answer(QUESTION, CONTEXT, **MISSPELT))


@both
async def test_a_passing_failure_is_asked_again(
    gateway: Running, url_of: Callable[[Running], str]
) -> None:
    """A model server that restarts is not the caller's trouble; the last failure is."""
    gateway.backend.error = BackendUnavailable("restarting")
    url = url_of(gateway)
    with pytest.raises(bertier.Unavailable):
        await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT))
    n_asked = len(gateway.backend.asked)
    async with AsyncClient(url, retries=Retries(attempts=8)) as client:
        asking = asyncio.create_task(client.answer(QUESTION, CONTEXT))
        await gateway.backend.until_asked(n_asked + 1)
        gateway.backend.error = None
        assert await asking


@pytest.mark.parametrize("in_loop", [True, False])
@both
async def test_a_connection_that_fails_is_made_again(
    gateway: Running, url_of: Callable[[Running], str], in_loop: bool
) -> None:
    """A balancer passes the first one on to a gateway that is gone."""
    protocol, _, target = url_of(gateway).partition("://")
    async with _closing_the_first(target) as address:
        url = f"{protocol}://{address}"
        if in_loop:
            async with AsyncClient(url) as client:
                assert await client.answer(QUESTION, CONTEXT)
        else:
            assert await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT), Retries())


@asynccontextmanager
async def _closing_the_first(target: str) -> AsyncIterator[str]:
    """Listen, close the first connection at once, and pass later ones on to the target; yields the address."""
    host, port = target.split(":")
    n, opened = 0, list[asyncio.StreamWriter]()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal n
        n += 1
        opened.append(writer)
        if n == 1:
            writer.transport.abort()
            return
        there, send = await asyncio.open_connection(host, int(port))
        opened.append(send)
        await asyncio.gather(_copy(reader, send), _copy(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield ":".join(map(str, server.sockets[0].getsockname()))
        assert n > 1
        for writer in opened:
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
async def test_nobody_there_is_said_with_the_address(url: str) -> None:
    """The first mistake of a newcomer: nothing listens there."""
    with pytest.raises(bertier.Unreachable, match=r"127\.0\.0\.1:1"):
        await in_thread(url, lambda c: c.answer(QUESTION, CONTEXT))


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://"])
def test_an_address_of_no_protocol_is_refused(url: str) -> None:
    """The schemes decide the protocol; without one nothing can be asked."""
    with pytest.raises(ValueError, match="grpcs://"):
        Client(url)


@both
@pytest.mark.parametrize("wrong", [(QUESTION, CONTEXT), {"question": QUESTION}, QUESTION])
async def test_what_is_no_ask_is_refused_with_what_is_wanted(
    gateway: Running, url_of: Callable[[Running], str], wrong: Any
) -> None:
    """A pair of texts is the first thing that people try; an attribute error would not help them."""
    asks = [Ask(QUESTION, CONTEXT), wrong]
    said = rf"takes bertier\.Ask.*item 1 is a {type(wrong).__name__}"
    with pytest.raises(TypeError, match=said):
        await in_thread(url_of(gateway), lambda c: list(c.answers(asks)))
    async with AsyncClient(url_of(gateway)) as client:
        with pytest.raises(TypeError, match=said):
            [found async for found in client.answers(asks)]


@both
async def test_feedback_names_the_answer(url_of: Callable[[Running], str]) -> None:
    """An answer knows its request; what contradicts an earlier report is refused."""
    async with live.gateway(feedback_requests=100) as running:

        def report(client: Client) -> tuple[bertier.Scored, bertier.Scored]:
            answer = client.answer(QUESTION, CONTEXT)
            first = client.feedback(answer, answers=["Normandy"])
            with pytest.raises(bertier.InvalidRequest) as refused:
                client.feedback(answer, right=True)
            assert refused.value.kind == "feedback-conflict"
            ask = Ask(QUESTION, CONTEXT, id="7")
            (listed,) = client.answers([ask])
            assert isinstance(listed, bertier.Answer)
            return first, client.feedback(listed.request_id, question_id="7", right=True)

        first, second = await in_thread(url_of(running), report)
    assert (first.plan, first.f1, second.f1) == ("large", 0.0, 1.0)


@both
async def test_an_event_loop_reports_alike(url_of: Callable[[Running], str]) -> None:
    """Both clients have the same calls."""
    async with (
        live.gateway(feedback_requests=100) as running,
        AsyncClient(url_of(running), retries=ONCE) as client,
    ):
        answer = await client.answer(QUESTION, CONTEXT)
        assert (await client.feedback(answer, right=False)).f1 == 0.0
        with pytest.raises(bertier.InvalidRequest, match="no answer of yours"):
            await client.feedback("unknown", right=True)
        with pytest.raises(ValueError, match="either"):
            await client.feedback(answer)
