"""A model's configuration with another number of instances, as Triton takes it when a model is loaded."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from gateway.errors import BackendUnavailable

FILE = "config.pbtxt"


def with_instances(folder: Path, instances: int) -> str | None:
    """Return the configuration in a model's folder as JSON; None: it has so many instances itself.

    Raises: BackendUnavailable.
    """
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse((folder / FILE).read_text("utf-8"), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as exc:
        raise BackendUnavailable(f"{folder / FILE}: cannot be read: {exc}") from exc
    if [group.count for group in config.instance_group] == [instances]:
        return None
    del config.instance_group[1:]
    for group in config.instance_group or [config.instance_group.add()]:
        group.count = instances
    return str(json_format.MessageToJson(config, preserving_proto_field_name=True))
