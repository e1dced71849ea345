"""Tiny models that are real: ONNX, three inputs, a Triton folder; one answers questions, one classifies.

Their logits are a known function of ids and mask, so a test can say what must come back; they never
mix rows, so they are batch-invariant.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

MASKED = -1e4
# Rows of the matrix that a slow model multiplies by itself, again and again.
SLOW_SIZE = 128

CONFIG = """\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [
  {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }},
  {{ name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] }}
]
output [
  {outputs}
]
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
parameters {{ key: "sha256.{version}" value: {{ string_value: "{sha256}" }} }}
version_policy: {{ specific: {{ versions: [ {version} ] }} }}
dynamic_batching {{ }}
"""
SPANS = """{ name: "start_logits" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "end_logits" data_type: TYPE_FP32 dims: [ -1 ] }"""
LABELS = '{{ name: "logits" data_type: TYPE_FP32 dims: [ {n} ] }}'


def expected_logits(
    input_ids: npt.NDArray[np.int64],  # (W, S)
    attention_mask: npt.NDArray[np.int64],  # (W, S)
    token_type_ids: npt.NDArray[np.int64],  # (W, S)
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the start and end logits that every tiny model gives."""
    penalty = (1 - attention_mask).astype(np.float32) * np.float32(MASKED)
    start = input_ids.astype(np.float32) + penalty
    return start, start + token_type_ids.astype(np.float32)


def model_bytes(slow_rounds: int = 0, penalty: float = MASKED) -> bytes:
    """Return the ONNX file; `slow_rounds` matrix products are done first, for no use but time.

    `penalty`: added to the logits of padding; infinity makes all others NaN.
    """
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "mask"], ["masked"]),
        helper.make_node("Mul", ["masked", "penalty"], ["penalties"]),
        helper.make_node("Add", ["ids", "penalties"], ["fast"]),
        *_slow_nodes(slow_rounds),
        helper.make_node("Add", ["start_logits", "types"], ["end_logits"]),
    ]
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name in ("start_logits", "end_logits")
        ],
        [
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("penalty", TensorProto.FLOAT, [], [penalty]),
            *(_slow_constants(slow_rounds) if slow_rounds else []),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _slow_nodes(rounds: int) -> list[onnx.NodeProto]:
    """Return a loop whose result is nought; it starts from an input, so nothing folds it away."""
    if rounds == 0:
        return [helper.make_node("Identity", ["fast"], ["start_logits"])]
    matrix = helper.make_tensor_value_info("state", TensorProto.FLOAT, [SLOW_SIZE, SLOW_SIZE])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["state", "state"], ["next"]),
        ],
        "round",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            matrix,
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [SLOW_SIZE, SLOW_SIZE]),
        ],
    )
    return [
        helper.make_node("ReduceMax", ["ids"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "zero"], ["nought"]),
        helper.make_node("Expand", ["nought", "square"], ["first"]),
        helper.make_node("Loop", ["rounds", "true", "first"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["fast", "nothing"], ["start_logits"]),
    ]


def _slow_constants(rounds: int) -> list[onnx.TensorProto]:
    return [
        helper.make_tensor("rounds", TensorProto.INT64, [], [rounds]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("square", TensorProto.INT64, [2], [SLOW_SIZE, SLOW_SIZE]),
    ]


def write_model(
    repository: Path,
    name: str,
    *,
    version: int = 1,
    max_batch_size: int = 8,
    slow_rounds: int = 0,
    sha256: str | None = None,
    instances: int = 1,
    penalty: float = MASKED,
) -> str:
    """Write `<name>/config.pbtxt` and `<name>/<version>/model.onnx`; return the file's sha256.

    `sha256`: what config.pbtxt claims instead of the truth.
    """
    content = model_bytes(slow_rounds, penalty)
    return _write(
        repository,
        name,
        version,
        content,
        SPANS,
        max_batch_size=max_batch_size,
        instances=instances,
        sha256=sha256,
    )


def expected_label_logits(
    input_ids: npt.NDArray[np.int64],  # (W, S)
    tokens: Sequence[int],
    weight: float,
) -> npt.NDArray[np.float32]:  # (W, L)
    """Return the logits that a classifier of these tokens gives: the weight where a token is in the text."""
    found = (input_ids[:, :, None] == np.asarray(tokens)).any(axis=1)
    return np.where(found, np.float32(weight), np.float32(0))


def classifier_bytes(tokens: Sequence[int], weight: float) -> bytes:
    """Return the ONNX file of a classifier: each label has a token that speaks for it."""
    n = len(tokens)
    nodes = [
        helper.make_node("Unsqueeze", ["input_ids", "last"], ["ids"]),
        helper.make_node("Equal", ["ids", "tokens"], ["same"]),
        helper.make_node("Cast", ["same"], ["found"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask_ids"]),
        helper.make_node("Cast", ["mask_ids"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["found", "mask"], ["seen"]),
        helper.make_node("ReduceMax", ["seen"], ["held"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["held", "weight"], ["logits"]),
    ]
    shape = ["batch", "tokens"]
    graph = helper.make_graph(
        nodes,
        "tiny-classifier",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n])],
        [
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("tokens", TensorProto.INT64, [n], list(tokens)),
            helper.make_tensor("weight", TensorProto.FLOAT, [], [weight]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def write_classifier(
    repository: Path, name: str, tokens: Sequence[int], *, weight: float = 4.0
) -> str:
    """Write the folder of a classifier as `write_model` does; return the file's sha256."""
    content = classifier_bytes(tokens, weight)
    return _write(repository, name, 1, content, LABELS.format(n=len(tokens)))


def _write(
    repository: Path,
    name: str,
    version: int,
    content: bytes,
    outputs: str,
    *,
    max_batch_size: int = 8,
    instances: int = 1,
    sha256: str | None = None,
) -> str:
    truth = hashlib.sha256(content).hexdigest()
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (repository / name / "config.pbtxt").write_text(
        CONFIG.format(
            name=name,
            version=version,
            max_batch_size=max_batch_size,
            sha256=sha256 or truth,
            instances=instances,
            outputs=outputs,
        )
    )
    return truth


# A model that ends its own process when it meets a token.
CRASHING = """\
import os, signal
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        ids = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "input_ids"))
        if (ids == {token}).any():
            os.kill(os.getpid(), signal.SIGKILL)
        logits = ids.astype(np.float32)
        names = ("start_logits", "end_logits")
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(n, logits) for n in names])
"""


def write_crashing_model(repository: Path, name: str, token: int, *, instances: int) -> str:
    """Write a model whose process ends at one token; return the sha256 that its config.pbtxt claims."""
    sha256 = write_model(repository, name, max_batch_size=1, instances=instances)
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace("onnxruntime", "python"))
    (repository / name / "1" / "model.py").write_text(CRASHING.format(token=token))
    return sha256


def write_corrupt_model(repository: Path, name: str) -> None:
    """Write a model whose file is no ONNX at all, and whose config.pbtxt has its true sha256."""
    truth = write_model(repository, name)
    content = b"this is not a model"
    (repository / name / "1" / "model.onnx").write_bytes(content)
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace(truth, hashlib.sha256(content).hexdigest()))
