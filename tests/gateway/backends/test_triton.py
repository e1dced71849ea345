"""The Triton backend against the real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.backends.triton import TritonBackend, read_logits
from gateway.backends.triton_errors import map_triton_error
from gateway.catalog.schema import Variant
from gateway.domain import Inference, Windows
from gateway.errors import (
    BackendError,
    BackendUnavailable,
    DeadlineExceeded,
    InvalidLogits,
    VariantUnavailable,
)
from tests import local_triton, tiny
from tests.fakes import make_variant
from tests.gateway.conftest import RunningTriton
from tests.local_triton import CORRUPT, COUNTED, FAST, SINGLE, SLOW, SLOW_SINGLE, WRONG_HASH

AMPLE_MS = 120_000.0


def variant_of(name: str, *, batch_invariant: bool) -> Variant:
    """Return a variant with one instance, as the tiny models have."""
    return replace(make_variant(name, 1.0, batch_invariant=batch_invariant), instances=1)


FAST_VARIANT = variant_of(FAST, batch_invariant=True)
SINGLE_VARIANT = variant_of(SINGLE, batch_invariant=False)
SLOW_VARIANT = variant_of(SLOW, batch_invariant=True)
SLOW_SINGLE_VARIANT = variant_of(SLOW_SINGLE, batch_invariant=False)


@pytest.fixture
async def backend(triton: RunningTriton) -> AsyncIterator[TritonBackend]:
    backend = TritonBackend(triton.options.grpc_url)
    yield backend
    await backend.close()


def make_windows(n_windows: int, n_tokens: int = 64) -> Windows:
    ids = np.arange(n_windows * n_tokens, dtype=np.int64).reshape(n_windows, n_tokens)
    mask = np.ones_like(ids)
    mask[:, -3:] = 0
    types = np.zeros_like(ids)
    types[:, 5:] = 1
    offsets = np.zeros((*ids.shape, 2), np.int64)
    return Windows(ids, mask, types, offsets, mask.astype(np.bool_), n_tokens)


def assert_right(windows: Windows, found: Inference) -> None:
    start, end = tiny.expected_logits(
        windows.input_ids, windows.attention_mask, windows.token_type_ids
    )
    np.testing.assert_array_equal(found.spans.start, start)
    np.testing.assert_array_equal(found.spans.end, end)


@pytest.mark.parametrize("variant", [FAST_VARIANT, SINGLE_VARIANT], ids=lambda v: v.name)
@pytest.mark.parametrize("n_windows", [1, 8, 19])
async def test_the_logits_are_the_model_s_own_in_window_order(
    backend: TritonBackend, variant: Variant, n_windows: int
) -> None:
    """Windows travel in several requests at once, and each must come back to its place."""
    windows = make_windows(n_windows)
    assert_right(windows, await backend.infer(variant, windows, AMPLE_MS))


async def test_windows_of_a_batch_variant_model_run_alone(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """Dynamic INT8 answers differently in company, so nobody may share its run."""
    port = triton.options.metrics_port
    before = local_triton.counter(port, "nv_inference_exec_count", SINGLE)
    await backend.infer(SINGLE_VARIANT, make_windows(5), AMPLE_MS)
    await local_triton.wait_until(
        lambda: local_triton.counter(port, "nv_inference_exec_count", SINGLE) == before + 5
    )


async def test_concurrent_requests_of_a_batch_invariant_model_share_runs(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """Padding to length buckets pays only if Triton's dynamic batcher really batches."""
    windows = make_windows(1)
    found = await asyncio.gather(
        *(backend.infer(SLOW_VARIANT, windows, AMPLE_MS) for _ in range(12))
    )
    for each in found:
        assert_right(windows, each)
    port = triton.options.metrics_port
    asked = local_triton.counter(port, "nv_inference_count", SLOW)
    assert local_triton.counter(port, "nv_inference_exec_count", SLOW) < asked


async def test_a_deadline_ends_the_call(backend: TritonBackend) -> None:
    """Triton does not interrupt a run, so the client must stop waiting by itself."""
    with pytest.raises(DeadlineExceeded, match=SLOW):
        await backend.infer(SLOW_VARIANT, make_windows(1), budget_ms=5.0)


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan")])
async def test_no_time_left_is_said_without_asking(
    backend: TritonBackend, budget_ms: float
) -> None:
    """A timeout of 0 means 'none' to Triton: it must never get there."""
    with pytest.raises(DeadlineExceeded):
        await backend.infer(FAST_VARIANT, make_windows(1), budget_ms)


async def test_one_late_window_fails_the_whole_question(backend: TritonBackend) -> None:
    """Half of the windows are no answer."""
    with pytest.raises(DeadlineExceeded):
        await backend.infer(SLOW_VARIANT, make_windows(40), budget_ms=20.0)


