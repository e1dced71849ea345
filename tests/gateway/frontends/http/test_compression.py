"""Compressed requests and replies, over real sockets and with the stock Triton client."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tracemalloc
import zlib
from typing import Any

import grpc
import httpx2 as httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from starlette.types import Message, Receive, Scope, Send

from gateway.frontends.http.compression import CompressesReplies, InflatesRequests, accepted
from gateway.proto.bertier.v1 import qa_pb2, qa_pb2_grpc
from tests import live
from tests.asgi import QUESTION_BODY
from tests.fakes import CONTEXT, QUESTION
from tests.live import Running

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BODY = json.dumps(QUESTION_BODY).encode()
# What it inflates to would need a window of 128 MiB to be held.
WIDE_FRAME = zstd.compress(
    BODY * 2,
    options={
        zstd.CompressionParameter.window_log: 27,
        zstd.CompressionParameter.content_size_flag: 0,
    },
)
GZIP = {"Content-Encoding": "gzip"}
LINES = {"Content-Type": "application/x-ndjson"}
LARGE = json.dumps({**QUESTION_BODY, "top_k": 20}).encode()  # its answer is larger than a packet


async def sent(running: Running, path: str, body: bytes, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{running.http_url}", timeout=30) as http:
        http.headers.pop("accept-encoding")
        return await http.post(path, content=body, headers=headers)


def bomb(size_bytes: int) -> bytes:
    return gzip.compress(b" " * size_bytes)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZip", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("gzip", gzip.compress(BODY[:30]) + gzip.compress(BODY[30:])),
        ("zstd", zstd.compress(BODY)),
        ("zstd", zstd.compress(BODY[:30]) + zstd.compress(BODY[30:])),
        ("zstd", (zstd.compress(b"") * 90 + zstd.compress(b" ")) * 2 + zstd.compress(BODY)),
        ("identity", BODY),
    ],
)
async def test_a_compressed_question_is_answered(coding: str, body: bytes) -> None:
    """Telemetry agents and proxies compress whatever they send."""
    async with live.gateway() as running:
        response = await sent(running, "/v1/answer", body, **{"Content-Encoding": coding})
    assert (response.status_code, response.json()["answer"]) == (200, "The")


async def test_lists_lines_and_plans_may_be_compressed() -> None:
    """Bulk is what compression is for."""
    async with live.gateway() as running:
        many = await sent(running, "/v1/answers", gzip.compress(b"[%s,%s]" % (BODY, BODY)), **GZIP)
        lines = gzip.compress(BODY + b"\n" + BODY)
        lined = await sent(running, "/v1/answers", lines, **GZIP, **LINES)
        plan = await sent(running, "/v1/plan", gzip.compress(b'{"n_tokens": 300}'), **GZIP)
    assert [len(each.text.splitlines()) for each in (many, lined)] == [2, 2]
    assert plan.json()["n_tokens"] == 320


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("path", ["/v1/answer", "/v1/answers", "/v1/plan", "/v2/models/qa/infer"])
async def test_a_bomb_is_refused_at_the_limit(path: str, coding: str) -> None:
    """64 KiB that inflate to 64 MiB must cost no more memory than the limit."""
    packed = bomb(64 << 20) if coding == "gzip" else zstd.compress(b" " * (64 << 20))
    assert len(packed) < 70_000
    limits = {"max_body_bytes": 1 << 20, "max_batch_bytes": 1 << 20}
    async with live.gateway(**limits) as running:
        tracemalloc.start()
        response = await sent(running, path, packed, **{"Content-Encoding": coding})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (await sent(running, "/v1/answer", BODY)).status_code == 200
    assert (response.status_code, response.json()["type"][-13:]) == (413, "text-too-long")
    assert peak < 8 << 20


async def test_a_line_that_is_a_bomb_fails_alone() -> None:
    """The limit of a line holds for what it inflates to; the others are answered."""
    lines = gzip.compress(b"[" + b" " * (8 << 20) + b"\n" + BODY)
    async with live.gateway(max_body_bytes=1 << 20) as running:
        response = await sent(running, "/v1/answers", lines, **GZIP, **LINES)
    first, second = map(json.loads, response.text.splitlines())
    assert (first["error"]["status"], second["answer"]) == (413, "The")


async def test_a_bomb_is_refused_over_grpc() -> None:
    """gRPC compresses by itself; its limit must hold for what a message inflates to, too."""
    limits = {"max_body_bytes": 1 << 20, "max_batch_bytes": 1 << 20}
    how = grpc.Compression.Gzip
    async with (
        live.gateway(**limits) as running,
        grpc.aio.insecure_channel(running.grpc_url, compression=how) as channel,
    ):
        stub = qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]  # generated
        asked = qa_pb2.AnswerRequest(question=QUESTION, context=" " * (64 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Answer(asked)
        small = await stub.Answer(qa_pb2.AnswerRequest(question=QUESTION, context=CONTEXT))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert small.answer == "The"


@pytest.mark.parametrize(
    ("coding", "body", "status", "kind"),
    [
        ("gzip", BODY, 400, "malformed"),
        ("gzip", gzip.compress(BODY)[:-9], 400, "malformed"),
        ("gzip", gzip.compress(BODY) + b"rest", 400, "malformed"),
        ("zstd", BODY, 400, "malformed"),
        ("zstd", zstd.compress(BODY)[:-1], 400, "malformed"),
        ("zstd", zstd.compress(BODY) + b"rest", 400, "malformed"),
        ("zstd", WIDE_FRAME, 400, "malformed"),
        ("gzip", gzip.compress(b"") * 7_000 + gzip.compress(BODY), 400, "malformed"),
        ("deflate", zlib.compress(b"") * 7_000 + zlib.compress(BODY), 400, "malformed"),
        ("zstd", zstd.compress(b"") * 7_000 + zstd.compress(BODY), 400, "malformed"),
        ("br", BODY, 415, "unsupported-encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY)), 415, "unsupported-encoding"),
    ],
)
async def test_what_cannot_be_inflated_is_a_clear_error(
    coding: str, body: bytes, status: int, kind: str
) -> None:
    """`invalid JSON` would send people looking for the wrong fault."""
    async with live.gateway() as running:
        response = await sent(running, "/v1/answer", body, **{"Content-Encoding": coding})
        assert (await sent(running, "/v1/answer", BODY)).status_code == 200
    assert response.status_code == status
    assert response.json()["type"] == f"urn:bertier:problem:{kind}"
    assert (response.headers.get("accept-encoding") == "gzip, deflate, zstd") == (status == 415)


async def test_lines_that_break_off_end_with_what_is_wrong() -> None:
    """The status is sent by then; what was read whole is answered."""
    lines = gzip.compress(BODY + b"\n" + BODY + b"\n")
    async with live.gateway() as running:
        response = await sent(running, "/v1/answers", lines[:-4], **GZIP, **LINES)
    *answers, failure = map(json.loads, response.text.splitlines())
    assert [answer["answer"] for answer in answers] == ["The", "The"]
    assert failure["error"]["type"] == "urn:bertier:problem:malformed"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_large_reply_is_compressed_when_asked(coding: str) -> None:
    """Twenty alternatives of one text are alike."""
    async with live.gateway() as running:
        plain = await sent(running, "/v1/answer", LARGE)
        packed = await sent(running, "/v1/answer", LARGE, **{"Accept-Encoding": coding})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == coding
    assert packed.headers["vary"] == "Accept-Encoding"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.json()["alternatives"] == plain.json()["alternatives"]


async def test_small_replies_and_lines_are_sent_as_they_are() -> None:
    """One packet gains nothing, and a compressor would hold lines back."""
    asks = {"Accept-Encoding": "gzip"}
    async with live.gateway() as running:
        small = await sent(running, "/v1/answer", BODY, **asks)
        lines = await sent(running, "/v1/answers", b"[%s]" % LARGE, **asks)
    assert "content-encoding" not in {*small.headers, *lines.headers}
    assert len(lines.content) > 1_400


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", None),
        ("identity", None),
        ("br, gzip;q=0", None),
        ("gzip;q=0.5, deflate", "gzip"),
        ("deflate, br", "deflate"),
        ("*", "gzip"),
    ],
)
def test_the_coding_is_one_that_the_caller_takes(header: str, coding: str | None) -> None:
    """A caller who refuses a coding by `q=0` cannot read it."""
    assert accepted(header) == coding


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_stock_triton_client_may_compress_both_ways(coding: str) -> None:
    """Its header lengths are those of the inflated body."""

    def infer(url: str) -> Any:
        with triton_http.InferenceServerClient(url) as client:
            inputs = [
                triton_http.InferInput(name, [9], "BYTES") for name in ("question", "context")
            ]
            for tensor, text in zip(inputs, (QUESTION, CONTEXT), strict=True):
                tensor.set_data_from_numpy(np.array([text.encode()] * 9, dtype=object))
            return client.infer(
                "qa",
                inputs,
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
                parameters={"slo_explain": 1},
            ).as_numpy("answer")

    async with live.gateway() as running:
        answers = await asyncio.to_thread(infer, running.http_url)
    assert answers.tolist() == [b"The"] * 9


async def test_what_is_no_request_passes() -> None:
    """The server's own start and stop come the same way, and have no headers."""
    seen: list[str] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(_: Message) -> None: ...

    await CompressesReplies(InflatesRequests(inside))({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]
