"""Open Inference Protocol v2 <-> our questions and answers, for both frontends: the model `qa`.

A stock Triton client may call the gateway as if it were Triton. Never asks a model server itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from gateway import slo
from gateway.domain import Answered, Question, SloRequest
from gateway.errors import BertierError, InvalidField, InvalidHeader, TooManyItems
from gateway.frontends import slo_headers
from gateway.frontends.oip_tensors import Tensor
from gateway.request.service import AnswerService

MODEL, MODEL_VERSION, PLATFORM = "qa", "1", "bertier"
SERVER = "bertier"
EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "statistics")
INPUTS = ("question", "context")
OUTPUTS: Mapping[str, tuple[str, Callable[[Answered], Any]]] = {
    "answer": ("BYTES", lambda a: a.answer.text),
    "score": ("FP32", lambda a: a.answer.score),
    "start": ("INT32", lambda a: -1 if a.answer.start is None else a.answer.start),
    "end": ("INT32", lambda a: -1 if a.answer.end is None else a.answer.end),
    "variant": ("BYTES", lambda a: a.variant),
}
TIMEOUT = "timeout"  # Triton's parameter: the request's time, us


class UnknownModel(InvalidField):
    def __init__(self, name: str, model_version: str) -> None:
        super().__init__(
            f"model {name[:80]!r} version {model_version[:20]!r} is not served;"
            f" served: {MODEL!r} version {MODEL_VERSION!r}"
        )


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One ModelInfer call, whatever it travelled over."""

    questions: tuple[Question, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, object]

    @property
    def slo_fields(self) -> dict[str, object]:
        """The parameters that say something of the SLO. Raises: InvalidHeader."""
        fields = slo_fields(self.parameters)
        for name, value in fields.items():
            if isinstance(value, bool) and name != "slo_explain":
                raise InvalidHeader(name, str(value).lower(), "text or a number")
        return fields

    @property
    def timeout_ms(self) -> float | None:
        """The parameter `timeout`, in ms. Raises: InvalidField."""
        timeout_us = self.parameters.get(TIMEOUT)
        if timeout_us is None:
            return None
        if not isinstance(timeout_us, int) or isinstance(timeout_us, bool) or timeout_us < 0:
            raise InvalidField("timeout: a whole number of microseconds is needed")
        return timeout_us / 1e3 or None


def slo_fields(parameters: Mapping[str, object]) -> dict[str, object]:
    mine = ("slo_", "priority")
    return {name: value for name, value in parameters.items() if name.startswith(mine)}


def server_metadata() -> dict[str, Any]:
    return {"name": SERVER, "version": version("bertier"), "extensions": list(EXTENSIONS)}


def model_metadata() -> dict[str, Any]:
    """Return the model's metadata, in the protocol's form; -1: any number of items."""
    datatypes = [(name, datatype) for name, (datatype, _) in OUTPUTS.items()]
    return {
        "name": MODEL,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in INPUTS],
        "outputs": [{"name": n, "datatype": datatype, "shape": [-1]} for n, datatype in datatypes],
    }


def check_model(name: str, model_version: str = "") -> None:
    """Raise UnknownModel unless it is the one model there is."""
    if name != MODEL or model_version not in ("", MODEL_VERSION):
        raise UnknownModel(name, model_version)


def inference(
    inputs: Iterable[Tensor], outputs: Iterable[str], parameters: Mapping[str, object]
) -> InferRequest:
    """Return what the tensors ask. Raises: InvalidField."""
    given = {tensor.name: tensor for tensor in inputs}
    if set(given) != set(INPUTS):
        raise InvalidField(f"inputs: got {sorted(given)[:8]}; send {list(INPUTS)}")
    questions, contexts = given["question"].data, given["context"].data
    if len(questions) != len(contexts):
        raise InvalidField(
            f"context: {len(contexts)} elements for {len(questions)} questions; send as many"
        )
    wanted = tuple(outputs) or tuple(OUTPUTS)
    unknown = [name for name in wanted if name not in OUTPUTS]
    if unknown:
        raise InvalidField(f"outputs: {unknown[0][:80]!r} is unknown; known: {', '.join(OUTPUTS)}")
    pairs = zip(questions, contexts, strict=True)
    return InferRequest(tuple(Question(str(q), str(c)) for q, c in pairs), wanted, parameters)


def slo_request(infer_request: InferRequest, lookup: slo.Lookup) -> SloRequest:
    """Return the SLO of each item: the parameters', else the headers'. Raises: InvalidHeader."""
    request = slo.parse(slo_headers.overlay(lookup, infer_request.slo_fields))
    ends = [t for t in (request.timeout_ms, infer_request.timeout_ms) if t is not None]
    return replace(request, timeout_ms=min(ends, default=None))


async def answer(
    service: AnswerService,
    infer_request: InferRequest,
    request: SloRequest,
    arrived_ms: float,
    *,
    frontend: str = "http",
) -> list[Answered]:
    """Answer every item, a few at once; the first failure ends the call and names its item.

    Raises: TooManyItems, and what AnswerService.answer does.
    """
    if len(infer_request.questions) > service.settings.max_infer_items:
        raise TooManyItems(
            "question", len(infer_request.questions), service.settings.max_infer_items
        )
    slots = asyncio.Semaphore(service.settings.max_concurrent_items)

    async def one(index: int, question: Question) -> Answered:
        async with slots:
            try:
                return await service.answer(question, request, arrived_ms, frontend=frontend)
            except BertierError as exc:
                if len(infer_request.questions) > 1:
                    exc.args = (f"item {index}: {exc}",)
                raise

    tasks = [asyncio.ensure_future(one(i, q)) for i, q in enumerate(infer_request.questions)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def output_tensors(infer_request: InferRequest, answers: Sequence[Answered]) -> list[Tensor]:
    """Return the tensors that were asked for, in that order."""
    return [
        Tensor(name, OUTPUTS[name][0], tuple(OUTPUTS[name][1](a) for a in answers))
        for name in infer_request.outputs
    ]


def slo_metadata(answers: Sequence[Answered]) -> dict[str, str]:
    """Return the SLO headers of a call of one item; of more, `variant` says what answered each."""
    return slo_headers.slo_headers(answers[0]) if len(answers) == 1 else {}
