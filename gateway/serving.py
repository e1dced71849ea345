"""What is served now: a catalog that was checked against the backend and the host it runs on.

A ServingSet is built whole, then swapped in; a set that fails its checks is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gateway import catalog as catalogs
from gateway import host
from gateway.backend import Backend
from gateway.catalog import Catalog
from gateway.domain import (
    Cell,
    Host,
    Option,
    Plan,
    Profile,
    Question,
    Size,
    Trust,
    Variant,
    Windows,
)
from gateway.errors import BackendError, DeadlineExceeded, RepositoryError
from gateway.latency import LatencyModel
from gateway.spans import MAX_TOKENS, SpanEncoder

log = logging.getLogger(__name__)

GOLDEN_BUDGET_MS = 30_000.0
PROFILE_RUNS = 9
PROFILE_BUCKETS = (64, 128, 256, 384)


@dataclass(frozen=True, slots=True)
class ServingSet:
    """A checked catalog with all that is needed to answer from it."""

    catalog: Catalog
    encoder: SpanEncoder
    trust: Mapping[str, Trust]  # by variant; one that is absent is not served
    profiles: Mapping[str, Profile]
    latency: LatencyModel
    problems: Mapping[str, str] = field(default_factory=dict)  # by variant that is not served: why

    def without(self, problems: Mapping[str, str]) -> ServingSet:
        """Return the set that no longer routes to the variants with a problem."""
        trust = {name: trust for name, trust in self.trust.items() if name not in problems}
        return replace(self, trust=trust, problems={**self.problems, **problems})

    def plans(self) -> list[Plan]:
        """Return the plans whose variants are all served."""
        return [p for p in self.catalog.plans if all(v in self.trust for v in p.variants)]

    def trust_of(self, plan: Plan) -> Trust:
        """Return the least trust of the plan's variants."""
        order = (Trust.UNCERTIFIED, Trust.TRANSFERRED, Trust.CERTIFIED)
        return min((self.trust[v] for v in plan.variants), key=order.index)

    def options(self, size: Size, quantile: float) -> list[Option]:
        """Return every plan with its predicted latency for a request of this size."""
        return [self._option(plan, size, quantile) for plan in self.plans()]

    def _option(self, plan: Plan, size: Size, quantile: float) -> Option:
        idle_ms = self.latency.idle_ms(plan, size, quantile)
        return Option(
            plan=plan,
            trust=self.trust_of(plan),
            size_bytes=sum(self.catalog.variant(v).size_bytes for v in plan.variants),
            cost_ms=self.latency.cost_ms(plan, size),
            idle_ms=idle_ms,
            predicted_ms=idle_ms + self.latency.wait_ms(plan),
        )


async def prepare(
    repository: Path, catalog: Catalog, backend: Backend, previous: ServingSet | None = None
) -> ServingSet:
    """Check files, hashes and golden answers, profile where the host is new; return the set.

    What `previous` measured on this host is not measured again.
    Raises: RepositoryError when nothing of the catalog can be served.
    """
    _check_files(repository, catalog)
    _check_profiles(catalog)
    encoder = SpanEncoder.from_file(repository / catalogs.TOKENIZER)
    trust: dict[str, Trust] = {}
    profiles: dict[str, Profile] = {}
    problems: dict[str, str] = {}
    here = host.describe(backend.engine)
    for variant in catalog.variants:
        try:
            state = await _check_variant(variant, catalog, encoder, backend, here)
            known = _measured_before(variant, previous, here)
            profile = known or await _profile(variant, encoder, catalog, backend, here)
        except (BackendError, DeadlineExceeded) as exc:
            log.error("%s: not served: %s", variant.name, exc)
            problems[variant.name] = str(exc)
        else:
            trust[variant.name] = state
            profiles[variant.name] = profile
    if not trust:
        reasons = "; ".join(f"{name}: {why}" for name, why in problems.items())
        raise RepositoryError(f"{repository}: no variant of the catalog can be served: {reasons}")
    instances = {v.name: v.instances for v in catalog.variants}
    latency = LatencyModel(profiles, here.cores, instances)
    return ServingSet(catalog, encoder, trust, profiles, latency, problems)


def _check_files(repository: Path, catalog: Catalog) -> None:
    problem = catalogs.check_tokenizer(repository, catalog)
    if problem:
        raise RepositoryError(problem)


def _check_profiles(catalog: Catalog) -> None:
    """Refuse a profile that says nothing of the longest windows: no latency could be predicted."""
    for variant in catalog.variants:
        cells = variant.profile.cells
        if not any(c.batch == 1 and c.bucket >= MAX_TOKENS and c.p50_ms > 0 for c in cells):
            raise RepositoryError(
                f"{variant.name}: its latency profile does not reach {MAX_TOKENS} tokens;"
                " publish it again"
            )


