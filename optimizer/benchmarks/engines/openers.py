"""The engines that can run a checkpoint on a CPU, opened alike: ids in, logits out, one thread.

ONNX Runtime reads the graphs of `optimizer.onnx.graph`. OpenVINO gets its own from PyTorch: of ours its
products see one row at a time, because tokens are the first axis there (docs/decisions, 0006).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from transformers import PreTrainedModel

from gateway.backends.embedded import INPUTS, open_session
from gateway.backends.protocol import SPAN_OUTPUTS
from gateway.catalog.schema import Precision
from gateway.domain import Floats
from gateway.errors import BertierError
from optimizer.benchmarks.engines import static_int8
from optimizer.models.weights import Array
from optimizer.onnx import export

EXTRA = "pip install 'bertier[openvino]'"

Feed = Mapping[str, Array]  # by input: (B, S) int64
Ask = Callable[[Feed], tuple[Floats, Floats]]  # -> start and end logits, (B, S) each


class Unavailable(BertierError):
    """An engine that cannot run here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class EngineInput:
    """What an engine is opened with."""

    model: PreTrainedModel
    folder: Path  # of the files that engines make; one that is there is not made again
    calibration: Sequence[Feed]  # windows alone, padded as served


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine ready to be asked."""

    ask: Ask
    size_bytes: int  # of its files


@dataclass(frozen=True, slots=True)
class Engine:
    name: str
    opener: Callable[[EngineInput], Opened]
    packages: tuple[str, ...] = ()

    def open(self, job: EngineInput) -> Opened:
        """Raises: Unavailable when a package, or something in the processor, is missing."""
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise Unavailable(f"{', '.join(missing)} not installed: {EXTRA}")
        return self.opener(job)


def _onnxruntime(precision: Precision) -> Callable[[EngineInput], Opened]:
    def opener(job: EngineInput) -> Opened:
        path = job.folder / f"onnxruntime-{precision}.onnx"
        if not path.exists():
            export.write(job.model, path, precision)
        return _session(path)

    return opener


def _static_onnxruntime(job: EngineInput) -> Opened:
    path = job.folder / "onnxruntime-int8-static.onnx"
    if not path.exists():
        plain = path.with_name("onnxruntime-plain.onnx")
        export.write(job.model, plain, Precision.FP32)
        onnx.save(static_int8.build(onnx.load(plain), job.calibration), path)
        plain.unlink()
    return _session(path)


def _session(path: Path) -> Opened:
    session = open_session(path)
    return Opened(lambda feed: session.run(SPAN_OUTPUTS, dict(feed)), path.stat().st_size)


def _openvino(precision: str, *, fixed: bool = True) -> Callable[[EngineInput], Opened]:
    """Return what opens OpenVINO: `fixed` compiles the model anew for each shape that is asked."""

    def opener(job: EngineInput) -> Opened:
        import openvino

        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise Unavailable("this processor has no bf16")
        path = job.folder / f"openvino-{'int8' if precision == 'int8' else 'fp32'}.xml"
        if not path.exists():
            _write_openvino(job, path)
        size_bytes = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        return Opened(_Compiled(core, path, precision, fixed=fixed), size_bytes)

    return opener


class _Compiled:
    """An OpenVINO model, compiled when a shape is first asked."""

    def __init__(self, core: Any, path: Path, precision: str, *, fixed: bool) -> None:
        self._core, self._path, self._fixed = core, path, fixed
        self._options = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, feed: Feed) -> tuple[Floats, Floats]:
        shape = feed[INPUTS[0]].shape if self._fixed else ()
        if shape not in self._requests:
            model = self._core.read_model(self._path)
            if self._fixed:
                model.reshape({name: list(shape) for name in INPUTS})
            compiled = self._core.compile_model(model, "CPU", self._options)
            self._requests[shape] = compiled.create_infer_request()
        found = self._requests[shape].infer(dict(feed), share_inputs=True)
        return found[0], found[1]


def _write_openvino(job: EngineInput, path: Path) -> None:
    """Trace the model; for INT8 quantize it as a transformer: SmoothQuant, then bias correction.

    Source: Xiao et al. 2023 (arXiv 2211.10438), and NNCF's documentation of `nncf.quantize`.
    """
    import openvino

    if path.stem == "openvino-int8":
        import nncf

        plain = path.with_name("openvino-fp32.xml")
        if not plain.exists():
            _write_openvino(job, plain)
        model = nncf.quantize(
            openvino.Core().read_model(plain),
            nncf.Dataset(job.calibration),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(job.calibration),
        )
    else:
        model = _traced(job.model)
    openvino.save_model(model, path, compress_to_fp16=False)


def _traced(model: PreTrainedModel) -> Any:
    import openvino

    example = {name: torch.ones((2, 16), dtype=torch.long) for name in INPUTS}
    shapes = [(name, [-1, -1], openvino.Type.i64) for name in INPUTS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and of transformers' own deprecations
        return openvino.convert_model(_Logits(model).eval(), example_input=example, input=shapes)


class _Logits(nn.Module):
    """A model with the inputs and outputs of a served one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return found.start_logits, found.end_logits


SHIPPED = "onnxruntime int8-dynamic"
ENGINES = (
    Engine("onnxruntime fp32", _onnxruntime(Precision.FP32)),
    Engine(SHIPPED, _onnxruntime(Precision.INT8_DYNAMIC)),
    Engine("onnxruntime int8-static", _static_onnxruntime),
    Engine("openvino fp32", _openvino("fp32"), ("openvino",)),
    Engine("openvino bf16", _openvino("bf16"), ("openvino",)),
    Engine("openvino int8", _openvino("int8"), ("openvino", "nncf")),
    Engine("openvino int8 any length", _openvino("int8", fixed=False), ("openvino", "nncf")),
)
