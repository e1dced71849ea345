"""Profiles the latency of a variant on this host through the backend, in a few seconds.

Other work can lengthen a run, never shorten it. So the lower quartile of a few runs estimates the median of an
idle host, and runs beside requests in flight count only where there are no others. A profile that other work may
have distorted is marked, to be measured again: its runs scatter, or it is slower than the rest of the catalog explains.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from gateway.backends.protocol import Backend
from gateway.catalog.schema import Cell, Host, Profile, Variant
from gateway.domain import Windows
from gateway.latency.model import GATEWAY_MS

log = logging.getLogger(__name__)

BUDGET_MS = 30_000.0  # of one run
RUNS = 9
ENOUGH_UNDISTURBED_RUNS = 4
ENOUGH_MS = 1_000.0  # as much as the fastest runs of one cell take: then FEWEST_RUNS are enough
FEWEST_RUNS = 4
BUCKETS = (64, 128, 256, 384)
PROBE_RUNS = 5
PROBE_BUCKET = 128
MOST_OFF = 1.5  # a profile of this host that is off by more was measured under other conditions
MOST_SCATTER = 1.5  # upper over lower quartile of a few runs, where nothing else takes the cores
MOST_SLOWER = (
    2.0  # of a variant here, against the catalog and the typical variant: models differ by less
)

Busy = Callable[[], bool]  # is any request in flight?


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile that holds here; not `undisturbed`: other work may have distorted it."""

    profile: Profile
    undisturbed: bool = True


def never_busy() -> bool:
    return False


async def profile(
    variant: Variant, sample: Windows, backend: Backend, here: Host, busy: Busy = never_busy
) -> Measured:
    """Return the catalog's profile where it is of this host and holds, else a short one of our own.

    Beside requests in flight a profile of this host is believed: they, too, make it look wrong.
    Raises: BackendError, DeadlineExceeded.
    """
    same_host = here == variant.profile.host
    if same_host:
        known = variant.profile.cell(PROBE_BUCKET)
        found_ms, undisturbed = await _typical_ms(
            variant, sample, known.bucket, backend, PROBE_RUNS, busy
        )
        if not undisturbed or _holds(known.p50_ms, found_ms):
            return Measured(variant.profile, undisturbed)
        log.warning(
            "%s: takes %.1f ms, its profile of this host says %.1f; it is measured again",
            variant.name,
            found_ms,
            known.p50_ms,
        )
    return await _measure(variant, sample, backend, here, busy)


def _holds(known_ms: float, found_ms: float) -> bool:
    """Say whether a time measured through a model server fits one measured without.

    The way there takes a small model longer than its work; predictions count it for all alike.
    """
    return known_ms / MOST_OFF <= found_ms <= known_ms * MOST_OFF + GATEWAY_MS


async def _measure(
    variant: Variant, sample: Windows, backend: Backend, here: Host, busy: Busy
) -> Measured:
    """Return a profile with the tails of the catalog's: a few runs tell a median, but no tail."""
    log.info("%s: measuring its latency on this host", variant.name)
    found, undisturbed = [], True
    for bucket in BUCKETS:
        p50, undisturbed_here = await _typical_ms(variant, sample, bucket, backend, RUNS, busy)
        found.append(p50)
        undisturbed = undisturbed and undisturbed_here
    # A shorter text never takes longer than a longer one.
    lowest = list(accumulate(reversed(found), min))[::-1]
    cells = [
        _with_tails(bucket, p50, variant.profile.cell(bucket))
        for bucket, p50 in zip(BUCKETS, lowest, strict=True)
    ]
    log.info(
        "%s: profiled on this host%s: %s",
        variant.name,
        "" if undisturbed else ", beside other work",
        ", ".join(f"{c.bucket} tokens {c.p50_ms:.1f} ms" for c in cells),
    )
    return Measured(Profile(here, variant.profile.threads, tuple(cells)), undisturbed)


