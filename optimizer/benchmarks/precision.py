"""What INT8 takes from published variants at most: the rounding of activations, of weights, and of each layer alone.

The reference is the float graph: the same file, its products in float32 from the weights that it stores. What it scores
more in forced F1 is all that other activations (static ranges, more bits, layers in float) could give back. F1 also
depends on the threshold for abstaining, which was fitted to the served graph. Training with rounding
could give back what the rounding of weights takes, too. The weights before rounding are in no repository; a draw of
weights that round to the same codes is as far from the stored ones as those were. If the loss is quadratic around the
trained weights, it loses to the stored ones, on average, what these lost by rounding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gateway.backends.embedded import open_session
from gateway.catalog import store
from gateway.catalog.schema import QA, Precision, Variant
from gateway.domain import Floats, Logits, Windows
from gateway.qa.codec import SpanEncoder
from optimizer.benchmarks import latency, pairs
from optimizer.benchmarks.results import (
    ComparisonError,
    Pair,
    PrecisionComparison,
    Rounding,
    Timing,
    VariantRounding,
)
from optimizer.data import evaluate, question_sets
from optimizer.data.question_sets import DataError, Example
from optimizer.onnx import dequantized
from optimizer.onnx import profile as profiling
from optimizer.search import scoring
from optimizer.study import provenance, stages
from optimizer.study.progress import Progress

TOKENS = 128  # of the window that is timed
ROUNDS = 60
KEPT = (1, 3)  # most sensitive layers that are in float, where there are more
SEED = 17  # of weights that are drawn
SERVED, FLOAT, REDRAWN = "served", "float", "weights redrawn"


@dataclass(frozen=True, slots=True)
class _Graph:
    """What of a variant's graph is in float."""

    name: str
    float_layers: tuple[int, ...]
    redrawn: bool = False

    def model(self, served: onnx.ModelProto) -> onnx.ModelProto:
        redraw = np.random.default_rng(SEED) if self.redrawn else None
        return dequantized.in_float(served, self.float_layers, redraw)


def run(
    repository: Path,
    data: str,
    folder: Path,
    limit: int | None = None,
    layer_limit: int | None = None,
    only: Collection[str] = (),
) -> PrecisionComparison:
    """Ask every graph of the variants, each once: logits are kept in `folder`. Raises: BertierError."""
    if any(n is not None and n < 1 for n in (limit, layer_limit)):
        raise ComparisonError("--questions and --layer-questions: 1 or more")
    variants, skipped = chosen(store.read(repository).variants, only)
    examples = scoring.sample(question_sets.load(data))[:limit]
    if not examples:
        raise DataError(f"{data}: contains no questions")
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    asked = [(e, e.windows(encoder)) for e in examples]
    name = Path(data).name.split(".")[0]
    subjects = [_Subject(repository, v, folder / v.name, name, asked) for v in variants]
    return PrecisionComparison(
        variants=tuple(subject.compared(layer_limit) for subject in subjects),
        skipped=skipped,
        ran_on=provenance.ran_on(),
    )


