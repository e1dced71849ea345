"""Which stock Triton image the model repository needs, as deploy/triton/image.toml says it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from tests.fakes import ROOT


@dataclass(frozen=True, slots=True)
class ModelServer:
    """A stock image and what the ONNX Runtime in it understands."""

    image: str
    onnxruntime: str
    max_ir_version: int
    max_opset: int
    contrib_operators: tuple[str, ...]


def _read() -> ModelServer:
    versions = tomllib.loads((ROOT / "deploy" / "triton" / "image.toml").read_text())
    return ModelServer(**versions | {"contrib_operators": tuple(versions["contrib_operators"])})


MODEL_SERVER = _read()
