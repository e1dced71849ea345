"""Open Inference Protocol v2 <-> our questions and answers, for both frontends: the model `qa`, and one a classification.

A stock Triton client may call the gateway as if it were Triton. Never asks a model server itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from gateway import slo
from gateway.catalog.schema import QA
from gateway.catalog.store import Task
from gateway.domain import Asked, Classified, Question, Served, SloRequest, Texts
from gateway.errors import (
    BackendUnavailable,
    BertierError,
    InvalidField,
    InvalidHeader,
    TooManyItems,
)
from gateway.frontends import slo_headers
from gateway.frontends.oip_tensors import Tensor
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet

MODEL_VERSION, PLATFORM = "1", "bertier"
SERVER = "bertier"
EXTENSIONS = ("binary_tensor_data", "parameters", "model_configuration", "statistics")
TIMEOUT = "timeout"  # Triton's parameter: the request's time, us


@dataclass(frozen=True, slots=True)
class Output:
    """An output tensor: its type, and what it holds of an answer."""

    datatype: str
    of: Callable[[Served[Any]], Any]
    width: int | None = None  # of a row, which `of` returns; None: one value an item


@dataclass(frozen=True, slots=True)
class Model:
    """A task as a model of the protocol; all inputs are texts."""

    name: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, Output]
    asked: Callable[..., Asked[Any]]  # of the inputs of one item, in their order
    labels: tuple[str, ...] = ()  # of a classification, in the order of `probabilities`


QUESTION_ANSWERING = Model(
    QA,
    ("question", "context"),
    {
        "answer": Output("BYTES", lambda a: a.answer.text),
        "score": Output("FP32", lambda a: a.answer.score),
        "start": Output("INT32", lambda a: -1 if a.answer.start is None else a.answer.start),
        "end": Output("INT32", lambda a: -1 if a.answer.end is None else a.answer.end),
        "variant": Output("BYTES", lambda a: a.variant),
    },
    Question,
)


def _classification(task: Task) -> Model:
    def probabilities(classified: Classified) -> list[float]:
        found = dict(classified.answer.scores)
        return [found[label] for label in task.labels]

    outputs = {
        "label": Output("BYTES", lambda c: c.answer.label),
        "score": Output("FP32", lambda c: c.answer.score),
        "probabilities": Output("FP32", probabilities, len(task.labels)),
        "variant": Output("BYTES", lambda c: c.variant),
    }
    inputs = ("text", "text_pair") if task.pair else ("text",)
    return Model(task.name, inputs, outputs, partial(Texts, task=task.name), task.labels)


def models_of(serving: ServingSet | None) -> dict[str, Model]:
    """Return the models by name; while nothing is loaded yet, `qa`."""
    if serving is None:
        return {QA: QUESTION_ANSWERING}
    found = [QUESTION_ANSWERING] if QA in serving.catalog.task_names else []
    found += [_classification(task) for task in serving.catalog.tasks]
    return {model.name: model for model in found}


class UnknownModel(InvalidField):
    def __init__(self, name: str, model_version: str, served: Iterable[str]) -> None:
        names = ", ".join(f"{each!r}" for each in served)
        super().__init__(
            f"model {name[:80]!r} version {model_version[:20]!r} is not served;"
            f" served: {names} version {MODEL_VERSION!r}"
        )


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One ModelInfer call, whatever it travelled over."""

    model: Model
    asked: tuple[Asked[Any], ...]
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


def model_metadata(model: Model) -> dict[str, Any]:
    """Return the model's metadata, in the protocol's form; -1: any number of items."""
    return {
        "name": model.name,
        "versions": [MODEL_VERSION],
        "platform": PLATFORM,
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in model.inputs],
        "outputs": [
            {"name": name, "datatype": output.datatype, "shape": shape_of(output)}
            for name, output in model.outputs.items()
        ],
    }


def shape_of(output: Output) -> list[int]:
    """Return the shape of an output tensor; -1: any number of items."""
    return [-1] if output.width is None else [-1, output.width]


def find_model(service: AnswerService, name: str, model_version: str = "") -> Model:
    """Return a model that is served. Raises: UnknownModel; BackendUnavailable, while nothing is loaded."""
    models = models_of(service.serving)
    if service.serving is None and name not in models:
        raise BackendUnavailable("no catalog is loaded yet; see /readyz")
    if name not in models or model_version not in ("", MODEL_VERSION):
        raise UnknownModel(name, model_version, models)
    return models[name]


def inference(
    model: Model,
    inputs: Iterable[Tensor],
    outputs: Iterable[str],
    parameters: Mapping[str, object],
) -> InferRequest:
    """Return what the tensors ask. Raises: InvalidField."""
    given = {tensor.name: tensor for tensor in inputs}
    if set(given) != set(model.inputs):
        raise InvalidField(f"inputs: got {sorted(given)[:8]}; send {list(model.inputs)}")
    first, *others = (given[name] for name in model.inputs)
    for other in others:
        if len(other.data) != len(first.data):
            raise InvalidField(
                f"{other.name}: {len(other.data)} elements, {first.name} has {len(first.data)};"
                " send as many"
            )
    wanted = tuple(outputs) or tuple(model.outputs)
    unknown = [name for name in wanted if name not in model.outputs]
    if unknown:
        known = ", ".join(model.outputs)
        raise InvalidField(f"outputs: {unknown[0][:80]!r} is unknown; known: {known}")
    items = zip(*(map(str, given[name].data) for name in model.inputs), strict=True)
    return InferRequest(model, tuple(model.asked(*item) for item in items), wanted, parameters)


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
) -> list[Served[Any]]:
    """Answer every item, a few at once; the first failure ends the call and names its item.

    Raises: TooManyItems, and what AnswerService.answer does.
    """
    n_items, limit = len(infer_request.asked), service.settings.max_infer_items
    if n_items > limit:
        raise TooManyItems(infer_request.model.inputs[0], n_items, limit)
    slots = asyncio.Semaphore(service.settings.max_concurrent_items)

    async def one(index: int, question: Asked[Any]) -> Served[Any]:
        async with slots:
            try:
                return await service.answer(question, request, arrived_ms, frontend=frontend)
            except BertierError as exc:
                if n_items > 1:
                    exc.args = (f"item {index}: {exc}",)
                raise

    tasks = [asyncio.ensure_future(one(i, q)) for i, q in enumerate(infer_request.asked)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def output_tensors(infer_request: InferRequest, answers: Sequence[Served[Any]]) -> list[Tensor]:
    """Return the tensors that were asked for, in that order."""
    wanted = [(name, infer_request.model.outputs[name]) for name in infer_request.outputs]
    return [_tensor(name, output, answers) for name, output in wanted]


def _tensor(name: str, output: Output, answers: Sequence[Served[Any]]) -> Tensor:
    values = [output.of(answered) for answered in answers]
    if output.width is not None:
        values = [value for row in values for value in row]
    return Tensor(name, output.datatype, tuple(values), output.width)


def slo_metadata(answers: Sequence[Served[Any]]) -> dict[str, str]:
    """Return the SLO headers of a call of one item; of more, `variant` says what answered each."""
    return slo_headers.slo_headers(answers[0]) if len(answers) == 1 else {}
