"""Cached evaluations: the readings of a model file on questions or texts, run once as it is served.

Legend: n questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from gateway.catalog.schema import Precision
from gateway.qa.codec import Reading
from optimizer.data import evaluate
from optimizer.data.items import Item, LabelReading
from optimizer.onnx import profile
from optimizer.study import stages

# A reading without any span has an infinite difference.
_READINGS: TypeAdapter[list[Any]] = TypeAdapter(
    list[Reading] | list[LabelReading], config=ConfigDict(ser_json_inf_nan="constants")
)
_TIMES = TypeAdapter(list[float])


@dataclass(frozen=True, slots=True)
class Model:
    """A model file, with its tokenizer and precision."""

    file: Path
    sha256: str
    tokenizer: Path
    precision: Precision


def readings(
    model: Model, folder: Path, part: str, examples: Sequence[Item]
) -> tuple[list[Any], list[float]]:
    """Return what the logits say to these questions or texts, and the CPU time of each, ms; kept in `folder`.

    `part` names the questions. No times are known of readings that an earlier version kept.
    """
    stage = folder / f"readings-{part}"
    stored, times = stage / "readings.json", stage / "cpu_ms.json"

    def work() -> dict[str, Any]:
        found, cpu_ms = evaluate.read_timed(model.file, model.tokenizer, examples, model.precision)
        stored.write_bytes(_READINGS.dump_json(found))
        times.write_bytes(_TIMES.dump_json(cpu_ms))
        return {"questions": len(found)}

    inputs = {
        "model": model.sha256,
        "questions": [e.id for e in examples],
        "host": asdict(profile.here()),
    }
    stages.run_stage(stage, inputs, work)
    cpu_ms = _TIMES.validate_json(times.read_bytes()) if times.exists() else []
    return _READINGS.validate_json(stored.read_bytes()), cpu_ms
