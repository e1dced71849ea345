"""Plain gRPC with the default limits of Java and Go: reflection, small metadata, keepalive on a quiet stream.

The messages are taken from the gateway's reflection, as grpcurl does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from queue import Queue
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.clients.asked import CONTEXT, QUESTION, addresses, check_answer, say

SERVICE = "bertier.v1.QuestionAnswering"
JAVA_METADATA_BYTES = 8_192  # what grpc-java takes of one call by default
QUIET_S = 45.0  # gRPC servers allow few pings without data in so long by default


class Stub:
    """The calls of the service, from its descriptors."""

    def __init__(self, channel: grpc.Channel) -> None:
        found = ProtoReflectionDescriptorDatabase(channel)
        say("reflection", sorted(found.get_services()))
        pool = descriptor_pool.DescriptorPool(found)
        self._methods = pool.FindServiceByName(SERVICE).methods_by_name
        self._channel = channel

    def call(self, name: str) -> Any:
        method = self._methods[name]
        kinds = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, True): "stream_stream",
        }
        make = getattr(self._channel, kinds[method.client_streaming, method.server_streaming])
        reply = message_factory.GetMessageClass(method.output_type)
        return make(
            f"/{SERVICE}/{name}", lambda message: message.SerializeToString(), reply.FromString
        )

    def request(self, name: str, **fields: Any) -> Any:
        return message_factory.GetMessageClass(self._methods[name].input_type)(**fields)


def infeasible(stub: Stub) -> None:
    """The nearest plans arrive although their names are long."""
    metadata = [("slo-policy", "strict"), ("slo-min-f1", "0.999")]
    try:
        stub.call("Answer")(
            stub.request("Answer", question=QUESTION, context=CONTEXT),
            metadata=metadata,
            timeout=30,
        )
    except grpc.RpcError as refused:
        sent: Any = refused.trailing_metadata()
        trailing = dict(sent)
        nearest = json.loads(trailing["slo-nearest"])
        say(
            "infeasible, with 8 KiB of metadata",
            (refused.code().name, trailing["error-type"], len(nearest)),
        )
        assert trailing["error-type"] == "infeasible"
        assert nearest
    else:
        raise AssertionError("it was not refused")


def quiet_stream(stub: Stub) -> None:
    """A stream on which nothing is asked for a while stays open under keepalive pings of 10 s."""
    waiting: Queue[Any] = Queue()

    def asked() -> Iterator[Any]:
        while (message := waiting.get()) is not None:
            yield message

    replies = stub.call("AnswerStream")(asked())
    for quiet_s in (0.0, QUIET_S):
        time.sleep(quiet_s)
        waiting.put(
            stub.request("AnswerStream", question=QUESTION, context=CONTEXT, id=f"{quiet_s:g}")
        )
        item = next(replies)
        check_answer(item.answer.answer, item.answer.start, item.answer.end)
        say(f"stream, after {quiet_s:g} s of quiet", item.answer.answer)
    waiting.put(None)
    assert next(replies, None) is None


def many(stub: Stub) -> None:
    """One context, sent once."""
    questions = [stub.request("Answer", question=QUESTION, id=str(i)) for i in range(3)]
    items = list(
        stub.call("AnswerMany")(stub.request("AnswerMany", questions=questions, context=CONTEXT))
    )
    say("AnswerMany", [(item.id, item.answer.answer) for item in items])
    assert [item.id for item in items] == ["0", "1", "2"]


def main() -> None:
    options = [
        ("grpc.max_metadata_size", JAVA_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", JAVA_METADATA_BYTES),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with grpc.insecure_channel(addresses()[1], options=options) as channel:
        stub = Stub(channel)
        infeasible(stub)
        many(stub)
        quiet_stream(stub)


main()
