"""The fp32 teacher as a point of reference: what it scores and takes, beside all that was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter

from gateway.catalog import store
from gateway.catalog.schema import Decoding, Precision, Profile, Quality
from gateway.catalog.store import Catalog, sha256_of
from gateway.qa.codec import Reading
from optimizer.benchmarks import latency, pairs, results
from optimizer.benchmarks.results import REFERENCE, Headline, Pair, ReferenceComparison, Timing
from optimizer.certify import certification, strata
from optimizer.certify.certification import Evidence, QuestionSet
from optimizer.data import evaluate
from optimizer.data.question_sets import Example, Split
from optimizer.evaluation import decoding
from optimizer.models import student
from optimizer.onnx import export
from optimizer.onnx import profile as profiling
from optimizer.publish import publication
from optimizer.students.exported import Exported
from optimizer.students.study import Study
from optimizer.study import provenance, stages, workers

FP32: Final = "fp32 teacher"
MODEL = "model.onnx"
ROUNDS = 60
_READINGS = TypeAdapter(list[Reading], config=ConfigDict(ser_json_inf_nan="constants"))
_PROFILE = TypeAdapter(Profile)


def run(study: Study, repository: Path, rounds: int = ROUNDS) -> ReferenceComparison:
    """Read and profile the fp32 teacher, time it among the published. Raises: BertierError."""
    catalog = store.read(repository)
    teacher = study.config.largest_name
    with workers.working():
        model = _exported(study)
        evidence = certification.evidence_of(study)
        how = _decoding(study, model)
        quality = _quality(study, model, evidence, how)
        profile = _profile(study, model)
        int8 = [_int8(study, model, questions, how) for questions in evidence.reports]
        files = {v.name: store.model_path(repository, v) for v in catalog.variants}
        timings = latency.interleaved({FP32: model, **files}, rounds)
    size_bytes = model.stat().st_size
    found = ReferenceComparison(
        teacher=teacher,
        size_bytes=size_bytes,
        quality=quality,
        profile=profile,
        rounds=rounds,
        timings=timings,
        headlines=headlines(catalog, quality, size_bytes, timings),
        int8=tuple(int8),
        ran_on=provenance.ran_on(),
    )
    results.write(found, study.folder / REFERENCE)
    return found


def _exported(study: Study) -> Path:
    """Return the reference as one fp32 file, its word embeddings too: 8 bits are part of publishing it."""
    source = study.config.reference or str(study.largest.folder)
    folder = _folder(study) / "export"

    def work() -> dict[str, Any]:
        export.to_onnx(student.load(source, answers=True), folder / MODEL)
        return {"size_bytes": (folder / MODEL).stat().st_size}

    named = {"reference": study.config.reference} if study.config.reference else {}
    stages.run_stage(folder, {"teacher": study.largest.inputs()} | named, work)
    return folder / MODEL


def _readings(study: Study, model: Path, part: str, examples: Sequence[Example]) -> list[Reading]:
    """Return what the fp32 teacher's logits say to these questions, each asked once."""
    folder = _folder(study) / f"readings-{part}"
    stored = folder / "readings.json"

    def work() -> dict[str, Any]:
        found = evaluate.read_all(model, study.tokenizer, examples, Precision.FP32)
        stored.write_bytes(_READINGS.dump_json(found))
        return {"questions": len(found)}

    stages.run_stage(folder, _inputs(model) | {"questions": [e.id for e in examples]}, work)
    return _READINGS.validate_json(stored.read_bytes())


def _folder(study: Study) -> Path:
    return study.folder / REFERENCE.with_suffix("")


def _inputs(model: Path) -> dict[str, Any]:
    return {"model": sha256_of(model), "host": asdict(profiling.here())}


def _profile(study: Study, model: Path) -> Profile:
    def work() -> dict[str, Any]:
        return {"profile": _PROFILE.dump_python(profiling.profile(model), mode="json")}

    found = stages.run_stage(_folder(study) / "profile", _inputs(model), work)
    return _PROFILE.validate_python(found["profile"], strict=False)


def _decoding(study: Study, model: Path) -> Decoding:
    examples = study.questions.certifying(Split.SEARCH)
    return decoding.fit(examples, _readings(study, model, "search", examples))


def _quality(study: Study, model: Path, evidence: Evidence, how: Decoding) -> tuple[Quality, ...]:
    """Return scores on the questions of which the catalog tells the published variants'."""
    found = []
    for questions in (evidence.calibrate, *evidence.reports):
        readings = _readings(study, model, questions.name, questions.examples)
        made = strata.makes_floors(questions.examples)
        asked = [
            (e, r)
            for e, r, keep in zip(questions.examples, readings, made, strict=True)
            if keep or questions is not evidence.calibrate
        ]
        examples, said = [e for e, _ in asked], [r for _, r in asked]
        found.append(evaluate.quality(questions.name, questions.sha256, examples, said, how))
    return tuple(found)


def _int8(study: Study, model: Path, questions: QuestionSet, how: Decoding) -> Pair:
    """Return the teacher as it is published beside fp32, each with its own threshold."""
    teacher, examples = study.config.largest_name, questions.examples
    readings = (
        Exported(study, teacher).readings(questions.name, examples),
        _readings(study, model, questions.name, examples),
    )
    hows = (publication.decoding_of(study, teacher), how)
    answers = [evaluate.answers_of(r, h) for r, h in zip(readings, hows, strict=True)]
    names = (teacher, FP32)
    return pairs.pair(names, questions.name, examples, (answers[0], answers[1]), readings)


def headlines(
    catalog: Catalog, teacher: Sequence[Quality], size_bytes: int, timings: Sequence[Timing]
) -> tuple[Headline, ...]:
    """Return how many times faster and smaller each variant is, with which share of forced F1.

    Scored on the last data set that both were asked: the test data where there is any.
    """
    by_model = {
        name: [t for t in timings if t.model == name] for name in {t.model for t in timings}
    }
    of_teacher = {t.tokens: t for t in by_model[FP32]}
    found = []
    for variant in catalog.variants:
        scored = {q.data: q for q in variant.quality}
        same = [q for q in teacher if q.data in scored and scored[q.data].n == q.n]
        data = same[-1].data if same else ""
        forced = scored[data].forced_f1 if same else None
        wanted = same[-1].forced_f1 if same else None
        mine = by_model[variant.name]
        found.append(
            Headline(
                variant=variant.name,
                size_bytes=variant.size_bytes,
                times_smaller=size_bytes / variant.size_bytes,
                times_faster={t.tokens: of_teacher[t.tokens].min_ms / t.min_ms for t in mine},
                times_faster_median={
                    t.tokens: of_teacher[t.tokens].median_ms / t.median_ms for t in mine
                },
                times_faster_cpu={t.tokens: of_teacher[t.tokens].cpu_ms / t.cpu_ms for t in mine},
                data=data,
                forced_f1=forced,
                share_of_forced_f1=forced / wanted if forced is not None and wanted else None,
            )
        )
    return tuple(found)
