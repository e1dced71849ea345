"""What a gateway decided, played again under another catalog or policy: what would have happened.

A record is a file of JSON lines, one a request, in any order, without texts or ids of callers:

    v             1, the version of this form
    arrival_ms    when the request was read, on any monotonic clock
    bucket        tokens of a window, padded          n_windows     windows of the question
                  both null: refused, or too late, before it was read
    latency_ms, min_f1, policy, timeout_ms, slo_class, priority     its SLO, every default filled in
    plan          the plan chosen, null: refused      reason        of the decision, as the metric's label
    predicted_ms  of the plan chosen, from the decision on; null: refused
    took_ms       from the arrival to the end
    outcome       "answered", "refused", "expired" or "failed"

Where a candidate catalog failed first, `candidate` holds its plan, reason, predicted_ms and outcome; not replayed.
Unknown fields are ignored, so that a gateway may write more. Texts are not kept, so each request is
given a recorded question of its size (the nearest there is), or any where its size is not known; F1 is
then that of a typical question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.catalog.schema import QA
from gateway.domain import Size, Slo, SloPolicy
from gateway.errors import BertierError
from loadtest.lab.recording import Recording
from loadtest.lab.traces import Trace, TraceRequest
from loadtest.lab.world import World


class RecordError(BertierError):
    """A record of decisions that cannot be read; the message names the line."""


class Decided(BaseModel):
    """One line of a record."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    v: Literal[1]
    arrival_ms: float
    bucket: int | None = Field(gt=0)
    n_windows: int | None = Field(gt=0)
    latency_ms: float = Field(gt=0)
    min_f1: float = Field(ge=0, le=1)
    policy: SloPolicy
    timeout_ms: float = Field(gt=0)
    slo_class: str
    priority: int = 3
    plan: str | None
    reason: str
    predicted_ms: float | None
    took_ms: float = Field(ge=0)
    outcome: Literal["answered", "refused", "expired", "failed"]
    task: str = QA  # absent: question answering


@dataclass(frozen=True, slots=True)
class Happened:
    """What the record itself says; shares of all requests."""

    n: int
    in_time: float
    by_certificate: float  # in time, from a plan whose floor (in the catalog at hand) is enough
    refused: float
    expired: float
    failed: float
    plans: Mapping[str, int]


def read(path: Path) -> list[Decided]:
    """Return the decisions about questions by their arrival; classifications are left out. Raises: RecordError."""
    found = []
    try:
        with path.open() as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_line(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as exc:
        raise RecordError(f"{path}: cannot be read: {exc}") from exc
    found = [d for d in found if d.task == QA]
    if not found:
        raise RecordError(
            f"{path}: no decision about a question in it; one JSON object a line is expected"
        )
    return sorted(found, key=lambda d: d.arrival_ms)


def _line(line: str, where: str) -> Decided:
    try:
        return Decided.model_validate_json(line)
    except ValidationError as exc:
        first = exc.errors()[0]
        field = ".".join(map(str, first["loc"])) or "line"
        raise RecordError(f"{where}: {field}: {first['msg']}") from exc


def write(path: Path, decisions: Sequence[Decided]) -> None:
    """Write a record; what `read` reads."""
    path.write_text("".join(f"{d.model_dump_json()}\n" for d in decisions))


def trace_of(decisions: Sequence[Decided], recording: Recording, best_floor: float) -> Trace:
    """Return the requests of a record, each with a recorded question of its size."""
    by_size = _by_size(recording)
    rng = np.random.default_rng(0)
    began = decisions[0].arrival_ms
    return [
        TraceRequest(
            i,
            d.arrival_ms - began,
            Slo(d.latency_ms, d.min_f1, d.policy, d.timeout_ms, d.slo_class, d.priority),
            int(rng.choice(_like(d, by_size))),
            d.min_f1 <= best_floor,
        )
        for i, d in enumerate(decisions)
    ]


def happened(decisions: Sequence[Decided], world: World) -> Happened:
    """Return what the record says of itself."""
    floors = {name: plan.certified_f1 for name, plan in world.plans.items()}
    n, in_time = len(decisions), [_in_time(d) for d in decisions]
    plans: dict[str, int] = {}
    for d in decisions:
        plans[d.plan or "(none)"] = plans.get(d.plan or "(none)", 0) + 1
    certified = [
        ok and floors.get(d.plan or "", 0.0) >= d.min_f1
        for d, ok in zip(decisions, in_time, strict=True)
    ]
    ends = {end: sum(d.outcome == end for d in decisions) / n for end in _ENDS}
    return Happened(n, sum(in_time) / n, sum(certified) / n, **ends, plans=plans)


_ENDS = ("refused", "expired", "failed")


def _in_time(d: Decided) -> bool:
    return d.outcome == "answered" and d.took_ms <= d.latency_ms


def _by_size(recording: Recording) -> dict[Size, list[int]]:
    found: dict[Size, list[int]] = {}
    for i, size in enumerate(recording.sizes):
        found.setdefault(size, []).append(i)
    return found


def _like(d: Decided, by_size: Mapping[Size, list[int]]) -> list[int]:
    """Return the recorded questions that may stand for it."""
    if d.bucket is None or d.n_windows is None:
        return [i for alike in by_size.values() for i in alike]
    return by_size[_nearest(Size(d.bucket, d.n_windows), by_size)]


def _nearest(size: Size, sizes: Mapping[Size, Any]) -> Size:
    """Return the recorded size with the most similar number of windows, then of tokens."""
    return min(
        sizes, key=lambda s: (abs(s.n_windows - size.n_windows), abs(s.bucket - size.bucket))
    )
