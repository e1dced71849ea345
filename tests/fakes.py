"""Small real classes at the seams, and builders of the values that tests talk about."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gateway.backends.protocol import Check, checked_logits, logits_of
from gateway.catalog import store
from gateway.catalog.schema import (
    Cell,
    Certificate,
    Decoding,
    GoldenLabelLogits,
    GoldenLogits,
    Host,
    Paired,
    Plan,
    Precision,
    Profile,
    Quality,
    Shape,
    Stratum,
    Variant,
)
from gateway.catalog.store import Catalog, GoldenInput, GoldenTexts, Origin, Task
from gateway.domain import Inference, Trust, Windows
from gateway.errors import BackendUnavailable
from gateway.latency.model import LatencyModel
from gateway.qa.codec import SpanEncoder
from gateway.serving_set import ServingSet
from gateway.settings import Settings
from gateway.slo import STANDARD_CLASSES

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "model_repository" / "tokenizer.json"
CONTEXT = "The Normans were the people who in the 10th century gave their name to Normandy."
QUESTION = "Who gave their name to Normandy?"
HOST = Host("test cpu", "avx2", 2, "", "fake 1")
SHA256 = "0" * 64


def patient(**settings: Any) -> Settings:
    """Return settings whose classes have far deadlines: a busy host is late with a fake as well."""
    far = {name: replace(c, timeout_ms=60_000.0) for name, c in STANDARD_CLASSES.items()}
    return Settings(**({"classes": far} | settings))


def make_variant(
    name: str, ms: float, *, sha256: str = SHA256, batch_invariant: bool = False
) -> Variant:
    """Return a variant that takes `ms` at every length, with tails of 1.5 and 2 times that."""
    cells = tuple(Cell(bucket, 1, ms, 1.5 * ms, 2 * ms) for bucket in (64, 128, 256, 384))
    quality = Quality("test", SHA256, 100, 0.5, 0.6, 0.55, 0.65, 0.6, 0.6, 0.7)
    return Variant(
        name=name,
        version=1,
        sha256=sha256,
        size_bytes=int(ms * 1e6),
        parameters=int(ms * 1e6),
        shape=Shape(2, 8, 2, 16, 30522, 8),
        precision=Precision.FP32 if batch_invariant else Precision.INT8_DYNAMIC,
        recipe="test",
        batch_invariant=batch_invariant,
        instances=2,
        decoding=Decoding(),
        quality=(quality,),
        profile=Profile(HOST, 1, cells),
        golden=(GoldenLogits((0.0,), (0.0,)),),
        golden_tolerance=0.1,
    )


def make_plan(variant: Variant, floor: float) -> Plan:
    """Return the direct plan of a variant with this certified floor."""
    certificate = Certificate(
        floor, 0.1, "test", 100, 1000, floor + 0.02, "test", SHA256, (variant.sha256,), HOST
    )
    return Plan(variant.name, (variant.name,), (), certificate)


def make_cascade(
    variants: Sequence[Variant], floor: float, threshold: float, reach: Sequence[float]
) -> Plan:
    """Return a plan that asks the next variant where a score is below the threshold."""
    certificate = replace(
        make_plan(variants[0], floor).certificate,
        model_sha256=tuple(v.sha256 for v in variants),
    )
    names = tuple(v.name for v in variants)
    thresholds = (threshold,) * (len(names) - 1)
    return Plan("-".join(names), names, thresholds, certificate, tuple(reach))


def with_loss(plan: Plan, loss: float, to: str = "large") -> Plan:
    """Return the plan certified to lose this much F1 to the largest variant."""
    paired = Paired(to, loss, loss - 0.01)
    return replace(plan, certificate=replace(plan.certificate, paired=paired))


def with_answerable(plan: Plan, floor: float) -> Plan:
    """Return the plan certified at this floor on questions that have an answer."""
    part = Stratum("answerable", 100, 300, floor + 0.02, floor, 100)
    return replace(plan, certificate=replace(plan.certificate, strata=(part,)))


def make_catalog(variants: Sequence[Variant], floors: Sequence[float]) -> Catalog:
    plans = tuple(make_plan(v, f) for v, f in zip(variants, floors, strict=True))
    return Catalog(
        schema_version=1,
        origin=Origin("test", "0000000", "2026-01-01T00:00:00Z", 1, {}),
        tokenizer_sha256=store.sha256_of(TOKENIZER),
        variants=tuple(variants),
        plans=plans,
        golden_inputs=(GoldenInput(QUESTION, CONTEXT),),
    )


def make_task(name: str, labels: Sequence[str], *, pair: bool = False) -> Task:
    golden = GoldenTexts("A text.", "Another." if pair else None)
    origin = Origin("test", "0000000", "2026-01-01T00:00:00Z", 1, {})
    return Task(name, tuple(labels), pair, (golden,), origin)


def make_classifier(
    name: str, ms: float, task: Task, *, sha256: str = SHA256, batch_invariant: bool = False
) -> Variant:
    """Return a variant of a classification that takes `ms` at every length."""
    variant = make_variant(name, ms, sha256=sha256, batch_invariant=batch_invariant)
    return replace(
        variant,
        task=task.name,
        decoding=Decoding(temperature=2.0),
        golden=(GoldenLabelLogits((6.0, *[0.0] * (len(task.labels) - 1))),),  # FakeBackend's
    )


def with_task(
    catalog: Catalog, task: Task, variants: Sequence[Variant], floors: Sequence[float]
) -> Catalog:
    """Return the catalog with one more task, its variants and their direct plans."""
    plans = tuple(make_plan(v, f) for v, f in zip(variants, floors, strict=True))
    return replace(
        catalog,
        schema_version=store.WITH_TASKS,
        tasks=(*catalog.tasks, task),
        variants=(*catalog.variants, *variants),
        plans=(*catalog.plans, *plans),
    )


TOPIC = make_task("topic", ("sport", "city", "river"))
ENTAILS = make_task("entails", ("entailment", "not_entailment"), pair=True)


def with_topic(catalog: Catalog) -> Catalog:
    """Return the catalog with TOPIC: `topic-small`, 3 ms at 0.8, and `topic-large`, 12 ms at 0.9."""
    pair = [make_classifier("topic-small", 3, TOPIC), make_classifier("topic-large", 12, TOPIC)]
    return with_task(catalog, TOPIC, pair, [0.8, 0.9])


def with_entails(catalog: Catalog) -> Catalog:
    """Return the catalog with ENTAILS: `entails-small`, 4 ms at 0.7."""
    return with_task(catalog, ENTAILS, [make_classifier("entails-small", 4, ENTAILS)], [0.7])


def small_and_large() -> Catalog:
    """Return two variants: `small`, 5 ms at F1 0.5, and `large`, 20 ms at F1 0.7."""
    return make_catalog([make_variant("small", 5), make_variant("large", 20)], [0.5, 0.7])


def paired_small_and_large() -> Catalog:
    """Return the same two, certified to lose 0.15 and 0 to the larger."""
    catalog = small_and_large()
    plans = tuple(with_loss(p, x) for p, x in zip(catalog.plans, (0.15, 0.0), strict=True))
    return replace(catalog, plans=plans)


@cache
def encoder() -> SpanEncoder:
    """Return the shipped tokenizer's encoder; reading it takes half a second."""
    return SpanEncoder.from_file(TOKENIZER)


