"""The in-process backend: ONNX Runtime on this host, each window alone, no model server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime as ort

from gateway.backends.protocol import (
    LABEL_OUTPUTS,
    SPAN_OUTPUTS,
    Check,
    checked_logits,
    joined,
    key_of,
    label_logits_of,
    logits_of,
    outputs_of,
)
from gateway.catalog import store
from gateway.catalog.host import usable_cores, usable_cpu
from gateway.catalog.schema import Precision, Variant
from gateway.domain import Floats, Inference, LabelLogits, Logits, Trust, Windows
from gateway.errors import BackendError, BackendUnavailable, DeadlineExceeded

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
GPU, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def providers_of(precision: Precision, available: Collection[str]) -> list[str]:
    """Return what runs a model: only FP16 is made for a GPU; INT8 would be slower there, and another's."""
    return [GPU, CPU] if precision is Precision.FP16 and GPU in available else [CPU]


def open_session(
    path: Path, threads: int = 1, precision: Precision = Precision.INT8_DYNAMIC
) -> ort.InferenceSession:
    """Return a session as every backend here runs it. Raises: BackendUnavailable."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        providers = providers_of(precision, ort.get_available_providers())
        return ort.InferenceSession(path, options, providers=providers)
    except Exception as exc:  # onnxruntime raises many kinds, all meaning: not loadable
        raise BackendUnavailable(
            f"{path}: cannot be loaded ({exc}); check with 'bertier validate'"
        ) from exc


def run(session: ort.InferenceSession, windows: Windows) -> Logits:
    """Return the logits of all windows, each run alone: what a batch of one gives.

    Raises: InvalidLogits.
    """
    return logits_of("the model", windows, *_run_rows(session, windows, SPAN_OUTPUTS))


def run_labels(session: ort.InferenceSession, windows: Windows) -> LabelLogits:
    """Return the same of a model that classifies. Raises: InvalidLogits."""
    return label_logits_of("the model", windows, *_run_rows(session, windows, LABEL_OUTPUTS))


def _run_rows(
    session: ort.InferenceSession, windows: Windows, outputs: Sequence[str]
) -> list[Floats]:
    names = [i.name for i in session.get_inputs()]
    return joined([_run_row(session, names, windows, r, outputs) for r in range(windows.n_windows)])


def _run_row(
    session: ort.InferenceSession,
    names: list[str],
    windows: Windows,
    row: int,
    outputs: Sequence[str],
) -> list[Floats]:
    feed = {name: getattr(windows, name)[row : row + 1] for name in names}
    found: list[Floats] = session.run(outputs, feed)
    return found


class EmbeddedBackend:
    """One session a variant, as many windows at once as there are cores."""

    name = "embedded"

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._hashes: dict[str, str] = {}
        self._cores = usable_cores()
        self._workers = ThreadPoolExecutor(self._cores, thread_name_prefix="infer")

    @property
    def engine(self) -> str:
        return f"onnxruntime {ort.__version__}"

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        session = self._sessions.get(key_of(variant))
        if session is None:
            raise BackendUnavailable(f"{variant.name}: version {variant.version} is not loaded")
        names, outputs = [i.name for i in session.get_inputs()], outputs_of(variant)
        loop, places = asyncio.get_running_loop(), asyncio.Semaphore(self._cores)
        called = time.perf_counter()
        begins: list[float] = []

        def work(row: int) -> list[Floats]:
            begins.append(time.perf_counter())
            if (begins[-1] - called) * 1e3 > budget_ms:
                raise DeadlineExceeded(f"{variant.name}: the time was up before a core was free")
            try:
                return _run_row(session, names, windows, row, outputs)
            except Exception as exc:  # onnxruntime's own kinds share no base
                raise BackendError(f"{variant.name}: inference failed") from exc

        async def in_turn(row: int) -> list[Floats]:
            async with places:  # a long context shares the cores with other requests
                return await loop.run_in_executor(self._workers, work, row)

        tasks = [asyncio.ensure_future(in_turn(row)) for row in range(windows.n_windows)]
        try:
            rows = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # after a failure, or when the caller left
                task.cancel()
        done, began = time.perf_counter(), min(begins)
        logits = checked_logits(variant, windows, joined(rows))
        return Inference(logits, (began - called) * 1e3, (done - began) * 1e3, len(tasks))

    async def hashes(self) -> Mapping[str, str]:
        return dict(self._hashes)

    async def load(self, variant: Variant) -> None:
        key = key_of(variant)
        if self._hashes.get(key) == variant.sha256:
            return
        path = store.model_path(self._repository, variant)
        if not path.exists():
            raise BackendUnavailable(f"{path}: missing; check it out again, or publish it")
        sha256 = await asyncio.to_thread(store.sha256_of, path)
        session = await asyncio.to_thread(open_session, path, 1, variant.precision)
        self._sessions[key], self._hashes[key] = session, sha256  # both, or neither

    async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
        self._sessions.pop(key_of(variant), None)
        self._hashes.pop(key_of(variant), None)
        return True

    async def checked(self, variant: Variant, check: Check) -> Trust:
        return await check(self)

    @property
    def cores(self) -> float:
        return usable_cpu()

    def capacity(self, variant: Variant) -> int:
        return 1

    async def external_load(self) -> Mapping[str, float]:
        return {}

    async def is_ready(self) -> bool:
        return True  # nothing to reach; what is loaded is the watcher's to say

    async def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
