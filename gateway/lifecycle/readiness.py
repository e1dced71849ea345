"""Whether questions can be answered, and if not, why: the data of /readyz and /v1/variants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import log10
from types import MappingProxyType
from typing import Any

from gateway.backends.replica import ReplicaState
from gateway.catalog.schema import FloorScope, Plan, Variant
from gateway.catalog.store import Task
from gateway.domain import SetName, Trust
from gateway.monitoring.rollout_tests import Rate, Seen
from gateway.monitoring.sequential_tests import AgreementTest, Comparison
from gateway.request.rollout import Running
from gateway.serving_set import ServingSet


@dataclass(frozen=True, slots=True)
class VariantState:
    """The state of one variant: whether it is routed to, and how far its certificate holds here."""

    served: bool
    trust: str | None
    problem: str | None
    failing: bool  # its circuit breaker is open or half-open
    measured_under_load: bool  # its latency was measured beside other work: it is measured again
    confidence_shifted: bool = (
        False  # its confidence is distributed differently than on the certified data
    )
    host_differs: str | None = None  # how this host differs from the certified one


@dataclass(frozen=True, slots=True)
class SetState:
    """How one of two catalogs does while a candidate is tried."""

    requests: int
    slo_violated: int
    failed: int
    mean_ms: float | None
    compared: int  # answers compared with the largest current variant's
    differed: int


@dataclass(frozen=True, slots=True)
class CandidateState:
    """The candidate on disk, or the last one and what became of it."""

    sha256: str | None  # None: there is none now
    tried: bool
    share: float | None = None
    shadow: bool = False
    classes: tuple[str, ...] = ()  # that it defines anew; none: it is a catalog
    refused: str | None = None  # why it is not tried
    decided: str | None = None  # what became of the last one, and why
    sets: Mapping[str, SetState] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # log10, by rate
    shown_at: Mapping[str, float] = field(default_factory=dict)  # log10, by claim


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of the gateway; not `ready`: `reasons` says what is missing."""

    ready: bool
    reasons: tuple[str, ...]
    backend: str
    engine: str
    backend_up: bool
    catalog_sha256: str | None  # of the catalog that is served
    refused: str | None  # why the catalog on disk is not the one that is served
    variants: Mapping[str, VariantState]
    retry_in_ms: float | None = None  # until what failed is tried again; None: nothing is
    replicas: Mapping[str, ReplicaState] = field(default_factory=dict)  # of several servers
    broken_plans: tuple[str, ...] = ()  # by shadow answers; no longer trusted
    healing: Mapping[str, str] = field(default_factory=dict)  # variants that lost an instance: why
    candidate: CandidateState | None = None  # None: there never was one
    workers: Mapping[str, str] = field(default_factory=dict)  # by number: state; {}: one process
    classes_refused: str | None = None  # why classes.toml is not used


def candidate_state(
    running: Running | None, sha256: str | None, refused: str | None, decided: str | None
) -> CandidateState | None:
    """Return the state of a candidate; `decided`: what became of the last one."""
    if running is None:
        if sha256 is None and decided is None:
            return None
        return CandidateState(sha256, tried=False, refused=refused, decided=decided)
    tests = running.tests
    evidence = {rate: tests.evidence_of(rate) for rate in tests.rates}
    return CandidateState(
        sha256=running.sha256,
        tried=True,
        share=running.share,
        shadow=running.shadow,
        classes=tuple(sorted(running.classes)),
        decided=decided,
        sets={name: _set_state(name, running) for name in SetName},
        evidence={r: {"worse": e[0], "no_worse": e[1]} for r, e in evidence.items()},
        shown_at={"worse": log10(tests.alarm), "no_worse": log10(tests.shown)},
    )


def _set_state(name: SetName, running: Running) -> SetState:
    def seen(rate: Rate) -> Seen:
        test = running.tests.rates[rate]
        return test.candidate if name is SetName.CANDIDATE else test.current

    slo, errors, compared = (seen(rate) for rate in Rate)
    mean_ms = running.sums_ms[name] / slo.n if slo.n and not running.shadow else None
    return SetState(slo.n, slo.bad, errors.bad, mean_ms, compared.n, compared.bad)


def state_of(name: str, serving: ServingSet) -> VariantState:
    trust = serving.trust.get(name)
    return VariantState(
        served=trust is not None,
        trust=None if trust is None else str(trust),
        problem=serving.problems.get(name),
        failing=not serving.breakers.of(name).closed,
        measured_under_load=name in serving.under_load,
        confidence_shifted=serving.certificate_tests.is_shifted(name),
        host_differs=_host_differs(name, serving),
    )


def _host_differs(name: str, serving: ServingSet) -> str | None:
    """Return how this host differs from the one of the certificate, for a variant that is not `certified`."""
    if serving.trust.get(name) in (None, Trust.CERTIFIED):
        return None
    here = asdict(serving.profiles[name].host)
    there = asdict(serving.catalog.direct(name).certificate.host)
    found = [
        f"{part} {here[part] or 'none'} here, {there[part] or 'none'} where it was certified"
        for part in here
        if here[part] != there[part]
    ]
    return "; ".join(found) or None


def states_of(serving: ServingSet | None) -> dict[str, VariantState]:
    """Return the state of every variant of the catalog."""
    if serving is None:
        return {}
    return {v.name: state_of(v.name, serving) for v in serving.catalog.variants}


def summary(serving: ServingSet) -> str:
    """Return the states in one line, for a log."""
    states = states_of(serving)
    report = [f"{name} ({state.trust or 'not served'})" for name, state in states.items()]
    differs = dict.fromkeys(s.host_differs for s in states.values() if s.host_differs)
    scopes = {plan.certificate.floor_scope for plan in serving.catalog.plans}
    floors = ["floors of all clusters, not only of unseen articles"] * (FloorScope.ALL in scopes)
    return "; ".join([", ".join(report), *differs, *floors])


def catalog_report(
    serving: ServingSet, live: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the catalog as it is served, golden logits left out; `live`: what is known of plans by feedback."""
    return {
        "origin": asdict(serving.catalog.origin),
        "tokenizer_sha256": serving.catalog.tokenizer_sha256,
        "tasks": [_task_report(task) for task in serving.catalog.tasks],
        "variants": [_variant_report(v, serving) for v in serving.catalog.variants],
        "plans": [
            _plan_report(p, serving) | {"live": live.get(p.name)} for p in serving.catalog.plans
        ],
    }


def _task_report(task: Task) -> dict[str, Any]:
    report = asdict(task)
    del report["golden_inputs"]
    return report


def _variant_report(variant: Variant, serving: ServingSet) -> dict[str, Any]:
    report = asdict(variant)
    del report["golden"], report["golden_tolerance"]
    profile = serving.profiles.get(variant.name)
    if profile is not None:
        report["profile"] = asdict(profile)  # as measured here, where that was needed
    return report | asdict(state_of(variant.name, serving))


def _plan_report(plan: Plan, serving: ServingSet) -> dict[str, Any]:
    served = all(name in serving.trust for name in plan.variants)
    trust = str(serving.trust_of(plan)) if served else None
    evidence = _agreement_report(serving.certificate_tests.agreement.get(plan.name))
    return asdict(plan) | {"served": served, "trust": trust, "evidence": evidence}


def _agreement_report(test: AgreementTest | None) -> dict[str, Any] | None:
    """Return the test of a plan's agreement; None: the catalog has no expected agreement."""
    if test is None:
        return None
    report = {"broken": test.broken, "log10": test.log10_e_value, "alarm_at": test.log10_alarm}
    return report | {each.value: test.seen[each] for each in Comparison}
