"""What is asked, when, and under which SLO: from an arrival process and a mix, or from a CSV trace.

Both are the lab's (loadtest.lab); its requests get the text of real questions here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.catalog import store
from gateway.catalog.host import usable_cores
from gateway.catalog.store import Catalog
from gateway.domain import Slo
from gateway.qa.codec import SpanEncoder
from gateway.slo import STANDARD_CLASSES
from loadtest.lab import mixes, traces
from loadtest.lab.mixes import Mix
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace, default_timeout_ms
from loadtest.lab.world import GATEWAY_CPU_MS
from optimizer.data.question_sets import Example

SLO_DIGITS = 9  # after the point, in a header


@dataclass(frozen=True, slots=True)
class Request:
    """One question with its SLO and the time at which it is due."""

    index: int
    at_ms: float  # since the start of the run
    slo: Slo
    example: Example
    feasible: bool = True  # False: asked for what no plan gives, on purpose


Schedule = Sequence[Request]


def make(
    process: str, rate: float, seconds: float, mix: Mix, examples: Sequence[Example], seed: int
) -> list[Request]:
    """Return requests at `rate` per second, as the lab draws them."""
    trace = traces.make(process, rate, seconds, mix, _questions(examples), seed)
    return of_trace(trace, examples)


def read(path: Path, examples: Sequence[Example], best_floor: float) -> list[Request]:
    """Return the requests of a CSV trace. Raises: TraceError."""
    return of_trace(traces.read(path, _questions(examples), best_floor), examples)


def of_trace(trace: Trace, examples: Sequence[Example]) -> list[Request]:
    """Return the lab's requests with the questions they name by position."""
    return [Request(a.index, a.arrival_ms, a.slo, examples[a.question], a.feasible) for a in trace]


def headers(slo: Slo) -> dict[str, str]:
    """Return the whole SLO as request headers; a class is named only if every gateway has it.

    A floor is rounded down: one that is certified must not come out above itself.
    """
    said = {
        "SLO-Latency-Ms": _decimal(slo.latency_ms),
        "SLO-Min-F1": _decimal(slo.min_f1),
        "SLO-Policy": str(slo.policy),
        "Priority": f"u={slo.priority}",
    }
    if slo.slo_class in STANDARD_CLASSES:
        said["SLO-Class"] = slo.slo_class
    if slo.max_f1_loss is not None:
        said["SLO-Max-F1-Loss"] = _decimal(slo.max_f1_loss)
    if slo.min_answerable_f1 is not None:
        said["SLO-Min-Answerable-F1"] = _decimal(slo.min_answerable_f1)
    if slo.variant is not None:
        said["SLO-Variant"] = slo.variant
    if slo.timeout_ms < default_timeout_ms(slo.latency_ms, slo.policy):
        said["x-envoy-expected-rq-timeout-ms"] = _decimal(slo.timeout_ms)
    return said


def capacity_per_s(repository: Path, examples: Sequence[Example]) -> float:
    """Return the rate that fills this host's cores when the dearest variant answers everything.

    By the catalog's profile, as the lab reckons it: loads are shares of the same number.
    """
    catalog = store.read_questions(repository)
    encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
    profile = mixes.dearest(catalog).profile
    work_ms = 0.0
    for example in examples:
        windows = encoder.encode(example.as_question())
        work_ms += windows.n_windows * profile.cell(windows.input_ids.shape[1]).p50_ms
    return 1e3 * usable_cores() / (work_ms / len(examples) + GATEWAY_CPU_MS)


def mix_of(catalog: Catalog, name: str) -> Mix:
    """Return the lab's mix of this name, with SLOs that the catalog can meet."""
    return mixes.MIXES[name](catalog)


def facts(schedule: Schedule) -> Mapping[str, float]:
    """Return how long a schedule is, how much it asks for, and how many a second."""
    seconds = schedule[-1].at_ms / 1e3 if schedule else 0.0
    rate = (len(schedule) - 1) / seconds if seconds else math.nan
    return {"requests": len(schedule), "seconds": seconds, "rate_per_s": rate}


def _questions(examples: Sequence[Example]) -> Recording:
    """Return what the lab needs to know of questions whose answers nobody recorded."""
    return Recording("questions", tuple(e.id for e in examples), (), {})


def _decimal(value: float) -> str:
    scale = 10**SLO_DIGITS
    # Twice rounded: 0.29 * 10**9 lies a hair under its integer, and would lose a digit.
    digits = math.floor(round(value * scale, 3))
    return f"{digits / scale:.{SLO_DIGITS}f}".rstrip("0").rstrip(".")
