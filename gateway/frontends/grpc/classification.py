"""The service `bertier.v1.Classification`: its call."""

# ruff: noqa: N802  # the protocol names its calls

from __future__ import annotations

from collections.abc import Mapping

from gateway.errors import Malformed
from gateway.frontends import slo_headers
from gateway.frontends.grpc.call import Call, Calls, Context
from gateway.frontends.grpc.questions import slo_fields, to_classify_response, to_texts
from gateway.proto.bertier.v1 import qa_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Classification"]


class Classification:
    """Classify."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service

    async def Classify(
        self, request: pb.ClassifyRequest | Malformed, context: Context
    ) -> pb.ClassifyResponse:
        return await self._calls.run(context, request, slo_fields(request), self._one)

    async def _one(
        self, request: pb.ClassifyRequest, call: Call
    ) -> tuple[pb.ClassifyResponse, Mapping[str, str]]:
        texts = to_texts(request, self._service.settings)
        slo = call.slo_request(slo_fields(request), None)
        classified = await self._service.answer(texts, slo, call.arrived_ms, frontend="grpc")
        return to_classify_response(classified, texts.id), slo_headers.slo_headers(classified)
