"""A variant of a study as the served file: export, evaluation and profile, each a stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from gateway.backends.embedded import open_session
from gateway.catalog.schema import Precision, Profile
from gateway.catalog.store import sha256_of
from optimizer.data.items import Item
from optimizer.evaluation import cached
from optimizer.models import readback, student
from optimizer.onnx import export
from optimizer.onnx import profile as profiling
from optimizer.students.study import Study
from optimizer.study import stages

_PROFILE = TypeAdapter(Profile)


@dataclass(frozen=True)
class Exported:
    """One variant of a study, trained or about to be exported."""

    study: Study
    name: str

    @property
    def folder(self) -> Path:
        return self.study.folder / "variants" / self.name

    @property
    def file(self) -> Path:
        """The ONNX file that is served."""
        return self.folder / "export" / "model.onnx"

    @property
    def precision(self) -> Precision:
        return self.study.precision(self.name)

    def export(self) -> dict[str, Any]:
        """Export and quantize the trained variant, with every export check.

        A largest model that was read back from a published variant is that file, and stays it.
        """
        inputs = self.study.inputs_of(self.name)
        if self.precision is not Precision.INT8_DYNAMIC:
            inputs["precision"] = self.precision
        published = self._published()
        if published is not None:
            inputs["published"] = sha256_of(published)
        folder = self.folder / "export"
        return stages.run_stage(folder, inputs, lambda: self._export(published))

    def _published(self) -> Path | None:
        """Return the file that the largest model was read back from, if this is that model."""
        largest = self.study.config.finished
        if largest is None or self.study.student(self.name) is not None:
            return None
        return readback.model_of(student.resolve(largest))

    def _export(self, published: Path | None) -> dict[str, Any]:
        model, fp32 = self.study.model(self.name), self.file.with_name("model.fp32.onnx")
        export.to_onnx(model, fp32)
        if published is None:
            export.TO[self.precision](model, self.file, self.study.distillation.probe)
        else:
            shutil.copyfile(published, self.file)
        return {
            "sha256": sha256_of(self.file),
            "size_bytes": self.file.stat().st_size,
            "parameters": student.parameters_of(model),
            "batch_variance": export.batch_variance(
                partial(open_session(self.file, precision=self.precision).run, None),
                model.config.vocab_size,
            ),
            "operators": dict(export.operators_run(self.file)),
        }

    def readings(self, part: str, examples: Sequence[Item]) -> list[Any]:
        """Return the variant's readings of these questions; `part` is the name of the question set."""
        return self.timed_readings(part, examples)[0]

    def timed_readings(self, part: str, examples: Sequence[Item]) -> tuple[list[Any], list[float]]:
        """Return the readings with the CPU ms of each question; empty if it was not recorded."""
        sha256 = self.export()["sha256"]
        model = cached.Model(self.file, sha256, self.study.tokenizer, self.precision)
        return cached.readings(model, self.folder, part, examples)

    def profile(self) -> Profile:
        """Measure the variant's latency on this host, once."""
        exported, runs = self.export(), self.study.config.publish.profile_runs

        def work() -> dict[str, Any]:
            found = profiling.profile(self.file, runs, precision=self.precision)
            return {"profile": _PROFILE.dump_python(found, mode="json")}

        inputs = {"model": exported["sha256"], "host": asdict(profiling.here()), "runs": runs}
        results = stages.run_stage(self.folder / "profile", inputs, work)
        return _PROFILE.validate_python(results["profile"], strict=False)
