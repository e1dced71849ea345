"""Requests with their arrival times: made from a process and a mix, or read from a CSV file.

The CSV is the seam to a real system: what the simulator plays, an open-loop driver can play too.
Columns: `arrival_ms` (needed), `latency_ms`, `min_f1`, `policy`, `timeout_ms`, `slo_class`,
`priority`, `question` (an id of the recording). What is absent or empty: the class's default,
and a question drawn from the recording.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway import slo
from gateway.domain import Slo, SloPolicy
from gateway.errors import BertierError, InvalidHeader, UnknownClass
from gateway.slo import DEADLINE_FACTOR, STANDARD_CLASSES
from loadtest.lab.arrivals import PROCESSES, Times
from loadtest.lab.mixes import Mix
from loadtest.lab.recording import Recording

COLUMNS = (
    "arrival_ms",
    "latency_ms",
    "min_f1",
    "policy",
    "timeout_ms",
    "slo_class",
    "priority",
    "question",
)
DEFAULT_CLASS = "standard"


class TraceError(BertierError):
    """A trace that cannot be played; the message names the line."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: its arrival time, its SLO, and its question in the recording."""

    index: int
    arrival_ms: float
    slo: Slo
    question: int
    feasible: bool = True  # False: an SLO that no plan can meet, on purpose
    caller: int = -1  # number of the caller in a closed loop; -1: open loop


Trace = list[TraceRequest]


def make(
    process: str, rate: float, seconds: float, mix: Mix, recording: Recording, seed: int
) -> Trace:
    """Return requests at `rate` per second: one stream of randomness each for times and contents.

    Questions go round in shuffled order, so that every run has the recording's mean.
    """
    times = PROCESSES[process](rate, seconds, np.random.default_rng([seed, 1]))
    return at_times(times, mix, recording, seed)


def at_times(times: Times, mix: Mix, recording: Recording, seed: int) -> Trace:
    """Return requests at these times, ms, with contents as `make` draws them."""
    rng = np.random.default_rng([seed, 2])
    kinds = rng.choice(len(mix), len(times), p=[m.share for m in mix])
    rounds = math.ceil(len(times) / len(recording)) if len(times) else 0
    order = [i for _ in range(rounds) for i in rng.permutation(len(recording)).tolist()]
    return [
        TraceRequest(i, float(t), mix[k].slo, order[i], mix[k].feasible)
        for i, (t, k) in enumerate(zip(times, kinds.tolist(), strict=True))
    ]


def write(path: Path, trace: Trace, recording: Recording) -> None:
    """Write a trace so that `read` gives the same one back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS)
        for request in trace:
            s = request.slo
            out.writerow(
                [
                    f"{request.arrival_ms:.3f}",
                    *(f"{s.latency_ms:g}", f"{s.min_f1:g}", str(s.policy), f"{s.timeout_ms:g}"),
                    *(s.slo_class, s.priority, recording.ids[request.question]),
                ]
            )


def read(path: Path, recording: Recording, best_floor: float, seed: int = 0) -> Trace:
    """Return the requests of a CSV file in the order of their arrival. Raises: TraceError."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise TraceError(f"{path}: cannot be read: {exc}") from exc
    found = list(_requests(rows, path, recording, best_floor, np.random.default_rng(seed)))
    if not found:
        raise TraceError(f"{path}: no request in it; the first line names the columns")
    found.sort(key=lambda a: a.arrival_ms)
    return [
        TraceRequest(i, a.arrival_ms - found[0].arrival_ms, a.slo, a.question, a.feasible)
        for i, a in enumerate(found)
    ]


def _requests(
    rows: list[dict[str, str]],
    path: Path,
    recording: Recording,
    best_floor: float,
    rng: np.random.Generator,
) -> Iterable[TraceRequest]:
    known = {name: i for i, name in enumerate(recording.ids)}
    for line, row in enumerate(rows, start=2):
        try:
            at, slo = float(row["arrival_ms"]), _slo(row, best_floor)
            if not math.isfinite(at):
                raise ValueError("arrival_ms is not finite")
        except KeyError as exc:
            raise TraceError(f"{path}:{line}: column {exc} is missing") from exc
        except (ValueError, TypeError, InvalidHeader, UnknownClass) as exc:
            raise TraceError(f"{path}:{line}: {exc}") from exc
        drawn = int(rng.integers(len(recording)))
        question = known.get(row.get("question") or "", drawn)
        yield TraceRequest(0, at, slo, question, slo.min_f1 <= best_floor)


def _slo(row: Mapping[str, str], best_floor: float) -> Slo:
    """Return the SLO of a row, by the gateway's own grammar and defaults."""
    name = row.get("slo_class") or DEFAULT_CLASS
    said = slo.parse(
        {
            "slo-latency-ms": row.get("latency_ms") or None,
            "slo-min-f1": row.get("min_f1") or None,
            "slo-policy": row.get("policy") or None,
            "x-envoy-expected-rq-timeout-ms": row.get("timeout_ms") or None,
        }.get
    )
    base = STANDARD_CLASSES.get(name, STANDARD_CLASSES[DEFAULT_CLASS])
    latency_ms = said.latency_ms or base.latency_ms
    policy = said.policy or base.policy
    min_f1 = said.min_f1 if said.min_f1 is not None else max(0.0, best_floor - base.below_best)
    timeout_ms = said.timeout_ms or default_timeout_ms(latency_ms, policy)
    return Slo(latency_ms, min_f1, policy, timeout_ms, name, int(row.get("priority") or 3))


def default_timeout_ms(latency_ms: float, policy: SloPolicy) -> float:
    """Return the deadline of a request that names none."""
    return latency_ms if policy is SloPolicy.STRICT else DEADLINE_FACTOR * latency_ms
