"""What a connection may send and keep waiting before anybody is asked for a key, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.frontends.http import open_files
from gateway.frontends.http.connections import LOGGED, Closed, Connections, Limits
from gateway.observability.metrics import Metrics
from tests import live
from tests.certificates import Authority
from tests.live import Running

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LOCKED = {"api_keys": {"a": {"sha256": "0" * 64}}}
WAIT_S = 6.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(running: Running, tls: ssl.SSLContext | None = None) -> Streams:
    host, port = running.http_url.split(":")
    return await asyncio.open_connection(host, int(port), ssl=tls)


async def closing(streams: Streams) -> bytes:
    """Return what comes until the other end closes."""
    reader, writer = streams
    async with asyncio.timeout(WAIT_S):
        try:
            found = await reader.read()
        except ConnectionError:
            found = b""
    writer.close()
    return found


async def said_to(running: Running, data: bytes) -> bytes:
    streams = await connected(running)
    streams[1].write(data)
    return await closing(streams)


async def answered(streams: Streams) -> bytes:
    """Return the head of the answer to a probe on a connection that stays open."""
    reader, writer = streams
    writer.write(PROBE)
    async with asyncio.timeout(WAIT_S):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
    return head


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (metrics have no event for a change)
            await asyncio.sleep(0.001)


def closed(running: Running, reason: str) -> float:
    value = running.service.metrics.registry.get_sample_value(
        "bertier_http_connections_closed_total", {"reason": reason}
    )
    assert value is not None
    return value


def problem_of(response: bytes) -> dict[str, Any]:
    head, body = response.split(b"\r\n\r\n", 1)
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem: dict[str, Any] = json.loads(body)
    assert f"x-request-id: {problem['request_id']}".encode() in head
    return problem


@asynccontextmanager
async def crowd(running: Running, n: int, data: bytes = b"") -> AsyncIterator[list[Streams]]:
    """Hold so many connections open, each with this sent and nothing more."""
    held = [await connected(running) for _ in range(n)]
    for _, writer in held:
        writer.write(data)
    try:
        yield held
    finally:
        for _, writer in held:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    """A thousand of them lock everybody out."""
    async with live.gateway(head_timeout_ms=50, **LOCKED) as running:
        assert await said_to(running, b"") == b""
        assert closed(running, "slow_head") == 1


async def test_a_head_that_comes_slowly_is_answered_and_closed() -> None:
    """The limit is of the whole head: a byte now and then does not renew it."""
    async with live.gateway(head_timeout_ms=100, **LOCKED) as running:
        reader, writer = await connected(running)
        writer.write(b"GET /")
        trickle = asyncio.create_task(_trickle(writer))
        problem = problem_of(await closing((reader, writer)))
        trickle.cancel()
        assert (problem["status"], problem["type"]) == (408, "urn:bertier:problem:head-too-slow")
        assert closed(running, "slow_head") == 1


async def _trickle(writer: asyncio.StreamWriter, data: bytes = b"x") -> None:
    while not writer.is_closing():
        writer.write(data)
        await asyncio.sleep(0.01)  # paces the sender; nothing is asserted of it


@pytest.mark.parametrize(("first", "then"), [(b"", b"\r\n"), (b"GET /", b"x")])
async def test_the_head_after_an_answer_has_its_limit_too(first: bytes, then: bytes) -> None:
    """Empty lines and half a head stop the idle timer; another one must run then."""
    async with live.gateway(head_timeout_ms=100, idle_timeout_ms=200, **LOCKED) as running:
        reader, writer = await connected(running)
        await answered((reader, writer))
        writer.write(first)
        trickle = asyncio.create_task(_trickle(writer, then))
        await closing((reader, writer))
        trickle.cancel()
        assert closed(running, "slow_head") == 1


async def test_a_connection_without_a_request_is_closed_after_its_time() -> None:
    """It holds a file and memory, and its client opens another when it needs one."""
    async with live.gateway(idle_timeout_ms=50, **LOCKED) as running:
        streams = await connected(running)
        await answered(streams)
        assert await closing(streams) == b""
        assert (closed(running, "idle"), closed(running, "slow_head")) == (1, 0)


async def test_a_body_after_its_refusal_has_a_limit() -> None:
    """A caller without a key is refused at once; it could send a body forever."""
    async with live.gateway(head_timeout_ms=100, idle_timeout_ms=100_000, **LOCKED) as running:
        reader, writer = await connected(running)
        writer.write(b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        trickle = asyncio.create_task(_trickle(writer))
        async with asyncio.timeout(WAIT_S):
            assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        await closing((reader, writer))
        trickle.cancel()
        assert closed(running, "slow_head") == 1


async def test_a_body_that_is_whole_after_its_refusal_leaves_the_connection_idle() -> None:
    """The next request may come as late as after any other answer."""
    async with live.gateway(head_timeout_ms=50, idle_timeout_ms=1_500, **LOCKED) as running:
        reader, writer = await connected(running)
        writer.write(b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"{}")
        await closing((reader, writer))
        assert (closed(running, "slow_head"), closed(running, "idle")) == (0, 1)


async def test_an_answer_may_take_longer_than_a_head() -> None:
    """The limits are of what the caller has to do."""
    async with live.gateway(head_timeout_ms=50, idle_timeout_ms=50) as running:
        running.backend.gate = asyncio.Event()
        reader, writer = await connected(running)
        body = b'{"question": "Who came?", "context": "Ada came."}'
        head = b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nSLO-Class: batch\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await running.backend.until_asked()
        assert await said_to(running, b"") == b""  # so long another one is not served
        running.backend.gate.set()
        assert b" 200 " in await closing((reader, writer))


@pytest.mark.parametrize("shape", ["many", "one", "url", "trailers", "pipelined"])
async def test_headers_above_their_limit_are_refused_while_they_come(shape: str) -> None:
    """Two hundred headers of a megabyte were read whole before anybody asked for a key."""
    async with live.gateway(max_head_bytes=4_096, **LOCKED) as running:
        reader, writer = await connected(running)
        start = {
            "url": b"GET /",
            "trailers": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            "pipelined": PROBE * 2 + b"GET / HTTP/1.1\r\n",
        }.get(shape, b"GET / HTTP/1.1\r\nHost: x\r\n")
        unit = b"X: " + b"a" * 500 + b"\r\n" if shape in {"many", "trailers"} else b"a" * 500
        writer.write(start + (b"" if unit[:1] == b"X" or shape == "url" else b"X: "))
        sending = asyncio.create_task(_flood(writer, unit))
        response = await closing((reader, writer))
        sending.cancel()
        if shape == "pipelined":  # what came before is answered
            assert response.count(b"HTTP/1.1 200 OK") == 2
        elif shape != "trailers":  # the refusal of the request is its answer there
            problem = problem_of(response)
            assert (problem["status"], problem["type"]) == (
                431,
                "urn:bertier:problem:head-too-large",
            )
            assert "4096 bytes" in problem["detail"]
        assert closed(running, "large_head") == 1


async def _flood(writer: asyncio.StreamWriter, unit: bytes) -> None:
    while not writer.is_closing():
        writer.write(unit)
        await writer.drain()
        await asyncio.sleep(0)


async def test_headers_up_to_the_limit_are_read() -> None:
    """A cookie of 60 KB is no attack."""
    async with live.gateway() as running:
        padding = b"X: " + b"a" * 60_000 + b"\r\n"
        asked = PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n" + padding + b"\r\n")
        assert b" 200 " in await said_to(running, asked)


async def test_a_large_body_in_the_same_packets_is_no_head() -> None:
    """The limit of headers must not cut a body that comes with them."""
    async with live.gateway(max_head_bytes=1_024) as running:
        body = b'{"question": "Who came?", "context": "Ada came.%s"}' % (b" " * 50_000)
        head = b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        assert b" 200 " in await said_to(running, whole)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HELLO\r\n\r\n", "Invalid method"),
        (b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", "Invalid header token"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "Invalid method"),
        (b"GET / HTTP/1.1\r\n\r\n", "Host: sent 0 times"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "Host: sent 2 times"),
        (
            b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "chunk size",
        ),
    ],
)
async def test_what_is_no_request_gets_a_problem_and_a_line_in_the_log(
    data: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who runs the client learns what is wrong, who runs the gateway learns which client."""
    async with live.gateway() as running:
        reader, writer = await connected(running)
        host, port = writer.get_extra_info("sockname")
        writer.write(data)
        problem = problem_of(await closing((reader, writer)))
        assert (problem["status"], problem["type"]) == (400, "urn:bertier:problem:malformed")
        assert why in problem["detail"]
        (line,) = [
            r.getMessage() for r in caplog.records if r.name == "gateway.frontends.http.connections"
        ]
        assert f"{host}:{port}" in line
        assert why in line
        assert closed(running, "malformed") == 1