def chosen(
    variants: Sequence[Variant], only: Collection[str]
) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants to compare, and why others are not. Raises: ComparisonError."""
    if unknown := sorted(set(only) - {v.name for v in variants}):
        there = ", ".join(v.name for v in variants)
        raise ComparisonError(f"{', '.join(unknown)}: not in the repository, which has {there}")
    wanted = [v for v in variants if not only or v.name in only]
    skipped = {v.name: why for v in wanted if (why := unfit(v))}
    if not (found := [v for v in wanted if v.name not in skipped]):
        reasons = "; ".join(f"{name} {why}" for name, why in skipped.items())
        raise ComparisonError(f"no variant can be compared: {reasons}")
    return found, skipped


def unfit(variant: Variant) -> str | None:
    """Return why a variant is not compared; None: it is."""
    if variant.task != QA:
        return "classifies, and has no answer spans to score"
    if variant.precision != Precision.INT8_DYNAMIC:
        return f"is in {variant.precision}, so no product is rounded to INT8"
    if variant.shape.keep < 1:
        return "drops tokens, and rounding would change which"
    return None


class _Subject:
    """A variant, its graphs, and what they say to the questions."""

    def __init__(
        self,
        repository: Path,
        variant: Variant,
        folder: Path,
        data: str,
        asked: Sequence[tuple[Example, Windows]],
    ) -> None:
        self._file = store.model_path(repository, variant)
        self._variant, self._folder, self._data, self._asked = variant, folder, data, asked

    @cached_property
    def _served(self) -> onnx.ModelProto:
        return onnx.load(self._file)

    @property
    def _whole(self) -> _Graph:
        return _Graph(FLOAT, tuple(range(self._variant.shape.layers)))

    def compared(self, layer_limit: int | None) -> VariantRounding:
        served, whole = _Graph(SERVED, ()), self._whole
        every = whole.float_layers
        redrawn = _Graph(REDRAWN, every, redrawn=True)
        alone = [_Graph(f"layer {i} rounded", every[:i] + every[i + 1 :]) for i in every]
        layers = tuple(self._beside(graph, whole, layer_limit) for graph in alone)
        order = sorted(every, key=lambda i: -layers[i].error)
        few = [tuple(sorted(order[:k])) for k in KEPT if k < len(every)]
        kept = [_Graph(f"layers {', '.join(map(str, k))} float", k) for k in few]
        timings = self._timings([served, whole, *kept])
        others = [(served, whole), (whole, whole), (redrawn, whole), *((k, served) for k in kept)]
        graphs = tuple(self._beside(a, b, None, timings.get(a.name)) for a, b in others)
        return VariantRounding(self._variant.name, graphs, layers)

    def _timings(self, graphs: Sequence[_Graph]) -> Mapping[str, Timing]:
        with tempfile.TemporaryDirectory() as folder:
            files = {g.name: Path(folder) / f"{i}.onnx" for i, g in enumerate(graphs)}
            for graph in graphs:
                onnx.save(graph.model(self._served), files[graph.name])
            return {t.model: t for t in latency.interleaved(files, ROUNDS, (TOKENS,))}

    def _beside(
        self, graph: _Graph, other: _Graph, limit: int | None, timing: Timing | None = None
    ) -> Rounding:
        logits = self._logits(graph, limit)
        others, whole = (self._logits(g, None)[:limit] for g in (other, self._whole))
        return Rounding(
            float_layers=graph.float_layers,
            error=error_of(logits, whole, [w for _, w in self._asked[:limit]]),
            beside=self._pair((graph.name, other.name), (logits, others), limit),
            timing=timing,
        )

    def _pair(
        self,
        names: tuple[str, str],
        logits: tuple[Sequence[Floats], Sequence[Floats]],
        limit: int | None,
    ) -> Pair:
        """Return both graphs' scores under the published threshold."""
        asked, how = self._asked[:limit], self._variant.decoding
        first, second = (
            [e.read(w, Logits(*said)) for (e, w), said in zip(asked, found, strict=True)]
            for found in logits
        )
        answers = evaluate.answers_of(first, how), evaluate.answers_of(second, how)
        return pairs.pair(names, self._data, [e for e, _ in asked], answers, (first, second))

    def _logits(self, graph: _Graph, limit: int | None) -> list[Floats]:
        """Return (2, W, S) of each question; kept ones, where the graph was asked the same before."""
        asked = self._asked[:limit]
        stage = self._folder / graph.name.replace(",", "").replace(" ", "-")
        kept = stage / "logits.npz"

        def work() -> dict[str, Any]:
            part = stage / "part.npz"
            np.savez(part, *self._ask(graph, asked))
            part.replace(kept)
            return {"questions": len(asked)}

        inputs = {
            "model": self._variant.sha256,
            "graph": asdict(graph),
            "questions": [_sha256(windows) for _, windows in asked],
            "host": asdict(profiling.here()),
        }
        stages.run_stage(stage, inputs, work)
        with np.load(kept) as found:
            return [found[f"arr_{i}"] for i in range(len(asked))]

    def _ask(self, graph: _Graph, asked: Sequence[tuple[Example, Windows]]) -> list[Floats]:
        progress = Progress(f"{self._variant.name}, {graph.name}", len(asked))
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(graph.model(self._served), file := Path(folder) / "model.onnx")
            session = open_session(file)
        found = []
        for example, windows in asked:
            logits = example.ask(session, windows)
            found.append(np.stack([logits.start, logits.end]))
            progress.step()
        return found


def _sha256(windows: Windows) -> str:
    """Return a hash of what a model reads, and of where."""
    return hashlib.sha256(
        windows.input_ids.tobytes() + windows.token_type_ids.tobytes()
    ).hexdigest()


def error_of(
    logits: Sequence[Floats], wanted: Sequence[Floats], windows: Sequence[Windows]
) -> float:
    """Return the root mean square difference of the logits of real tokens, in deviations of the wanted ones."""
    real = [w.attention_mask == 1 for w in windows]
    said, right = (
        np.concatenate([found[:, mask] for found, mask in zip(of, real, strict=True)], axis=1)
        for of in (logits, wanted)
    )
    return float(np.sqrt(np.mean((said - right) ** 2)) / np.std(right))
