"""Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`.

The messages are tritonclient's, which defines Triton's whole service; a part of its calls is served here.
"""

# ruff: noqa: N802  # the protocol names its calls

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from gateway.domain import Served
from gateway.errors import InvalidField, Malformed
from gateway.frontends import oip, oip_statistics, oip_tensors, replies, slo_headers
from gateway.frontends.grpc.call import (
    Call,
    Calls,
    Context,
    common_metadata,
    detail_of,
    log_failure,
    readable,
)
from gateway.frontends.oip import InferRequest, Model
from gateway.frontends.oip_tensors import Tensor

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]


class GrpcInferenceService:
    """The protocol's calls, as a stock Triton client makes them."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service

    async def ServerLive(self, request: Message, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Message, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=await slo_headers.is_ready(self._service))

    async def ServerMetadata(self, request: Message, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**oip.server_metadata())

    async def ModelReady(
        self, request: pb.ModelReadyRequest | Malformed, context: Context
    ) -> pb.ModelReadyResponse:
        return await self._calls.run(context, request, {}, self._ready, answers=False)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest | Malformed, context: Context
    ) -> pb.ModelMetadataResponse:
        return await self._calls.run(context, request, {}, self._metadata, answers=False)

    async def ModelConfig(
        self, request: pb.ModelConfigRequest | Malformed, context: Context
    ) -> pb.ModelConfigResponse:
        return await self._calls.run(context, request, {}, self._config, answers=False)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest | Malformed, context: Context
    ) -> pb.ModelStatisticsResponse:
        return await self._calls.run(context, request, {}, self._statistics, answers=False)

    async def ModelInfer(
        self, request: pb.ModelInferRequest | Malformed, context: Context
    ) -> Message:
        return await self._calls.run(context, request, _slo_fields(request), self._infer)

    async def ModelStreamInfer(
        self, requests: AsyncIterable[pb.ModelInferRequest | Malformed], context: Context
    ) -> None:
        """Answer each request in order; a failure is a response and does not end the stream."""
        call = await self._calls.begin_stream(context)

        async def work(request: pb.ModelInferRequest | Malformed) -> pb.ModelStreamInferResponse:
            item = call.again()
            try:
                with self._calls.observed(item, _slo_fields(request)):
                    reply, _ = await self._infer(readable(request), item)
            except Exception as exc:  # noqa: BLE001  # sent as a response, logged with its cause
                log_failure(exc, call.request_id)
                return _stream_failure(request, detail_of(exc, call.request_id))
            return pb.ModelStreamInferResponse(infer_response=reply)

        limit = self._service.settings.max_concurrent_items
        await context.send_initial_metadata(common_metadata(call))
        await slo_headers.map_in_order(requests, work, context.write, limit)

    async def _ready(
        self, request: pb.ModelReadyRequest, call: Call
    ) -> tuple[pb.ModelReadyResponse, Mapping[str, str]]:
        if self._service.serving is not None:
            oip.find_model(self._service, request.name, request.version)
        return pb.ModelReadyResponse(ready=await slo_headers.is_ready(self._service)), {}

    async def _statistics(
        self, request: pb.ModelStatisticsRequest, _: Call
    ) -> tuple[pb.ModelStatisticsResponse, Mapping[str, str]]:
        names = [request.name] if request.name else [*oip.models_of(self._service.serving)]
        for name in names:
            oip.find_model(self._service, name, request.version)
        found = [oip_statistics.model_statistics(name, self._service.metrics) for name in names]
        return pb.ModelStatisticsResponse(model_stats=found), {}

    async def _metadata(
        self, request: pb.ModelMetadataRequest, _: Call
    ) -> tuple[pb.ModelMetadataResponse, Mapping[str, str]]:
        model = oip.find_model(self._service, request.name, request.version)
        return pb.ModelMetadataResponse(**oip.model_metadata(model)), {}

    async def _config(
        self, request: pb.ModelConfigRequest, _: Call
    ) -> tuple[pb.ModelConfigResponse, Mapping[str, str]]:
        model = oip.find_model(self._service, request.name, request.version)
        return pb.ModelConfigResponse(config=oip_statistics.model_config(model)), {}

    async def _infer(
        self, request: pb.ModelInferRequest, call: Call
    ) -> tuple[pb.ModelInferResponse, Mapping[str, str]]:
        model = oip.find_model(self._service, request.model_name, request.model_version)
        infer_request = _parse(model, request)
        slo = call.slo_request(infer_request.slo_fields, infer_request.timeout_ms)
        answers = await oip.answer(
            self._service, infer_request, slo, call.arrived_ms, frontend="grpc"
        )
        return _response(request.id, infer_request, answers), oip.slo_metadata(answers)


def _slo_fields(request: pb.ModelInferRequest | Malformed) -> dict[str, object]:
    return {} if isinstance(request, Malformed) else oip.slo_fields(_parameters(request))


def _parameters(request: pb.ModelInferRequest) -> dict[str, object]:
    return {name: _value(parameter) for name, parameter in request.parameters.items()}


def _value(parameter: pb.InferParameter) -> Any:
    which = parameter.WhichOneof("parameter_choice")
    return "" if which is None else getattr(parameter, which)


def _parse(model: Model, request: pb.ModelInferRequest) -> InferRequest:
    """Return what the message asks. Raises: Malformed, InvalidField."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise Malformed(f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs")
    inputs = [_input(tensor, raw[i] if raw else None) for i, tensor in enumerate(request.inputs)]
    return oip.inference(model, inputs, [o.name for o in request.outputs], _parameters(request))


def _input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    if raw is None:
        data = list(tensor.contents.bytes_contents)
    elif tensor.HasField("contents"):
        raise InvalidField(f"{tensor.name}: send contents or raw_input_contents, not both")
    else:
        data = oip_tensors.unpack_texts(tensor.name, raw)
    return oip_tensors.texts(tensor.name, tensor.datatype, list(tensor.shape), data)


def _response(
    request_id: str, infer_request: InferRequest, answers: list[Served[Any]]
) -> pb.ModelInferResponse:
    outputs = oip.output_tensors(infer_request, answers)
    response = pb.ModelInferResponse(
        model_name=infer_request.model.name, model_version=oip.MODEL_VERSION, id=request_id
    )
    for tensor in outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(oip_tensors.pack(tensor))
    parameters = {n.replace("-", "_"): text for n, text in oip.slo_metadata(answers).items()}
    for name, text in (parameters | replies.explanations(answers)).items():
        response.parameters[name].string_param = text
    return response


def _stream_failure(
    request: pb.ModelInferRequest | Malformed, detail: str
) -> pb.ModelStreamInferResponse:
    own_id = "" if isinstance(request, Malformed) else request.id
    return pb.ModelStreamInferResponse(
        error_message=detail, infer_response=pb.ModelInferResponse(id=own_id)
    )
