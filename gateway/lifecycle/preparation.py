"""From a catalog to a ServingSet: files, hashes, golden answers and latency, checked on this host.

A set that fails its checks is refused; a variant that fails them is left out, and tried again later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gateway.backends.pool import Replicas
from gateway.backends.protocol import Backend, Check, key_of
from gateway.catalog import host, store
from gateway.catalog.schema import GoldenLabelLogits, GoldenLogits, Host, Profile, Variant
from gateway.catalog.store import Catalog
from gateway.domain import Inference, LabelLogits, Question, Texts, Trust, Windows
from gateway.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidLogits,
    RepositoryError,
    VariantsUnserved,
)
from gateway.latency import profile
from gateway.latency.kept_profiles import NONE_KEPT, KeptProfiles
from gateway.latency.model import LatencyModel
from gateway.latency.profile import Measured
from gateway.qa.codec import MAX_TOKENS, SpanEncoder
from gateway.serving_set import ServingSet

log = logging.getLogger(__name__)

GOLDEN_BUDGET_MS = 30_000.0


@dataclass(frozen=True, slots=True)
class _Found:
    """A variant that can be served."""

    trust: Trust
    measured: Measured


async def prepare(
    repository: Path,
    catalog: Catalog,
    backend: Backend,
    previous: ServingSet | None = None,
    kept: KeptProfiles = NONE_KEPT,
) -> ServingSet:
    """Check files, hashes and golden answers, profile where the host is new; return the set.

    What `previous` measured on this host is not measured again, and what is `kept` of it is only probed.
    Raises: RepositoryError; VariantsUnserved when nothing of the catalog can be served.
    """
    _check_files(repository, catalog)
    _check_profiles(catalog)
    encoder = await encoder_for(repository, catalog, previous)
    look = await _Look.here(catalog, encoder, backend, previous, kept)
    found, problems = await look.at(catalog.variants)
    if not found:
        raise VariantsUnserved(f"{repository}: nothing can be served", problems)
    return _build(catalog, encoder, found, problems, look)


async def encoder_for(
    repository: Path, catalog: Catalog, previous: ServingSet | None
) -> SpanEncoder:
    """Return the encoder of a catalog: the one in use, with its caches, where the tokenizer is the same.

    Raises: RepositoryError.
    """
    if previous is not None and previous.catalog.tokenizer_sha256 == catalog.tokenizer_sha256:
        return previous.encoder
    _check_files(repository, catalog)
    return await asyncio.to_thread(SpanEncoder.from_file, repository / store.TOKENIZER)


async def recheck(
    repository: Path, serving: ServingSet, backend: Backend, kept: KeptProfiles = NONE_KEPT
) -> ServingSet:
    """Check the variants again that are not served; keep the others. Raises: RepositoryError."""
    _check_files(repository, serving.catalog)
    look = await _Look.here(serving.catalog, serving.encoder, backend, serving, kept)
    missing = [v for v in serving.catalog.variants if v.name not in serving.trust]
    found, problems = await look.at(missing)
    served = {name: _Found(t, _measured_in(serving, name)) for name, t in serving.trust.items()}
    checked_again = _build(serving.catalog, serving.encoder, served | found, problems, look)
    return replace(checked_again, breakers=serving.breakers.keeping(served.keys()))


async def measure_again(
    serving: ServingSet, backend: Backend, kept: KeptProfiles = NONE_KEPT
) -> ServingSet:
    """Measure the latency again that was measured beside other work; the faster of both counts.

    Raises: BackendError, DeadlineExceeded.
    """
    look = await _Look.here(serving.catalog, serving.encoder, backend, serving, kept)
    found = {name: _Found(t, _measured_in(serving, name)) for name, t in serving.trust.items()}
    for name in serving.under_load & found.keys():
        again = await look.measure_again(name, found[name].measured)
        found[name] = replace(found[name], measured=again)
    measured_anew = _build(serving.catalog, serving.encoder, found, serving.problems, look)
    return replace(measured_anew, breakers=serving.breakers)


async def readmit(serving: ServingSet, replicas: Replicas) -> None:
    """Check servers that are back, or had unloaded a variant, and ask them again where all is right."""
    catalog = serving.catalog
    look = await _Look.here(catalog, serving.encoder, replicas, serving, NONE_KEPT)
    for name, trust in serving.trust.items():
        variant = catalog.variant(name)
        await replicas.readmit(variant, look.check(variant), trust)


def capacity(catalog: Catalog, backend: Backend) -> tuple[float, dict[str, int]]:
    """Return the cores of all model servers together, and the instances of each variant on them.

    A profile under a quota below one core is that of the quota: such a server is one slow core.
    """
    servers = {v.name: backend.capacity(v) for v in catalog.variants}
    instances = {v.name: v.instances * servers[v.name] for v in catalog.variants}
    return max(1.0, backend.cores) * max(servers.values(), default=1), instances


def _build(
    catalog: Catalog,
    encoder: SpanEncoder,
    found: Mapping[str, _Found],
    problems: Mapping[str, str],
    look: _Look,
) -> ServingSet:
    profiles = {name: each.measured.profile for name, each in found.items()}
    disturbed = {name for name, each in found.items() if not each.measured.undisturbed}
    cores, instances = capacity(catalog, look.backend)
    before = look.previous.latency if look.previous is not None else None
    look.keep(profiles.keys() - disturbed, profiles)
    return ServingSet(
        catalog=catalog,
        encoder=encoder,
        trust={name: each.trust for name, each in found.items()},
        profiles=profiles,
        latency=LatencyModel(profiles, cores, instances, before),
        problems=problems,
        under_load=frozenset(disturbed),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is needed to look at the variants of a catalog."""

    catalog: Catalog
    encoder: SpanEncoder
    backend: Backend
    previous: ServingSet | None
    kept: KeptProfiles
    here_is: Host

    @classmethod
    async def here(
        cls,
        catalog: Catalog,
        encoder: SpanEncoder,
        backend: Backend,
        previous: ServingSet | None,
        kept: KeptProfiles,
    ) -> _Look:
        here = await asyncio.to_thread(host.describe, backend.engine)
        return cls(catalog, encoder, backend, previous, kept, here)

    async def at(self, variants: Iterable[Variant]) -> tuple[dict[str, _Found], dict[str, str]]:
        """Return what can be served, and why the rest cannot."""
        found: dict[str, _Found] = {}
        problems: dict[str, str] = {}
        for variant in variants:
            try:
                found[variant.name] = await self._at_one(variant)
            except (BackendError, DeadlineExceeded) as exc:
                log.error("%s: not served: %s", variant.name, exc)
                problems[variant.name] = str(exc)
        profiles = {name: each.measured.profile for name, each in found.items()}
        for name in profile.doubtful(self.catalog.variants, profiles):
            doubted = replace(found[name].measured, undisturbed=False)
            found[name] = replace(found[name], measured=doubted)
        return found, problems

    async def _at_one(self, variant: Variant) -> _Found:
        trust = await self.backend.checked(variant, self.check(variant))
        known = _measured_before(variant, self.previous, self.here_is)
        return _Found(trust, known or await self.measure(variant))

    def check(self, variant: Variant) -> Check:
        """Return the look at the variant on one server."""

        async def on(server: Backend) -> Trust:
            return await _check_variant(variant, self.catalog, self.encoder, server, self.here_is)

        return on

    async def measure(self, variant: Variant) -> Measured:
        sample = golden_windows(variant, self.catalog, self.encoder)[0]
        known = replace(variant, profile=self._known(variant))
        return await profile.profile(known, sample, self.backend, self.here_is, self._busy)

    async def measure_again(self, name: str, before: Measured) -> Measured:
        """Return what counts of a disturbed profile and another look at the variant.

        An undisturbed look counts alone, however slow the variant is; of two disturbed ones the faster cells do.
        """
        variant = self.catalog.variant(name)
        again = await self.measure(variant)
        if again.undisturbed:
            return again
        if again.profile == self._known(variant):  # believed, because it could not be measured
            return before
        return replace(again, profile=profile.fastest_of(before.profile, again.profile))

    def _known(self, variant: Variant) -> Profile:
        """Return the profile of this host from an earlier start, else the catalog's."""
        return self.kept.of_model(variant, self.here_is) or variant.profile

    def keep(self, names: Iterable[str], profiles: Mapping[str, Profile]) -> None:
        """Keep what was measured here for the next start; the catalog has the rest."""
        for name in names:
            variant = self.catalog.variant(name)
            if profiles[name] != variant.profile:
                self.kept.keep(variant, profiles[name])

    def _busy(self) -> bool:
        return self.previous is not None and self.previous.latency.busy