def serving_set(catalog: Catalog, trust: Trust = Trust.CERTIFIED) -> ServingSet:
    """Return the catalog as served on the host it was measured on."""
    profiles = {v.name: v.profile for v in catalog.variants}
    return ServingSet(
        catalog=catalog,
        encoder=encoder(),
        trust=dict.fromkeys(profiles, trust),
        profiles=profiles,
        latency=LatencyModel(profiles, HOST.cores, {v.name: v.instances for v in catalog.variants}),
    )


class FakeBackend:
    """A model server that answers with the context's first token, or the first label, or fails as configured.

    `gate`, when given, holds every inference until it is set; `gates` and `errors` are of single variants.
    """

    name = "fake"
    engine = HOST.engine

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.gate = gate
        self.logits: dict[str, float] = {}  # of that token, or the first label, by variant; else 6
        self.error: Exception | None = None
        self.errors: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.asked: list[str] = []
        self.windows: list[Windows] = []
        self._was_asked = asyncio.Event()
        self.cancelled = 0
        self.loaded: dict[str, str] = {}

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.asked.append(variant.name)
        self.windows.append(windows)
        self._was_asked.set()
        if error := self.error or self.errors.get(variant.name):
            raise error
        if gate := self.gate or self.gates.get(variant.name):
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if variant.classifies:
            golden = variant.golden[0]
            assert isinstance(golden, GoldenLabelLogits)
            given = np.zeros((1, len(golden.logits)), np.float32)
            given[0, 0] = self.logits.get(variant.name, 6.0)
            return Inference(checked_logits(variant, windows, [given]), 0.0, 1.0)
        logits = np.zeros(windows.input_ids.shape, np.float32)
        at = int(np.flatnonzero(windows.is_context[0])[0])
        logits[0, at] = self.logits.get(variant.name, 6.0)
        return Inference(logits_of(variant.name, windows, logits, logits), 0.0, 1.0)

    async def until_asked(self, n: int = 1) -> None:
        """Return when `n` inferences were asked for in all."""
        async with asyncio.timeout(5):
            while len(self.asked) < n:
                self._was_asked.clear()
                await self._was_asked.wait()

    async def hashes(self) -> Mapping[str, str]:
        return dict(self.loaded)

    async def load(self, variant: Variant) -> None:
        if isinstance(self.error, BackendUnavailable):
            raise self.error
        self.loaded[f"{variant.name}/{variant.version}"] = variant.sha256

    async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
        self.loaded.pop(f"{variant.name}/{variant.version}", None)
        return True

    async def checked(self, variant: Variant, check: Check) -> Trust:
        return await check(self)

    @property
    def cores(self) -> float:
        return float(HOST.cores)

    def capacity(self, variant: Variant) -> int:
        return 1

    async def external_load(self) -> Mapping[str, float]:
        return {}

    async def is_ready(self) -> bool:
        return self.error is None

    async def close(self) -> None:
        pass


class WordBackend(FakeBackend):
    """A model server that answers with one word, wherever it is; without it there is no answer."""

    def __init__(self, word: str, logit: float = 6.0) -> None:
        super().__init__()
        self._token = encoder().tokenizer.token_to_id(word)
        self._logit = logit

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        self.asked.append(variant.name)
        self.windows.append(windows)
        found = windows.is_context & (windows.input_ids == self._token)
        logits = np.where(found, self._logit, 0.0).astype(np.float32)
        logits[:, 0] = np.where(found.any(axis=1), 0.0, 4.0)
        return Inference(logits_of(variant.name, windows, logits, logits), 0.0, 1.0)