async def test_a_refused_request_is_logged_under_the_id_that_came_with_it() -> None:
    """The caller finds it in its own log."""
    async with live.gateway(max_head_bytes=1_024) as running:
        data = b"GET / HTTP/1.1\r\nX-Request-Id: mine\r\nX: " + b"a" * 2_000
        assert problem_of(await said_to(running, data))["request_id"] == "mine"


async def test_what_came_before_a_broken_request_is_answered() -> None:
    """Requests of one connection are answered in order, or not at all."""
    async with live.gateway() as running:
        response = await said_to(running, PROBE + b"NONSENSE\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 200 OK")
        assert b" 400 " not in response


async def test_http_1_0_needs_no_host_and_gets_no_chunks() -> None:
    """Its clients know neither; a body of unknown length ends with the connection."""
    async with live.gateway() as running:
        item = b'{"question": "Who came?", "context": "Ada came."}\n'
        head = b"POST /v1/answers HTTP/1.0\r\nContent-Type: application/x-ndjson\r\n"
        response = await said_to(running, head + b"Content-Length: %d\r\n\r\n" % len(item) + item)
        head, body = response.split(b"\r\n\r\n", 1)
        assert b"transfer-encoding" not in head
        assert "answer" in json.loads(body)


async def test_a_slow_connection_gives_way_to_one_that_asks() -> None:
    """As many slow ones as there may be keep nobody out."""
    async with live.gateway(max_connections=5) as running, crowd(running, 8, b"GET /") as slow:
        async with crowd(running, 1) as (one,):
            assert b" 200 " in await answered(one)
        assert closed(running, "full") == 4
        assert await closing(slow[0]) == b""


