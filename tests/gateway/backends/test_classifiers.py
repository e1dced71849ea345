"""Mixed repositories for real: tiny ONNX models in Triton and in this process, from the catalog to the answer."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.backends.embedded import EmbeddedBackend, open_session, run_labels
from gateway.backends.protocol import Backend, checked_logits
from gateway.backends.triton import TritonBackend
from gateway.catalog import store
from gateway.catalog.schema import GoldenLabelLogits
from gateway.catalog.store import Catalog
from gateway.clock import now_ms
from gateway.domain import Question, SloRequest, Texts, Trust
from gateway.errors import InvalidLogits
from gateway.lifecycle import preparation
from gateway.observability.metrics import Metrics
from gateway.request.service import AnswerService
from tests import mixed
from tests.fakes import CONTEXT, QUESTION, encoder, make_classifier, patient
from tests.gateway.conftest import RunningTriton
from tests.mixed import SAYS, WEIGHT

ANY = SloRequest(latency_ms=60_000)


@pytest.fixture(params=["triton", "embedded"])
async def backend(
    request: pytest.FixtureRequest, tmp_path: Path, triton: RunningTriton
) -> AsyncIterator[tuple[Backend, Path, Catalog]]:
    """A model server with the repository; Triton's is that of the session, which gets the models."""
    catalog = mixed.write(tmp_path)
    if request.param == "embedded":
        embedded = EmbeddedBackend(tmp_path)
        yield embedded, tmp_path, catalog
        await embedded.close()
        return
    for variant in catalog.variants:
        shutil.copytree(tmp_path / variant.name, triton.options.model_repository / variant.name)
    asked = TritonBackend(triton.options.grpc_url)
    yield asked, tmp_path, catalog
    for variant in catalog.variants:
        await asked.unload(variant, ())
        shutil.rmtree(triton.options.model_repository / variant.name)
    await asked.close()


async def test_a_mixed_repository_answers_both(backend: tuple[Backend, Path, Catalog]) -> None:
    """Files, hashes and golden logits of every task are checked; then each request gets its own models."""
    server, folder, catalog = backend
    serving = await preparation.prepare(folder, catalog, server)
    assert set(serving.trust.values()) <= {Trust.CERTIFIED, Trust.TRANSFERRED}
    assert set(serving.trust) == {v.name for v in catalog.variants}
    service = AnswerService(server, patient(), Metrics())
    service.serving = serving

    river = await service.answer(Texts("a river bank", task="tiny-kind"), ANY, now_ms())
    says = await service.answer(Texts("is it", "i say no", task="tiny-says"), ANY, now_ms())
    answered = await service.answer(Question(QUESTION, CONTEXT), ANY, now_ms())

    assert (river.answer.label, says.answer.label) == ("river", "no")
    assert river.answer.score == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=1e-4)
    assert answered.answer.text
    assert (says.variant, answered.variant) == ("tiny-says", "tiny-qa")
    pinned = replace(ANY, variant="tiny-doubt")
    unsure = await service.answer(Texts("a river bank", task="tiny-kind"), pinned, now_ms())
    assert (unsure.answer.label, unsure.variant) == ("river", "tiny-doubt")
    assert unsure.answer.score < 0.6


async def test_a_classification_alone_serves_and_its_cascade_escalates(
    backend: tuple[Backend, Path, Catalog],
) -> None:
    """The first variant is never sure, so the second decides."""
    server, folder, catalog = backend
    alone = catalog.only("tiny-kind")
    cascades = tuple(p for p in alone.plans if len(p.variants) > 1 or p.name == "tiny-doubt")
    serving = await preparation.prepare(folder, replace(alone, plans=cascades), server)
    service = AnswerService(server, patient(), Metrics())
    service.serving = serving
    found = await service.answer(Texts("sport in the city"), ANY, now_ms())
    assert (found.option.plan.name, found.variant) == ("tiny-doubt-tiny-kind", "tiny-kind")
    assert {s.label for s in found.answer.scores[:2]} == {"sport", "city"}


async def test_other_logits_than_certified_make_it_uncertified(
    backend: tuple[Backend, Path, Catalog],
) -> None:
    """The golden texts of a classification are asked as the golden questions are."""
    server, folder, catalog = backend
    wrong = replace(catalog.variants[-1], golden=(GoldenLabelLogits((9.0, 0.0)),))
    catalog = replace(catalog, variants=(*catalog.variants[:-1], wrong))
    serving = await preparation.prepare(folder, catalog, server)
    assert serving.trust["tiny-says"] is Trust.UNCERTIFIED


async def test_a_model_with_other_labels_is_not_served(
    backend: tuple[Backend, Path, Catalog],
) -> None:
    """Three logits have no meaning for two labels; the other tasks are served."""
    server, folder, catalog = backend
    path = store.model_path(folder, catalog.variants[-1])
    labels = ("yes", "no", "maybe")
    task = replace(SAYS, labels=labels)
    wrong = replace(catalog.variants[-1], golden=(GoldenLabelLogits((0.0, 0.0, 0.0)),))
    catalog = replace(
        catalog, tasks=(catalog.tasks[0], task), variants=(*catalog.variants[:-1], wrong)
    )
    serving = await preparation.prepare(folder, catalog, server)
    assert "2 for 3 labels" in serving.problems["tiny-says"]
    assert len(serving.trust) == 3
    assert path.exists()


def test_a_model_runs_offline_as_it_is_served(tmp_path: Path) -> None:
    """What the optimizer measures is what serves."""
    catalog = mixed.write(tmp_path)
    session = open_session(store.model_path(tmp_path, catalog.variants[-1]))
    windows = encoder().encode_texts(Texts("is it", "i say yes"))
    assert run_labels(session, windows).labels.tolist() == [[WEIGHT, 0.0]]


def test_a_model_that_returns_spans_is_no_classifier() -> None:
    """Its output has another shape than a row of labels a text."""
    variant = make_classifier("x", 1, SAYS)
    windows = encoder().encode_texts(Texts("a", "b"))
    with pytest.raises(InvalidLogits):
        checked_logits(variant, windows, [np.zeros((2, 2), np.float32)])
    with pytest.raises(InvalidLogits):
        checked_logits(variant, windows, [np.full((1, 2), np.nan, np.float32)])
