"""Measures how fast this host trains, exports and answers, on some of the questions; keeps no model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gateway.catalog.schema import Precision
from gateway.qa.codec import LENGTH_BUCKETS, SpanEncoder
from optimizer.budget import schedule, study_file
from optimizer.budget.schedule import Network, Role, Seconds
from optimizer.budget.study_file import Start
from optimizer.data import evaluate, question_sets
from optimizer.data.items import Feature
from optimizer.data.question_sets import Example
from optimizer.models import adapt, heads, student, tokenizer
from optimizer.onnx import export, profile
from optimizer.search import costs
from optimizer.students import supernet
from optimizer.students.supernet import Supernet
from optimizer.study import workers
from optimizer.study.config import DistillConfig, PublishConfig, StudyConfig, TrainConfig
from optimizer.study.space import Space
from optimizer.teachers import checkpoint, inference
from optimizer.teachers.store import AnswerStore
from optimizer.training import loop, losses

WEIGHTS = "minilm"  # what a teacher that cannot be cut teaches
ROWS = 48  # training rows that steps are timed on
N_TIMED = 24  # questions that a teacher and a served file are timed on
PROFILED = (128, 384)  # tokens; latency is linear in between, nearly
CHECKS = 2.0  # an export with its checks, relative to writing both files
MAX_TOKENS: int = StudyConfig.model_fields["max_tokens"].default
PROFILE_RUNS: int = PublishConfig.model_fields["profile_runs"].default


@dataclass(frozen=True, slots=True)
class Measured:
    """What the planning of a study depends on, besides the questions."""

    whole: Network
    seconds: Seconds
    tokens: int  # length bucket of a typical question


def start_of(teacher: str, weights: str | None) -> Start:
    """Return what a named teacher can be in a study. Raises: ModelError, TeacherError, BackboneError.

    `weights`: checkpoint that the largest model starts from where the teacher only teaches.
    """
    if weights is not None:
        checkpoint.load(teacher)
        return Start(teacher, Role.TEACHES, weights)
    try:
        student.load(teacher, answers=True)
    except student.ModelError as exc:
        if isinstance(exc.__cause__, adapt.NotBert):
            checkpoint.load(teacher)
            return Start(teacher, Role.TEACHES, WEIGHTS)
        student.load(
            teacher
        )  # without a span head it is an encoder; else this fails in the same way
        return Start(teacher, Role.ENCODER, teacher)
    return Start(teacher, Role.LARGEST, teacher)


def measure(start: Start, examples: Sequence[Example], n_rows: int) -> Measured:
    """Return the speeds of this host on some of these questions; `n_rows`: that will train."""
    some = _spread(examples, ROWS)
    questions = _spread(examples, N_TIMED)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(start.weights, Path(folder))
        words = Path(folder) / tokenizer.FILE
        encoder = SpanEncoder.from_file(words).resized(MAX_TOKENS)
        rows = question_sets.features(some, encoder, study_file.SEED)
        model = student.load(start.weights)
        whole = _network(model)
        config = TrainConfig(batch_size=study_file.batch_size(n_rows))
        tokens = _bucket([len(row.input_ids) for row in rows])
        files = _Files(Path(folder), words, questions)
        return Measured(whole, _seconds(start, model, whole, rows, config, files, tokens), tokens)


def _spread(examples: Sequence[Example], n: int) -> list[Example]:
    """Return so many questions, short to long."""
    ordered = sorted(examples, key=lambda e: len(e.context) + len(e.question))
    at = np.linspace(0, len(ordered) - 1, min(n, len(ordered))).round().astype(int)
    return [ordered[i] for i in at]


def _network(model: Any) -> Network:
    shape = export.graph_shape_of(model)
    return Network(len(shape.heads), min(shape.heads), min(shape.ffn), shape.hidden)


def _bucket(lengths: Sequence[int]) -> int:
    typical = float(np.median(lengths))
    return next((b for b in LENGTH_BUCKETS if typical <= b), LENGTH_BUCKETS[-1])


def _seconds(
    start: Start,
    model: Any,
    whole: Network,
    rows: Sequence[Feature],
    config: TrainConfig,
    files: _Files,
    tokens: int,
) -> Seconds:
    with workers.working():
        small = smallest(model, whole)
        written_s, read_s = files.measure(model, "largest")
        _, small_read_s = files.measure(small, "smallest")
        forward_s = _forward_s(model, rows)
        return Seconds(
            ask=_ask_s(start.teacher, files.questions) if start.role is Role.TEACHES else 0.0,
            forward=forward_s,
            elastic=_elastic_s(model, space_of(whole), rows, config),
            train_smallest=loop.seconds_a_row(small, rows, losses.label_loss, config),
            train=loop.seconds_a_row(model, rows, losses.label_loss, config),
            sort_heads=_sort_heads_s(whole, forward_s, rows),
            export=CHECKS * written_s,
            read=read_s,
            read_smallest=small_read_s,
            cost=files.cost_s("largest", tokens),
            profile=files.profile_s("largest"),
        )


def smallest(model: Any, whole: Network) -> Any:
    """Return the student that is measured besides the largest model."""
    shape = schedule.smallest_shape(whole)
    return student.cut(model, range(shape.layers), shape.ffn)


def space_of(whole: Network) -> Space:
    """Return the space that the elastic student is timed in."""
    widths = study_file.Widths.of(whole)
    return Space(
        layers="any",
        min_layers=widths.min_layers,
        heads=tuple(widths.heads),
        ffn=tuple(widths.ffn),
    ).within(whole.layers)


def _elastic_s(model: Any, space: Space, rows: Sequence[Feature], config: TrainConfig) -> float:
    net = Supernet(model, measure=False)
    ask = partial(supernet.ask_sandwich, space, 1)
    loss = losses.Imitation(None, DistillConfig(labels_only=True), ask)
    return loop.seconds_a_row(net, rows, loss, config)


@torch.no_grad()
def _forward_s(model: Any, rows: Sequence[Feature]) -> float:
    model.to(loop.device()).eval()
    batch = loop.batch_of(rows, range(0, len(rows), 4))

    def ask() -> None:
        with loop.autocast():
            model(**batch.inputs()).start_logits.cpu()

    ask()  # warms up
    return _timed(ask) / len(batch.rows)


def _sort_heads_s(whole: Network, forward_s: float, rows: Sequence[Feature]) -> float:
    """Return what ranking the heads takes: a forward pass of random tokens without each of them."""
    tokens = float(np.mean([len(row.input_ids) for row in rows]))
    passes = whole.layers * (whole.heads + 1)
    return passes * forward_s * heads.PROBE[0] * heads.PROBE[1] / tokens


def _ask_s(teacher: str, questions: Sequence[Example]) -> float:
    loaded = checkpoint.load(teacher)
    with tempfile.TemporaryDirectory() as folder:
        store = AnswerStore(Path(folder))
        return _timed(lambda: inference.ask(loaded, questions, store)) / len(questions)


@dataclass(frozen=True, slots=True)
class _Files:
    """Models as files that are served, in a folder that is removed afterwards."""

    folder: Path
    tokenizer: Path
    questions: Sequence[Example]

    def measure(self, model: Any, name: str) -> tuple[float, float]:
        """Return what writing a model takes, and what a question takes as served, in seconds."""
        path = self._path(name)
        path.parent.mkdir(parents=True)
        model.eval()

        def write() -> None:
            export.write(model, path.with_name("fp32.onnx"), Precision.FP32)
            export.write(model, path, Precision.INT8_DYNAMIC)

        written_s = _timed(write)
        read = partial(
            evaluate.read_all, path, self.tokenizer, self.questions, Precision.INT8_DYNAMIC
        )
        read()  # warms up
        return written_s, _timed(read) / len(self.questions)

    def profile_s(self, name: str) -> float:
        """Return what a latency profile takes: as many runs at every length."""
        found = profile.profile(self._path(name), runs=3, buckets=PROFILED)
        ms = [found.cell(bucket).p50_ms for bucket in PROFILED]
        each = np.interp(LENGTH_BUCKETS, PROFILED, ms)
        return float(each.sum()) / 1e3 * (PROFILE_RUNS + profile.WARM_UP)

    def cost_s(self, name: str, tokens: int) -> float:
        """Return what measuring the latency of one shape takes, in a search."""
        found = profile.profile(self._path(name), costs.RUNS, (tokens,))
        return costs.seconds_of(found.cell(tokens))

    def _path(self, name: str) -> Path:
        return self.folder / name / "export" / "model.onnx"


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
