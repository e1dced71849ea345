"""The in-process backend, with a tiny real model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from gateway.backends.embedded import CPU, GPU, EmbeddedBackend, open_session, providers_of, run
from gateway.catalog.schema import Precision, Variant
from gateway.catalog.store import sha256_of
from gateway.domain import Question, Windows
from gateway.errors import BackendUnavailable, DeadlineExceeded, InvalidLogits
from tests import tiny
from tests.fakes import CONTEXT, QUESTION, encoder, make_variant


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    return make_variant("small", 5, sha256=tiny.write_model(tmp_path, "small"))


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[EmbeddedBackend]:
    backend = EmbeddedBackend(tmp_path)
    yield backend
    await backend.close()


def long_windows() -> Windows:
    windows = encoder().encode(Question(QUESTION, CONTEXT * 60))
    assert windows.n_windows > 2
    return windows


async def test_the_logits_come_back_in_window_order(
    backend: EmbeddedBackend, variant: Variant
) -> None:
    """Windows run on several cores, in no order of their own."""
    await backend.load(variant)
    windows = long_windows()
    found = await backend.infer(variant, windows, 60_000)
    start, end = tiny.expected_logits(
        windows.input_ids, windows.attention_mask, windows.token_type_ids
    )
    assert np.array_equal(found.spans.start, start)
    assert np.array_equal(found.spans.end, end)
    assert found.infer_ms > 0
    assert found.queue_ms >= 0


async def test_no_window_begins_after_the_deadline(
    backend: EmbeddedBackend, variant: Variant
) -> None:
    """What nobody waits for any more must not hold a core, and the next request works."""
    await backend.load(variant)
    with pytest.raises(DeadlineExceeded, match="small"):
        await backend.infer(variant, long_windows(), 0.0)
    await backend.infer(variant, long_windows(), 60_000)


async def test_a_variant_that_is_not_loaded_is_unavailable(
    backend: EmbeddedBackend, variant: Variant
) -> None:
    """The message names the version."""
    with pytest.raises(BackendUnavailable, match="version 1 is not loaded"):
        await backend.infer(variant, long_windows(), 60_000)


@pytest.mark.parametrize("penalty", [np.nan, np.inf])
async def test_logits_that_are_not_finite_are_the_model_s_error(
    backend: EmbeddedBackend, tmp_path: Path, penalty: float
) -> None:
    """An answer read from them would be "no answer", and sure of it."""
    sha256 = tiny.write_model(tmp_path, "broken", penalty=penalty)
    broken = make_variant("broken", 5, sha256=sha256)
    await backend.load(broken)
    with pytest.raises(InvalidLogits, match=r"broken: .* not finite"):
        await backend.infer(broken, long_windows(), 60_000)
    session = open_session(tmp_path / "broken" / "1" / "model.onnx")
    with pytest.raises(InvalidLogits, match="not finite"):
        run(session, long_windows())


async def test_the_hash_is_of_the_loaded_file(backend: EmbeddedBackend, variant: Variant) -> None:
    """That is what the catalog is compared with."""
    await backend.load(variant)
    assert await backend.hashes() == {"small/1": variant.sha256}


@pytest.mark.parametrize("precision", Precision)
def test_only_fp16_runs_on_a_gpu(precision: Precision) -> None:
    """INT8 is certified with the arithmetic of the CPU, whatever else the build can do."""
    both = ["TensorrtExecutionProvider", GPU, CPU]
    assert providers_of(precision, both) == ([GPU, CPU] if precision == "fp16" else [CPU])
    assert providers_of(precision, [CPU]) == [CPU]


async def test_a_model_that_cannot_be_loaded_is_not_held(
    backend: EmbeddedBackend, tmp_path: Path
) -> None:
    """Its hash would say that it is served; and the next attempt reads the file again."""
    path = tmp_path / "small" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is not a model")
    broken = make_variant("small", 5, sha256=sha256_of(path))
    with pytest.raises(BackendUnavailable, match="cannot be loaded"):
        await backend.load(broken)
    assert await backend.hashes() == {}
    path.write_bytes(tiny.model_bytes())
    mended = make_variant("small", 5, sha256=sha256_of(path))
    await backend.load(mended)
    await backend.infer(mended, long_windows(), 60_000)


async def test_a_file_that_was_put_right_is_read_again(
    backend: EmbeddedBackend, variant: Variant, tmp_path: Path
) -> None:
    """A wrong one that can be loaded must not stick."""
    path = tmp_path / "small" / "1" / "model.onnx"
    right = path.read_bytes()
    path.write_bytes(tiny.model_bytes(slow_rounds=1))
    await backend.load(variant)
    assert (await backend.hashes())["small/1"] != variant.sha256
    path.write_bytes(right)
    await backend.load(variant)
    assert (await backend.hashes())["small/1"] == variant.sha256


async def test_what_is_unloaded_is_gone(backend: EmbeddedBackend, variant: Variant) -> None:
    """Session and hash; doing it twice is nothing."""
    await backend.load(variant)
    for _ in range(2):
        await backend.unload(variant, [])
    assert await backend.hashes() == {}
    with pytest.raises(BackendUnavailable, match="not loaded"):
        await backend.infer(variant, long_windows(), 60_000)
