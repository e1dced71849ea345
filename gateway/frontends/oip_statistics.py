"""What Triton calls a model's configuration and statistics: read off the metrics, never kept apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gateway.frontends import oip
from gateway.frontends.oip import Model
from gateway.observability.metrics import Metrics

DATA_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32"}
# Triton's parts of a request, and the stages that they are here.
PARTS: Mapping[str, tuple[str, ...]] = {
    "queue": ("queue",),
    "compute_input": ("tokenize", "route"),
    "compute_infer": ("infer",),
    "compute_output": ("decode",),
}


def model_config(model: Model) -> dict[str, Any]:
    """Return the model's configuration in Triton's words: no batch dimension, any number of items.

    A classification has the parameter `labels`: its labels as JSON, in the order of `probabilities`.
    """
    labels = {"labels": {"string_value": json.dumps(model.labels)}}
    return {
        "name": model.name,
        "platform": oip.PLATFORM,
        "backend": oip.PLATFORM,
        "max_batch_size": 0,
        "input": [_tensor(name, "BYTES", [-1]) for name in model.inputs],
        "output": [
            _tensor(name, output.datatype, oip.shape_of(output))
            for name, output in model.outputs.items()
        ],
        **({"parameters": labels} if model.labels else {}),
    }


def model_statistics(name: str, metrics: Metrics) -> dict[str, Any]:
    """Return the counts and times (ns) since the start, over all protocols and models.

    The times of stages do not tell the tasks apart. Each question of a batch counts on its own. `fail` has no time:
    failures are not timed separately.
    """
    answered, failed = _outcomes(metrics)
    stages = _stages_ns(metrics)
    parts = {part: sum(stages.get(name, 0) for name in names) for part, names in PARTS.items()}
    success = {"count": answered, "ns": sum(parts.values())}
    shown = {part: {"count": answered, "ns": ns} for part, ns in parts.items()}
    return {
        "name": name,
        "version": oip.MODEL_VERSION,
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": {"success": success, "fail": {"count": failed, "ns": 0}, **shown},
    }


def _tensor(name: str, datatype: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": DATA_TYPES[datatype], "dims": dims}


def _outcomes(metrics: Metrics) -> tuple[int, int]:
    """Return how many questions were answered, and how many requests failed."""
    answered = failed = 0
    for sample in _samples(metrics.stage, "_count"):
        answered = max(answered, int(sample.value))
    for sample in _samples(metrics.requests, "_total"):
        failed += 0 if sample.labels["outcome"] == "ok" else int(sample.value)
    return answered, failed


def _stages_ns(metrics: Metrics) -> dict[str, int]:
    samples = _samples(metrics.stage, "_sum")
    return {sample.labels["stage"]: round(sample.value * 1e9) for sample in samples}


def _samples(metric: Any, ending: str) -> list[Any]:
    return [s for family in metric.collect() for s in family.samples if s.name.endswith(ending)]