def _check_files(repository: Path, catalog: Catalog) -> None:
    problem = store.check_tokenizer(repository, catalog)
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
    found = hashes.get(key_of(variant))
    if found == variant.sha256:
        return None
    if found is None:
        return f"version {variant.version} is not loaded; see the server's log"
    return f"the server has sha256 {found[:12]}, the catalog says {variant.sha256[:12]}"


def hash_problems(catalog: Catalog, hashes: Mapping[str, str]) -> dict[str, str]:
    """Return by variant what is wrong with what the model server holds."""
    found = {v.name: hash_problem(v, hashes) for v in catalog.variants}
    return {name: why for name, why in found.items() if why is not None}


def _measured_before(variant: Variant, previous: ServingSet | None, here: Host) -> Measured | None:
    """Return the profile that an earlier set has of the same model on the same host."""
    if previous is None or variant.name not in previous.profiles:
        return None
    same_model = previous.catalog.variant(variant.name).sha256 == variant.sha256
    measured = _measured_in(previous, variant.name)
    return measured if same_model and measured.profile.host == here else None


def _measured_in(serving: ServingSet, name: str) -> Measured:
    return Measured(serving.profiles[name], name not in serving.under_load)


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
    worst, asked = 0.0, golden_windows(variant, catalog, encoder)
    for windows, expected in zip(asked, variant.golden, strict=True):
        found = await backend.infer(variant, windows, GOLDEN_BUDGET_MS)
        gap = _largest_gap(variant.name, found, expected)
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


def golden_windows(variant: Variant, catalog: Catalog, encoder: SpanEncoder) -> list[Windows]:
    """Return the golden inputs of the variant's task, as it reads them."""
    if not variant.classifies:
        asked = [Question(g.question, g.context) for g in catalog.golden_inputs]
        return [encoder.encode(question) for question in asked]
    task = next(task for task in catalog.tasks if task.name == variant.task)
    return [encoder.encode_texts(Texts(g.text, g.text_pair)) for g in task.golden_inputs]


def _largest_gap(
    variant: str, found: Inference, expected: GoldenLogits | GoldenLabelLogits
) -> float:
    """Return the largest difference to the stored logits of one golden input. Raises: InvalidLogits."""
    if isinstance(expected, GoldenLogits):
        n = len(expected.start)
        both = ((found.spans.start, expected.start), (found.spans.end, expected.end))
        return float(np.max([np.abs(got[0, :n] - np.asarray(want)) for got, want in both]))
    assert isinstance(found.logits, LabelLogits)
    labels = found.logits.labels[0]
    if len(labels) != len(expected.logits):
        raise InvalidLogits(variant, f"{len(labels)} for {len(expected.logits)} labels")
    return float(np.abs(labels - np.asarray(expected.logits)).max())
