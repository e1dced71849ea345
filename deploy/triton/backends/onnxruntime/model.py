"""Triton's `onnxruntime` backend, written in Python: serves `<version>/model.onnx` with ONNX Runtime.

It reads what the stock C++ backend reads (the model file's name, `intra_op_thread_count`,
`inter_op_thread_count`, `execution_mode`, `enable_mem_arena`, `enable_mem_pattern`,
`optimization { graph { level } }`, the instance's kind and device), so one config.pbtxt serves both.
Beyond it: a model file whose sha256 is not the parameter `sha256.<version>` is refused.

It runs inside a stub process of tritonserver and depends on nothing of this project.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import select
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

MODEL_FILE = "model.onnx"
# The C++ backend's numbers (README of triton-inference-server/onnxruntime_backend).
GRAPH_LEVELS = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "0": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {
    "0": ort.ExecutionMode.ORT_SEQUENTIAL,
    "1": ort.ExecutionMode.ORT_PARALLEL,
}
SWITCH = {"0": False, "1": True}

Arrays = dict[str, np.ndarray]


class TritonPythonModel:
    """One instance of one version of one model; the name is Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load exactly the version Triton asks for, or refuse with a reason."""
        _die_with(os.getppid())
        config = json.loads(args["model_config"])
        _check_types(config)
        version = args["model_version"]
        file_name = config.get("default_model_filename") or MODEL_FILE
        path = Path(args["model_repository"]) / version / file_name
        expected = _parameters(config).get(f"sha256.{version}")
        self._session = _open_session(
            path,
            _read_model(path, expected),
            _session_options(config),
            _providers(args["model_instance_kind"], args["model_instance_device_id"]),
        )
        self._inputs = [i["name"] for i in config["input"]]
        self._outputs = [o["name"] for o in config["output"]]
        self._batches = int(config.get("max_batch_size", 0)) > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests of equal shapes with one run of the model."""
        if len(requests) > 1 and self._batches:
            # One bad request must not fail its batch-mates: then each is run alone.
            with contextlib.suppress(Exception):
                return self._execute_together(requests)
        return [self._execute_alone(request) for request in requests]

    def _execute_together(self, requests: Sequence[Any]) -> list[Any]:
        parts = [self._feed(request) for request in requests]
        ends = np.cumsum([len(part[self._inputs[0]]) for part in parts])[:-1]
        feed = {name: np.concatenate([part[name] for part in parts]) for name in self._inputs}
        split = [np.split(values, ends) for values in self._session.run(self._outputs, feed)]
        return [self._response(values) for values in zip(*split, strict=True)]

    def _execute_alone(self, request: Any) -> Any:
        try:
            return self._response(self._session.run(self._outputs, self._feed(request)))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this request's answer
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(exc)))

    def _feed(self, request: Any) -> Arrays:
        return {
            name: np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))
            for name in self._inputs
        }

    def _response(self, values: Sequence[np.ndarray]) -> Any:
        pairs = zip(self._outputs, values, strict=True)
        return pb_utils.InferenceResponse([_tensor(name, value) for name, value in pairs])


# Arrays pass between the stub and NumPy through DLPack, never through `as_numpy()` and
# `pb_utils.Tensor(name, array)`: the stub of Triton 24.10 was compiled against NumPy 1 and reads an
# item size of 0 from NumPy 2, which repeats the first number of an input and empties an output.


def _tensor(name: str, values: np.ndarray) -> Any:
    capsule = values.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The stub marks the capsule as consumed with a word of its own; NumPy would print an error.
    _set_capsule_name(capsule, b"used_dltensor")
    return tensor


_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _check_types(config: Mapping[str, Any]) -> None:
    for tensor in (*config["input"], *config["output"]):
        if tensor["data_type"] == "TYPE_STRING":
            raise pb_utils.TritonModelException(
                f"config.pbtxt: {tensor['name']}: this backend has no strings; use the stock image"
            )


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def _read_model(path: Path, expected_sha256: str | None) -> bytes:
    try:
        model = path.read_bytes()
    except OSError as exc:
        raise _refusal(path, f"{exc.strerror}; publish the model again") from exc
    found = hashlib.sha256(model).hexdigest()
    if expected_sha256 and found != expected_sha256:
        raise _refusal(
            path,
            f"sha256 is {found[:12]}..., config.pbtxt says {expected_sha256[:12]}...;"
            " the file was changed after it was published: publish it again",
        )
    return model


def _open_session(
    path: Path, model: bytes, options: ort.SessionOptions, providers: list[Any]
) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=providers)
    except Exception as exc:
        raise _refusal(path, f"ONNX Runtime {ort.__version__} cannot load it: {exc}") from exc


def _session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    parameters = _parameters(config)
    options = ort.SessionOptions()
    for key, apply in _OPTIONS.items():
        if key in parameters:
            _apply(options, key, parameters[key], apply)
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    _apply(options, "optimization.graph.level", str(level), _set_graph_level)
    return options


def _set_graph_level(options: ort.SessionOptions, value: str) -> None:
    options.graph_optimization_level = GRAPH_LEVELS[value]


def _set_intra(options: ort.SessionOptions, value: str) -> None:
    options.intra_op_num_threads = int(value)


def _set_inter(options: ort.SessionOptions, value: str) -> None:
    options.inter_op_num_threads = int(value)


def _set_execution_mode(options: ort.SessionOptions, value: str) -> None:
    options.execution_mode = EXECUTION_MODES[value]


def _set_mem_arena(options: ort.SessionOptions, value: str) -> None:
    options.enable_cpu_mem_arena = SWITCH[value]


def _set_mem_pattern(options: ort.SessionOptions, value: str) -> None:
    options.enable_mem_pattern = SWITCH[value]


_OPTIONS: dict[str, Callable[[ort.SessionOptions, str], None]] = {
    "intra_op_thread_count": _set_intra,
    "inter_op_thread_count": _set_inter,
    "execution_mode": _set_execution_mode,
    "enable_mem_arena": _set_mem_arena,
    "enable_mem_pattern": _set_mem_pattern,
}


def _apply(
    options: ort.SessionOptions,
    key: str,
    value: str,
    apply: Callable[[ort.SessionOptions, str], None],
) -> None:
    try:
        apply(options, value)
    except (KeyError, ValueError) as exc:
        raise pb_utils.TritonModelException(
            f"config.pbtxt: {key}: {value!r} is not a value this backend knows"
        ) from exc


def _providers(kind: str, device_id: str) -> list[Any]:
    if kind != "GPU":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise pb_utils.TritonModelException(
            "config.pbtxt: the instance is KIND_GPU, but this ONNX Runtime has no CUDA;"
            " install onnxruntime-gpu, or use KIND_CPU"
        )
    return [("CUDAExecutionProvider", {"device_id": device_id}), "CPUExecutionProvider"]


def _refusal(path: Path, reason: str) -> Exception:
    return pb_utils.TritonModelException(f"{path}: {reason}")  # type: ignore[no-any-return]


def _die_with(parent: int) -> None:
    """End this stub process as soon as its tritonserver is gone, however that ended.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started us ends, and Triton starts
    instances from short-lived threads.
    """
    descriptor = os.pidfd_open(parent)
    threading.Thread(target=_wait_and_die, args=(descriptor,), daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _wait_and_die(descriptor: int) -> None:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    waiting.poll()
    os.kill(os.getpid(), signal.SIGKILL)