def hash_problem(variant: Variant, hashes: Mapping[str, str]) -> str | None:
    """Return what is wrong when the model server holds another file than the catalog names."""
    found = hashes.get(f"{variant.name}/{variant.version}")
    if found == variant.sha256:
        return None
    if found is None:
        return f"version {variant.version} is not loaded; see the server's log"
    return f"the server has sha256 {found[:12]}, the catalog says {variant.sha256[:12]}"


def _measured_before(variant: Variant, previous: ServingSet | None, here: Host) -> Profile | None:
    """Return the profile that an earlier set has of the same model on the same host."""
    if previous is None or variant.name not in previous.profiles:
        return None
    same_model = previous.catalog.variant(variant.name).sha256 == variant.sha256
    profile = previous.profiles[variant.name]
    return profile if same_model and profile.host == here else None


async def _check_variant(
    variant: Variant, catalog: Catalog, encoder: SpanEncoder, backend: Backend, here: Host
) -> Trust:
    """Return how far the variant's certificate holds here.

    Raises: BackendError, DeadlineExceeded when it cannot be served.
    """
    await backend.load(variant)
    problem = hash_problem(variant, await backend.hashes())
    if problem:
        raise BackendError(problem)
    return await _golden(variant, catalog, encoder, backend, here)


async def _golden(
    variant: Variant, catalog: Catalog, encoder: SpanEncoder, backend: Backend, here: Host
) -> Trust:
    """Ask the golden inputs; the same logits as where it was certified: the certificate holds."""
    worst = 0.0
    for golden, expected in zip(catalog.golden_inputs, variant.golden, strict=True):
        windows = encoder.encode(Question(golden.question, golden.context))
        found = await backend.infer(variant, windows, GOLDEN_BUDGET_MS)
        n = len(expected.start)
        for got, want in ((found.logits.start, expected.start), (found.logits.end, expected.end)):
            gap = np.abs(got[0, :n] - np.asarray(want)).max()
            worst = float(np.maximum(worst, gap))  # unlike max(), keeps a NaN
    if not worst <= variant.golden_tolerance:
        log.warning(
            "%s: golden logits differ by %.3f (tolerance %.3f): uncertified on this host",
            variant.name,
            worst,
            variant.golden_tolerance,
        )
        return Trust.UNCERTIFIED
    certified_on = {p.certificate.host for p in catalog.plans if variant.name in p.variants}
    return Trust.CERTIFIED if here in certified_on else Trust.TRANSFERRED


async def _profile(
    variant: Variant, encoder: SpanEncoder, catalog: Catalog, backend: Backend, here: Host
) -> Profile:
    """Return the catalog's profile, or a short one of our own where the host is another."""
    if here == variant.profile.host:
        return variant.profile
    golden = catalog.golden_inputs[0]
    windows = encoder.encode(Question(golden.question, golden.context))
    cells = [await _measure(variant, windows, bucket, backend) for bucket in PROFILE_BUCKETS]
    log.info(
        "%s: profiled on this host: %s",
        variant.name,
        ", ".join(f"{c.bucket} tokens {c.p50_ms:.1f} ms" for c in cells),
    )
    return Profile(here, variant.profile.threads, tuple(cells))


async def _measure(variant: Variant, windows: Windows, bucket: int, backend: Backend) -> Cell:
    """Return the measured median of a bucket, with the tails that the catalog's profile has.

    A few runs give a median, but no tail.
    """
    padded = _filled(windows, bucket)
    await backend.infer(variant, padded, GOLDEN_BUDGET_MS)
    times_ms = []
    for _ in range(PROFILE_RUNS):
        began = time.perf_counter()
        await backend.infer(variant, padded, GOLDEN_BUDGET_MS)
        times_ms.append((time.perf_counter() - began) * 1e3)
    p50 = float(np.median(times_ms))
    known = variant.profile.cell(bucket)
    return Cell(
        bucket, 1, p50, p50 * known.p95_ms / known.p50_ms, p50 * known.p99_ms / known.p50_ms
    )


def _filled(windows: Windows, bucket: int) -> Windows:
    """Return one window of exactly `bucket` tokens, all attended: the most work of its bucket."""
    ids = np.resize(windows.input_ids[:1], (1, bucket))
    ones = np.ones_like(ids)
    offsets = np.zeros((1, bucket, 2), np.int64)
    return Windows(ids, ones, np.zeros_like(ids), offsets, ones.astype(np.bool_), bucket)
