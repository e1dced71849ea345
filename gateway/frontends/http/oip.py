"""Open Inference Protocol v2 over HTTP: JSON, and Triton's binary tensor extension.

Errors rise as our own to the application's table, except an unknown model: 404, as Triton says it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from gateway.clock import now_ms
from gateway.errors import BadInput, BertierError, Malformed
from gateway.frontends import oip, oip_statistics, oip_tensors, replies, schemas, slo_headers
from gateway.frontends.http import openapi as http_docs
from gateway.frontends.http.streaming import (
    WATCH_AFTER_MS,
    bodies_of,
    disconnected,
    to_length,
    while_connected,
)
from gateway.frontends.oip import InferRequest, Model
from gateway.frontends.oip_bodies import InferBody
from gateway.frontends.oip_tensors import Tensor
from gateway.request.service import AnswerService

HEADER_LENGTH = "inference-header-content-length"
BINARY_SIZE = "binary_data_size"


def router(service: AnswerService) -> APIRouter:
    """Return the routes of the protocol."""
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    @routes.get("/v2", **http_docs.OIP_READ)
    async def server_metadata() -> JSONResponse:
        return JSONResponse(oip.server_metadata())

    @routes.get("/v2/health/live")
    async def server_live() -> Response:
        return JSONResponse({"live": True})

    @routes.get("/v2/health/ready")
    async def server_ready() -> Response:
        ready = await slo_headers.is_ready(service)
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    @routes.get("/v2/models/stats", **http_docs.OIP_READ)
    async def statistics() -> JSONResponse:
        return _statistics(service, *oip.models_of(service.serving))

    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        _add_model_routes(routes, path, service)
    return routes


def _add_model_routes(routes: APIRouter, path: str, service: AnswerService) -> None:
    @routes.get(path, **http_docs.OIP_READ)
    async def model_metadata(model: str, version: str = "") -> JSONResponse:
        return JSONResponse(oip.model_metadata(_find_model(service, model, version)))

    @routes.get(f"{path}/config", **http_docs.OIP_READ)
    async def model_config(model: str, version: str = "") -> JSONResponse:
        return JSONResponse(oip_statistics.model_config(_find_model(service, model, version)))

    @routes.get(f"{path}/stats", **http_docs.OIP_READ)
    async def model_statistics(model: str, version: str = "") -> JSONResponse:
        return _statistics(service, _find_model(service, model, version).name)

    @routes.get(f"{path}/ready", **http_docs.OIP_READ)
    async def model_ready(model: str, version: str = "") -> Response:
        if service.serving is not None:
            _find_model(service, model, version)
        ready = await slo_headers.is_ready(service)
        body = {"name": model, "ready": ready}
        return JSONResponse(body, status_code=200 if ready else 503)

    @routes.post(f"{path}/infer", response_class=Response, **http_docs.INFER)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        found = _find_model(service, model, version)
        _raise_if_full(request, service, found.name)
        label = _class_label(request, None, service)
        with slo_headers.refused_whole(service.observer, "http", label, found.name):
            raw = await bodies_of(request).read(request, service.settings.max_batch_bytes)
        return await _infer(request, found, raw, service, arrived_ms=now_ms())


def _statistics(service: AnswerService, *names: str) -> JSONResponse:
    found = [oip_statistics.model_statistics(name, service.metrics) for name in names]
    return JSONResponse({"model_stats": found})


def _raise_if_full(request: Request, service: AnswerService, task: str) -> None:
    """Raise Overloaded before the body is read, counted as a request of its class and task."""
    try:
        slo_headers.raise_if_full(service, "http", request.headers.items())
    except BertierError:
        label = slo_headers.class_label(request.headers.get("slo-class"), service.settings)
        with slo_headers.observed(service.observer, "http", label, task):
            raise


async def _infer(
    request: Request, model: Model, raw: bytes, service: AnswerService, *, arrived_ms: float
) -> Response:
    """Answer a request whose body was read."""
    read = _try_read(model, raw, request.headers.get(HEADER_LENGTH))
    label = _class_label(request, read, service)
    n_asked = 1 if isinstance(read, BadInput) else len(read[1].asked)
    with slo_headers.observed(service.observer, "http", label, model.name, n_asked):
        if isinstance(read, BadInput):
            raise read
        body, infer_request = read
        lookup = slo_headers.slo_lookup(request.headers.items())
        slo = slo_headers.of_caller(oip.slo_request(infer_request, lookup))
        async with while_connected(partial(disconnected, request.receive), WATCH_AFTER_MS):
            answers = await oip.answer(service, infer_request, slo, arrived_ms)
    explained = replies.explanations(answers)
    outputs = oip.output_tensors(infer_request, answers)
    return _response(model, body, outputs, oip.slo_metadata(answers), explained)


def _find_model(service: AnswerService, model: str, version: str) -> Model:
    try:
        return oip.find_model(service, model, version)
    except oip.UnknownModel as exc:
        raise HTTPException(404, str(exc)) from exc


def _class_label(
    request: Request, read: tuple[InferBody, InferRequest] | BadInput | None, service: AnswerService
) -> str:
    own = read[0].parameters.get("slo_class") if isinstance(read, tuple) else None
    headers = request.headers
    said = (own, headers.get("slo-class"), headers.get("x-slo-class"))
    name = next((str(name) for name in said if name is not None), None)
    return slo_headers.class_label(name, service.settings)


def _try_read(
    model: Model, raw: bytes, header_length: str | None
) -> tuple[InferBody, InferRequest] | BadInput:
    """Return what was sent, or what is wrong with it: a bad request is counted, too."""
    try:
        return _read(model, raw, header_length)
    except BadInput as exc:
        return exc


def _read(model: Model, raw: bytes, header_length: str | None) -> tuple[InferBody, InferRequest]:
    """Return a request's JSON part and what it asks. Raises: Malformed, InvalidField."""
    size = _json_size(raw, header_length)
    body = schemas.check(InferBody, schemas.read_json(raw[:size]))
    own_name, own_version = body.model_name or model.name, body.model_version or ""
    if own_name != model.name or own_version not in ("", oip.MODEL_VERSION):
        raise oip.UnknownModel(own_name, own_version, [model.name])
    inputs, at = [], size
    for tensor in body.inputs:
        binary = tensor.parameters.get(BINARY_SIZE)
        if binary is None:
            data = tensor.data or []
        else:
            data = oip_tensors.unpack_texts(tensor.name, _slice(raw, at, binary, tensor.name))
            at += binary
        inputs.append(oip_tensors.texts(tensor.name, tensor.datatype, tensor.shape, data))
    if at != len(raw):
        raise Malformed(f"body: {len(raw) - at} bytes belong to no tensor")
    wanted = [output.name for output in body.outputs]
    return body, oip.inference(model, inputs, wanted, body.parameters)