def _with_tails(bucket: int, p50_ms: float, known: Cell) -> Cell:
    """Return a cell with the catalog's ratios of p95 and p99 to the median."""
    tails = (p50_ms * known.p95_ms / known.p50_ms, p50_ms * known.p99_ms / known.p50_ms)
    return Cell(bucket, 1, p50_ms, *tails)


def fastest_of(before: Profile, again: Profile) -> Profile:
    """Return the faster cells of two profiles of one host: other work only ever adds time."""
    faster = {c.bucket: c for c in before.cells if c.batch == 1}
    cells = (min(c, faster.get(c.bucket, c), key=_p50_ms) for c in again.cells)
    return replace(again, cells=tuple(cells))


def _p50_ms(cell: Cell) -> float:
    return cell.p50_ms


def doubtful(variants: Sequence[Variant], found: Mapping[str, Profile]) -> frozenset[str]:
    """Return the variants that are slower here than the others explain.

    Another host is slower or faster by some factor, which differs little between models; other programs come and
    go while one variant after the other is measured.
    """
    slower = {v.name: _slower(v.profile, found[v.name]) for v in variants if v.name in found}
    typical = float(np.median([x for row in slower.values() for x in row])) if slower else 1.0
    return frozenset(name for name, row in slower.items() if max(row) > MOST_SLOWER * typical)


def _slower(known: Profile, found: Profile) -> list[float]:
    """Return, by length, the ratio of measured to catalog time; the way to a model server is left out."""
    if found is known:
        return [1.0]
    return [
        max(0.0, c.p50_ms - GATEWAY_MS) / known.cell(c.bucket).p50_ms
        for c in found.cells
        if c.batch == 1
    ]


async def _typical_ms(
    variant: Variant, sample: Windows, bucket: int, backend: Backend, runs: int, busy: Busy
) -> tuple[float, bool]:
    """Return the lower quartile of some runs, and whether nothing disturbed them."""
    padded = filled(sample, bucket)
    await backend.infer(variant, padded, BUDGET_MS)
    undisturbed_ms, all_ms = list[float](), list[float]()
    for _ in range(runs):
        if len(all_ms) >= FEWEST_RUNS and len(all_ms) * min(all_ms) > ENOUGH_MS:
            break  # else a slow host would start in minutes
        before = busy()
        took_ms = (await backend.infer(variant, padded, BUDGET_MS)).infer_ms
        all_ms.append(took_ms)
        if not before and not busy():
            undisturbed_ms.append(took_ms)
    undisturbed = len(undisturbed_ms) >= min(ENOUGH_UNDISTURBED_RUNS, runs)
    times_ms = undisturbed_ms if undisturbed else all_ms
    return sustained_ms(times_ms, backend.cores), undisturbed and _steady(times_ms, backend.cores)


def _steady(times_ms: Sequence[float], cores: float) -> bool:
    """Say whether the runs took similar times; with a quota below one core that is not required."""
    low, high = np.quantile(times_ms, (0.25, 0.75))
    return cores < 1 or bool(high <= MOST_SCATTER * low + GATEWAY_MS)


def sustained_ms(times_ms: Sequence[float], cores: float) -> float:
    """Return the typical time of a run, one after the other.

    Under a quota below one core (CFS: 50 of every 100 ms) short runs go at full speed until it is used up. What
    counts is what lasts: the mean, no more than the fastest run by the share of a core.
    """
    quartile = float(np.quantile(times_ms, 0.25))
    if cores >= 1:
        return quartile
    return min(max(quartile, float(np.mean(times_ms))), min(times_ms) / cores)


def filled(windows: Windows, bucket: int) -> Windows:
    """Return one window of exactly `bucket` tokens, all attended: the most work of its bucket."""
    ids = np.resize(windows.input_ids[:1], (1, bucket))
    ones = np.ones_like(ids)
    offsets = np.zeros((1, bucket, 2), np.int64)
    return Windows(ids, ones, np.zeros_like(ids), offsets, ones.astype(np.bool_), bucket)
