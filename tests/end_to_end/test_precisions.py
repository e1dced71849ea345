"""Every precision that the optimizer writes is served by the real Triton, as it was measured."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.backends.embedded import open_session, run
from gateway.backends.triton import TritonBackend
from gateway.catalog.schema import Precision, Variant
from gateway.catalog.store import sha256_of
from gateway.domain import Logits
from gateway.triton_server.supervisor import Supervisor
from optimizer.models.weights import GraphShape, random_weights
from optimizer.onnx import export, graph
from optimizer.publish import repository
from tests import local_triton
from tests.fakes import make_variant

SHAPE = GraphShape(128, (2, 2, 2), 16, (48,) * 3, 100, 4, rank=64, drops=((1, 0.5),))
WINDOWS = export.random_windows(4, 128, 100)
AMPLE_MS = 120_000.0


def published(folder: Path, precision: Precision) -> Variant:
    """Write a model that drops tokens, with the configuration that the optimizer gives it."""
    model = folder / precision / "1" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_bytes(graph.build(random_weights(SHAPE), SHAPE, precision).SerializeToString())
    found = make_variant(precision, 5, sha256=sha256_of(model))
    alone = precision is Precision.INT8_DYNAMIC
    found = replace(found, precision=precision, batch_invariant=not alone)
    config = repository.config_pbtxt(found, {1: found.sha256})
    (folder / precision / "config.pbtxt").write_text(config)
    return found


async def _answers(folder: Path, variants: list[Variant]) -> list[Logits]:
    options = local_triton.options(folder)
    supervisor = Supervisor(local_triton.installation(), options)
    await supervisor.start(local_triton.START_TIMEOUT_MS)
    backend = TritonBackend(options.grpc_url)
    try:
        return [(await backend.infer(v, WINDOWS, AMPLE_MS)).spans for v in variants]
    finally:
        await backend.close()
        await supervisor.stop()


def test_every_precision_is_served_as_it_was_measured(tmp_path: Path) -> None:
    """FP16 asks for a GPU where there is one, and here there may be none; what may be batched is."""
    variants = [published(tmp_path, precision) for precision in Precision]
    found = asyncio.run(_answers(tmp_path, variants))
    seen = WINDOWS.attention_mask == 1
    for variant, logits in zip(variants, found, strict=True):
        model = tmp_path / variant.name / "1" / "model.onnx"
        alone = run(open_session(model, precision=variant.precision), WINDOWS)
        assert logits.start[seen] == pytest.approx(alone.start[seen], abs=1e-4)
        assert logits.end[seen] == pytest.approx(alone.end[seen], abs=1e-4)
        assert np.ptp(alone.start[seen]) > 1e-2