async def test_nobody_there_is_unavailable() -> None:
    """The caller sees 503 and can come back, not a 500."""
    (port,) = local_triton.free_ports(1)
    backend = TritonBackend(f"127.0.0.1:{port}")
    assert not await backend.is_ready()
    with pytest.raises(BackendUnavailable):
        await backend.infer(FAST_VARIANT, make_windows(1), AMPLE_MS)
    with pytest.raises(BackendUnavailable):
        await backend.hashes()
    await backend.close()


async def test_what_triton_says_is_for_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    """Addresses, paths and stacks of the inside are none of the caller's business."""
    (port,) = local_triton.free_ports(1)
    backend = TritonBackend(f"127.0.0.1:{port}")
    with pytest.raises(BackendUnavailable) as caught:
        await backend.infer(FAST_VARIANT, make_windows(1), AMPLE_MS)
    await backend.close()
    assert str(caught.value) == f"{FAST}: the model server cannot answer now; see /readyz"
    assert str(port) in caplog.text


async def test_the_hashes_are_those_of_the_served_files(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """The gateway routes to nothing whose hash differs from the catalog's."""
    expected = {f"{name}/1": sha256 for name, sha256 in triton.hashes.items()}
    assert await backend.hashes() == expected


async def test_a_file_that_is_not_the_published_one_is_refused(backend: TritonBackend) -> None:
    """A certificate holds for one file only."""
    with pytest.raises(BackendUnavailable, match="sha256 is"):
        await backend.load(make_variant(WRONG_HASH, 1.0))


async def test_a_corrupt_model_says_so_and_the_others_are_served(backend: TritonBackend) -> None:
    """One bad file must not take the service down, and must not be a riddle."""
    with pytest.raises(BackendUnavailable, match="cannot load it"):
        await backend.load(make_variant(CORRUPT, 1.0))
    assert await backend.is_ready()


async def test_a_model_for_a_gpu_that_is_not_here_says_so(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """`/readyz` shows Triton's own reason; other models are not harmed."""
    repository, name = triton.options.model_repository, "for-a-gpu"
    tiny.write_model(repository, name)
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
    with pytest.raises(BackendUnavailable, match=f"{name}: could not be loaded: .*GPU"):
        await backend.load(make_variant(name, 1.0))
    windows = make_windows(1)
    assert_right(windows, await backend.infer(FAST_VARIANT, windows, AMPLE_MS))


async def test_a_version_that_is_not_served_is_unavailable(backend: TritonBackend) -> None:
    """The catalog names exact versions; another version is another model."""
    other = replace(FAST_VARIANT, version=7)
    with pytest.raises(BackendUnavailable):
        await backend.infer(other, make_windows(1), AMPLE_MS)
    with pytest.raises(BackendUnavailable, match="version_policy"):
        await backend.load(other)


async def test_a_model_published_later_can_be_loaded(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """A new catalog is served without a restart."""
    late = make_variant("late", 1.0, batch_invariant=True)
    tiny.write_model(triton.options.model_repository, "late")
    await backend.load(late)
    windows = make_windows(2)
    assert_right(windows, await backend.infer(late, windows, AMPLE_MS))


async def test_what_is_unloaded_is_gone_unless_its_name_is_kept(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """Triton unloads a model with all of its versions, and one of them may be served."""
    variant = make_variant(
        "passing", 1.0, sha256=tiny.write_model(triton.options.model_repository, "passing")
    )
    await backend.load(variant)
    await backend.unload(variant, kept=[replace(variant, version=2)])
    assert (await backend.hashes())["passing/1"] == variant.sha256
    await backend.unload(variant, kept=[FAST_VARIANT])
    await backend.unload(variant, kept=[])  # nothing to do
    with pytest.raises(BackendUnavailable):
        await backend.infer(variant, make_windows(1), AMPLE_MS)
    assert "passing/1" not in await backend.hashes()


async def test_logits_that_are_not_finite_are_the_model_server_s_error(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """An answer read from them would be "no answer", and sure of it."""
    sha256 = tiny.write_model(triton.options.model_repository, "nan", penalty=np.inf)
    variant = make_variant("nan", 1.0, sha256=sha256)
    await backend.load(variant)
    with pytest.raises(InvalidLogits, match=r"nan: .* not finite"):
        await backend.infer(variant, make_windows(3), AMPLE_MS)
    await backend.unload(variant, kept=[])


@pytest.mark.parametrize(
    ("shape", "datatype", "outputs"),
    [
        ((1, 4), np.float16, ("start_logits", "end_logits")),
        ((2, 3), np.float32, ("start_logits", "end_logits")),
        ((1, 4), np.float32, ("start_logits", "logits")),
    ],
)
def test_a_reply_of_another_form_is_the_model_server_s_error(
    shape: tuple[int, int], datatype: type[np.generic], outputs: tuple[str, str]
) -> None:
    """It must be counted as a failure of the model, not of the gateway."""
    reply = pb.ModelInferResponse(model_name="odd")
    for name in outputs:
        reply.outputs.add(name=name, datatype="FP32", shape=(1, 4))
        reply.raw_output_contents.append(np.zeros(shape, datatype).tobytes())
    with pytest.raises(InvalidLogits, match=r"odd: .*FP32"):
        read_logits(reply)


async def test_a_bad_request_leaves_the_next_one_unharmed(backend: TritonBackend) -> None:
    """An error belongs to one request."""
    windows = make_windows(1)
    bad = replace(windows, attention_mask=windows.attention_mask[:, :10])
    with pytest.raises(BackendError):
        await backend.infer(SINGLE_VARIANT, bad, AMPLE_MS)
    assert_right(windows, await backend.infer(SINGLE_VARIANT, windows, AMPLE_MS))


@pytest.mark.parametrize("variant", [SLOW_VARIANT, SLOW_SINGLE_VARIANT], ids=lambda v: v.name)
async def test_requests_past_their_deadline_are_not_run(
    backend: TritonBackend, triton: RunningTriton, variant: Variant
) -> None:
    """Triton's batcher drops what gRPC has ended; without `dynamic_batching` it would run it all."""
    windows = make_windows(1)
    await backend.infer(variant, windows, AMPLE_MS)

    async def give_up() -> None:
        with pytest.raises(DeadlineExceeded):
            await backend.infer(variant, windows, budget_ms=20.0)

    port = triton.options.metrics_port
    before = local_triton.counter(port, "nv_inference_count", variant.name)
    await asyncio.gather(*(give_up() for _ in range(40)))
    await backend.infer(variant, windows, AMPLE_MS)
    assert local_triton.counter(port, "nv_inference_count", variant.name) < before + 40


async def test_an_abandoned_request_is_cancelled(backend: TritonBackend) -> None:
    """A client that has gone must not keep the queue full."""
    task = asyncio.create_task(backend.infer(SLOW_VARIANT, make_windows(24), AMPLE_MS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    windows = make_windows(1)
    assert_right(windows, await backend.infer(FAST_VARIANT, windows, AMPLE_MS))


@pytest.mark.parametrize("variant", [FAST_VARIANT, SINGLE_VARIANT], ids=lambda v: v.name)
async def test_no_request_waits_for_the_batcher_s_clock(
    backend: TritonBackend, variant: Variant
) -> None:
    """With a queue policy or priorities, Triton 24.10 lets requests lie for 500 ms (seen)."""
    windows = make_windows(1)
    took_ms = []
    for _ in range(30):
        replies = await asyncio.gather(
            *(backend.infer(variant, windows, AMPLE_MS) for _ in range(4))
        )
        took_ms.append(max(reply.infer_ms for reply in replies))
    assert np.quantile(took_ms, 0.8) < 400


@pytest.mark.parametrize(
    ("code", "details", "expected"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", BackendUnavailable),
        (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'x'", VariantUnavailable),
        (grpc.StatusCode.INTERNAL, "Stub process 'x' is not healthy.", VariantUnavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input", BackendError),
        *((code, "", BackendError) for code in grpc.StatusCode if code.name == "UNKNOWN"),
    ],
)
def test_every_status_of_triton_is_one_of_our_errors(
    code: grpc.StatusCode, details: str, expected: type[BackendError]
) -> None:
    """The frontends know our errors only."""
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, empty, empty, details=details)
    assert type(map_triton_error(error, "x")) is expected


async def counted(backend: TritonBackend, model: str) -> int:
    """Return how many requests of the model Triton says that it has answered."""
    statistics = await backend._call("ModelStatistics", pb.ModelStatisticsRequest(name=model))
    return sum(each.inference_stats.success.count for each in statistics.model_stats)


async def until_counted(backend: TritonBackend, model: str, n: int) -> None:
    """Return when Triton has counted them: it sends an answer before it counts it."""
    async with asyncio.timeout(60):
        while await counted(backend, model) < n:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def work_of_others(backend: TritonBackend) -> float:
    """Return the mean load by others on the counted model.

    Other tests share this server, and what they abandoned may still run on their models.
    """
    return (await backend.external_load()).get(COUNTED, 0.0)


async def test_the_work_of_another_gateway_on_the_same_server_is_seen(
    backend: TritonBackend, triton: RunningTriton
) -> None:
    """Who waits behind it must know of it; one's own work is not counted twice."""
    other = TritonBackend(triton.options.grpc_url)
    windows, variant = make_windows(1), variant_of(COUNTED, batch_invariant=True)
    before = await counted(backend, COUNTED)
    assert await work_of_others(backend) == 0.0
    await asyncio.gather(*(backend.infer(variant, windows, AMPLE_MS) for _ in range(4)))
    await until_counted(backend, COUNTED, before + 4)
    assert await work_of_others(backend) == 0.0
    await asyncio.gather(*(other.infer(variant, windows, AMPLE_MS) for _ in range(8)))
    await until_counted(backend, COUNTED, before + 12)
    assert 1.0 < await work_of_others(backend) < 8.1
    assert await work_of_others(backend) == 0.0
    await other.close()
