"""Passages and shared contexts as messages: what is wrong is named, and what was asked for comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import grpc
import pytest

from gateway.errors import TooManyItems
from gateway.frontends.grpc.questions import with_shared_texts
from gateway.proto.bertier.v1 import qa_pb2 as pb
from gateway.proto.bertier.v1 import qa_pb2_grpc
from gateway.settings import Settings
from tests import live
from tests.fakes import CONTEXT, QUESTION


@pytest.fixture
async def stub() -> AsyncIterator[qa_pb2_grpc.QuestionAnsweringStub]:
    async with (
        live.gateway(max_passages=3, cache_bytes=1 << 20) as running,
        grpc.aio.insecure_channel(running.grpc_url) as channel,
    ):
        yield qa_pb2_grpc.QuestionAnsweringStub(channel)  # type: ignore[no-untyped-call]  # generated


UNHURRIED = pb.SloRequest(latency_ms=60_000)  # the host of the tests may be busy


def passages(*texts: str) -> list[pb.Passage]:
    return [pb.Passage(context=text) for text in texts]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"context": CONTEXT, "contexts": passages("x")}, "contexts: sent beside context"),
        ({"contexts": passages(*"abcd")}, "contexts: 4 items, the limit is 3"),
        ({"contexts": passages("x", "")}, "contexts.1: empty"),
        ({"contexts": [pb.Passage(context="x", id="y" * 257)]}, "contexts.0.id: 257"),
        ({"context": CONTEXT, "min_score": 1.5}, "min_score: 1.5 is not allowed"),
        ({"context": CONTEXT, "max_no_answer_probability": float("nan")}, "max_no_answer"),
        ({"context": CONTEXT, "max_answer_tokens": 0}, "max_answer_tokens: 0"),
        ({"context": CONTEXT, "offset_unit": "bytes"}, "offset_unit: 'bytes' is not known"),
    ],
)
async def test_what_cannot_be_used_is_named(
    stub: qa_pb2_grpc.QuestionAnsweringStub, fields: dict[str, Any], named: str
) -> None:
    """The same words as over HTTP."""
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as failed:
        await stub.Answer(pb.AnswerRequest(question=QUESTION, **fields))
    details = failed.value.details()
    assert details is not None
    assert details.startswith(named)


async def test_a_question_of_many_with_its_own_text_fails_alone(
    stub: qa_pb2_grpc.QuestionAnsweringStub,
) -> None:
    """Which of the two texts is meant?"""
    questions = [
        pb.AnswerRequest(question=QUESTION, id="a", sentence=True, slo=UNHURRIED),
        pb.AnswerRequest(question=QUESTION, id="b", context="x"),
    ]
    asked = pb.AnswerManyRequest(questions=questions, contexts=passages(CONTEXT))
    first, second = [item async for item in stub.AnswerMany(asked)]
    assert (first.answer.id, first.answer.passage.index) == ("a", 0)
    assert first.answer.sentence.text == CONTEXT
    assert second.id == "b"
    assert second.failure.detail.startswith("questions.1.context")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (pb.AnswerManyRequest(context=CONTEXT), "questions: empty"),
        (pb.AnswerManyRequest(questions=[pb.AnswerRequest(question="x")]), "context: empty"),
    ],
)
async def test_many_without_questions_or_text_fail_as_a_whole(
    stub: qa_pb2_grpc.QuestionAnsweringStub, asked: pb.AnswerManyRequest, named: str
) -> None:
    """There is nothing to answer."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        [item async for item in stub.AnswerMany(asked)]
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = failed.value.details()
    assert details is not None
    assert details.startswith(named)


class Millions:
    """The passages of a message of 32 MiB, which nobody may look at one by one."""

    def __len__(self) -> int:
        return 16_000_000

    def __iter__(self) -> NoReturn:
        pytest.fail("one by one")


def test_passages_are_counted_before_they_are_read() -> None:
    """16 million empty ones fit into a message; to read them in the event loop was not done after 25 s."""
    asked = SimpleNamespace(questions=[pb.AnswerRequest()], context="", contexts=Millions())
    with pytest.raises(TooManyItems, match="contexts: 16000000 items, the limit is 100"):
        with_shared_texts(cast("pb.AnswerManyRequest", asked), Settings())


async def test_what_was_not_asked_for_is_absent(stub: qa_pb2_grpc.QuestionAnsweringStub) -> None:
    """An older caller gets what it got, and the cost."""
    answer = await stub.Answer(pb.AnswerRequest(question=QUESTION, context=CONTEXT))
    assert not any(answer.HasField(name) for name in ("passage", "sentence", "age_ms", "explain"))
    assert answer.cost.largest_variant == "large"


async def test_a_kept_answer_says_its_age(stub: qa_pb2_grpc.QuestionAnsweringStub) -> None:
    """In the message and in the metadata; `cache-control` is metadata, too."""
    asked = pb.AnswerRequest(question=QUESTION, context=CONTEXT)
    await stub.Answer(asked, metadata=(("slo-latency-ms", "30000"),))
    again = stub.Answer(asked, metadata=(("slo-latency-ms", "30000"),))
    assert (await again).HasField("age_ms")
    assert dict(await again.initial_metadata())["age"] == "0"
    refused = (("slo-latency-ms", "30000"), ("cache-control", "no-store"))
    assert not (await stub.Answer(asked, metadata=refused)).HasField("age_ms")
