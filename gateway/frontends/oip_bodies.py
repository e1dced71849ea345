"""The JSON bodies of the Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gateway.frontends import slo_headers


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InputBody(_Part):
    """An input tensor; without `data` its bytes follow the JSON, `binary_data_size` of them."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputBody(_Part):
    """A wanted output; `binary_data: true` sends it after the JSON."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferBody(_Part):
    """A request for inference."""

    id: str = Field("", max_length=slo_headers.MAX_ID_CHARS)
    model_name: str | None = None  # KServe's client repeats what stands in the path
    model_version: str | None = None
    inputs: list[InputBody]
    outputs: list[OutputBody] = Field(default_factory=list)
    parameters: dict[str, Any] = Field(default_factory=dict)

    def wants_binary(self, output: str) -> bool:
        default = self.parameters.get("binary_data_output", False)
        said = {o.name: o.parameters.get("binary_data", default) for o in self.outputs}
        return bool(said.get(output, default))


class OutputTensorBody(BaseModel):
    """An output tensor; without `data` its bytes follow the JSON, `binary_data_size` of them."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferReplyBody(BaseModel):
    """The answers, as tensors; of one question `parameters` hold the SLO headers."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensorBody]
    parameters: dict[str, str] | None = None
