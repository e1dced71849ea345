"""The inner state of a gateway, for the person on call: queues, predictions, breakers, budgets, caches.

Holds no text of a caller, no key and no name of one. Reads only, and asks no model server. Of several workers each
shows its own state; answers that are remembered for feedback are those of all.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.backends.pool import Replicas
from gateway.backends.triton import TritonBackend
from gateway.clock import now_ms
from gateway.domain import Size
from gateway.latency.model import LatencyModel
from gateway.qa.codec import TYPICAL_TOKENS
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet

STARTED_S = time.monotonic()
MEDIAN = 0.5


async def inner_state(service: AnswerService, proc: Path = Path("/proc/self")) -> dict[str, Any]:
    """Return the state as JSON values."""
    serving = service.serving
    of_serving = {} if serving is None else _of_serving(serving, now_ms())
    _, n_remembered = await service.feedback.known(serving)
    return {
        "process": _process(proc),
        "workers": _workers(service),
        "admission": _admission(service),
        **of_serving,
        "budgets": _budgets(service),
        "shadow": _shadow(service),
        "candidate": _candidate(service),
        "caches": _caches(service),
        "feedback": {
            "remembered": n_remembered,
            "most": service.settings.feedback_requests,
        },
        "decisions_unwritten": len(service.decisions),
        "replicas": _replicas(service),
    }


def _process(proc: Path) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "up_s": round(time.monotonic() - STARTED_S, 1),
        "rss_bytes": _rss_bytes(proc),
        "open_files": _n_open(proc),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }


def _workers(service: AnswerService) -> dict[str, Any] | None:
    """Return which of several workers this is, and the work of all; None: it is the only process.

    Everything else in the state is this worker's own, but for remembered answers.
    """
    workers = service.admission.workers
    if workers is None or workers.own is None:
        return None
    slots = sorted((workers.own, *workers.others), key=lambda slot: slot.worker)
    return {
        "this": workers.own.worker + 1,  # as in the log
        "of": len(slots),
        "in_flight": sum(slot.in_flight for slot in slots),
        "connections": sum(slot.connections for slot in slots),
        "each": [
            {
                "number": slot.worker + 1,
                "state": slot.state.name.lower(),
                "in_flight": slot.in_flight,
                "connections": slot.connections,
            }
            for slot in slots
        ],
    }


def _rss_bytes(proc: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None  # not Linux


def _n_open(proc: Path) -> int | None:
    with suppress(OSError):
        return sum(1 for _ in (proc / "fd").iterdir())
    return None


def _admission(service: AnswerService) -> dict[str, Any]:
    admission = service.admission
    return {
        "in_flight": admission.in_flight,
        "most": service.settings.max_in_flight,
        "waiting": admission.n_waiting,
        "refusals_held": admission.n_held,
        "expected_wait_ms": round(admission.wait_ms, 3),
        "loop_late_ms": round(admission.lag.late_ms, 3),
    }


def _of_serving(serving: ServingSet, now: float) -> dict[str, Any]:
    """Return what belongs to the catalog that is served."""
    queue = serving.latency.queue
    return {
        "queue": {
            "cores": queue.cores,
            "in_flight": queue.in_flight,
            "variants": {name: _line(serving, name, now) for name in serving.trust},
        },
        "predictor": _predictor(serving.latency),
        "breakers": serving.breakers.states(now),
        "not_served": dict(serving.problems),
    }


def _line(serving: ServingSet, name: str, now: float) -> dict[str, Any]:
    line = serving.latency.queue.lines[name]
    stage = serving.latency.predict_stage(name, Size(TYPICAL_TOKENS, 1), MEDIAN, now)
    return {
        "instances": line.slots,
        "busy": line.busy,
        "windows": line.windows,
        "waiting": sum(not job.gone for job in line.waiting),
        "external": line.external,
        "wait_ms": round(stage.wait_ms, 3),
    }


def _predictor(latency: LatencyModel) -> dict[str, Any]:
    """Return what was learned: seen / expected, of all answers and of each variant and length."""
    correction = latency.correction
    cells = [
        {
            "variant": variant,
            "tokens": bucket,
            "answers": cell.n,
            "factor": round(cell.factor, 3),
            "p95_alone": round(cell.at_rest(1).factor, 3),
        }
        for variant, bucket, cell in latency.learned()
    ]
    return {"answers": correction.n, "slowness": round(correction.slowness, 3), "cells": cells}


def _budgets(service: AnswerService) -> dict[str, Any]:
    backend = service.backend
    found = {"retries": _budget(service.retries_left)}
    if isinstance(backend, TritonBackend):
        found["repeats"] = _budget(backend.repeats_left)
    return found


def _budget(left: tuple[float, float]) -> dict[str, float]:
    return {"left": round(left[0], 2), "most": left[1]}


def _shadow(service: AnswerService) -> dict[str, Any]:
    tests = service.shadow.certificate_tests.agreement
    plans = {
        name: {
            "evidence_log10": round(test.log10_e_value, 3),
            "broken": test.broken,
            "seen": test.seen.total(),
        }
        for name, test in tests.items()
        if test.seen
    }
    return {
        "share": service.settings.shadow_share,
        "waiting": service.shadow.n_waiting,
        "plans": plans,
    }


def _candidate(service: AnswerService) -> dict[str, Any] | None:
    """Return what of a candidate is not in /readyz; None: none is tried."""
    running = service.rollout.running
    if running is None:
        return None
    return {"sha256": running.sha256, "waiting": service.rollout.n_waiting, "worse": running.worse}


def _caches(service: AnswerService) -> dict[str, Any]:
    n_answers, n_bytes = service.cached_answers
    words, contexts = (0, 0) if service.serving is None else service.serving.encoder.cached_chars
    return {
        "answers": n_answers,
        "answers_bytes": n_bytes,
        "words_chars": words,
        "contexts_chars": contexts,
    }


def _replicas(service: AnswerService) -> Mapping[str, Any]:
    backend = service.backend
    return backend.states() if isinstance(backend, Replicas) else {}