def _json_size(raw: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(raw)
    size = to_length(header_length)
    if size is None or size > len(raw):
        raise Malformed(
            f"Inference-Header-Content-Length: {header_length[:20]!r} is not in the body"
        )
    return size


def _slice(raw: bytes, at: int, size: object, name: str) -> bytes:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(raw) - at:
        raise Malformed(f"{name}: {BINARY_SIZE} is more than the body holds, or no whole number")
    return raw[at : at + size]


def _response(
    model: Model,
    body: InferBody,
    outputs: list[Tensor],
    headers: Mapping[str, str],
    explained: Mapping[str, str],
) -> Response:
    binary = {t.name: oip_tensors.pack(t) for t in outputs if body.wants_binary(t.name)}
    reply: dict[str, Any] = {
        "model_name": model.name,
        "model_version": oip.MODEL_VERSION,
        "outputs": [_output(t, binary.get(t.name)) for t in outputs],
    }
    if body.id:
        reply["id"] = body.id
    parameters = {name.replace("-", "_"): text for name, text in headers.items()} | dict(explained)
    if parameters:
        reply["parameters"] = parameters
    head = json.dumps(reply, ensure_ascii=False).encode()
    if not binary:
        return Response(head, media_type="application/json", headers=dict(headers))
    return Response(
        b"".join((head, *binary.values())),
        media_type="application/octet-stream",
        headers={**headers, HEADER_LENGTH: str(len(head))},
    )


def _output(tensor: Tensor, binary: bytes | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if binary is None:
        return body | {"data": list(tensor.data)}
    return body | {"parameters": {BINARY_SIZE: len(binary)}}