async def test_an_idle_connection_gives_way_after_the_unused_ones() -> None:
    """It was of use once; its client opens another when it needs it."""
    async with live.gateway(max_connections=3) as running, crowd(running, 1) as (idle,):
        await answered(idle)
        async with crowd(running, 4):
            await until(lambda: closed(running, "full") == 2)
            assert b" 200 " in await answered(idle)
        await until(lambda: len(running.server.connections) == 1)


async def test_when_all_connections_are_busy_probes_still_have_room() -> None:
    """A gateway that is full must not look dead."""
    async with live.gateway(max_connections=2, probe_connections=2) as running:
        running.backend.gate = asyncio.Event()
        body = b'{"question": "Who came?", "context": "Ada came."}'
        head = b"POST /v1/answer HTTP/1.1\r\nHost: x\r\nSLO-Class: batch\r\n"
        asked = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        async with crowd(running, 2, asked), crowd(running, 2):
            await running.backend.until_asked(2)
            probe = await said_to(running, PROBE)
            assert probe.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close" in probe
            problem = problem_of(await said_to(running, asked))
            assert (problem["status"], problem["type"]) == (
                429,
                "urn:bertier:problem:too-many-connections",
            )
            running.backend.gate.set()


async def test_a_tls_handshake_that_never_ends_is_closed(tmp_path: Path) -> None:
    """It is the first step that an unknown client can stall."""
    certificate, key = Authority().sign("gateway").write(tmp_path, "gateway")
    async with live.gateway(
        tls_certificate=certificate, tls_key=key, head_timeout_ms=100
    ) as running:
        assert await said_to(running, b"") == b""
        await until(lambda: closed(running, "slow_head") == 1)
        await until(lambda: len(running.server.connections) == 0)


async def test_headers_over_mutual_tls_have_their_limit(tmp_path: Path) -> None:
    """A certificate is no key: twenty megabytes of headers were read before the 401."""
    authority = Authority()
    certificate, key = authority.sign("gateway").write(tmp_path, "gateway")
    own, own_key = authority.sign("caller").write(tmp_path, "caller")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    tls.load_cert_chain(own, own_key)
    mutual = {
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_client_authority": tmp_path / "ca.pem",
    }
    async with live.gateway(**mutual, **LOCKED) as running:
        reader, writer = await connected(running, tls)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join([b"X: " + b"a" * 30_000] * 4))
        assert problem_of(await closing((reader, writer)))["status"] == 431


def test_many_closed_connections_are_logged_as_a_sum(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand lines would hide what else happens; none would hide this."""
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        connections = Connections(Limits(), metrics)
        for _ in range(1_000):
            connections.closed(Closed.SLOW_HEAD, "1.2.3.4:5")
        connections._log_rest(Closed.SLOW_HEAD)

    loop.run_until_complete(run())
    loop.close()
    assert len(caplog.records) == LOGGED + 1
    assert "990 more" in caplog.records[-1].getMessage()


def test_as_many_connections_as_files_may_be_opened() -> None:
    """With `ulimit -n 1024` accepting fails before a limit of thousands is reached."""
    assert open_files.fitting(4_096, 32, 1_024) == 432
    assert open_files.fitting(100, 32, 1_024) == 100
    assert open_files.fitting(100, 32, 10) == 1


def test_the_limit_of_open_files_is_raised_where_it_may_be() -> None:
    """A shell's soft limit is no decision of the operator."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert open_files.connections_for(500, 32) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1_160
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
