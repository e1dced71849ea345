"""Tables of a catalog that `bertier-optimize` prints, and the same values as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from gateway.catalog.schema import Check, Paired, Plan
from gateway.catalog.store import Catalog
from optimizer.publish import checks as publish_checks

if TYPE_CHECKING:
    from optimizer.certify.plans import RatedPlan


def whole(header: str) -> Column:
    """Return a column of names, which are never cut: the others give way in a narrow terminal."""
    return Column(header, no_wrap=True)


def show_catalog(catalog: Catalog) -> dict[str, Any]:
    """Print the catalog as a table; return each plan's certified F1."""
    score = "accuracy" if all(v.classifies for v in catalog.variants) else "F1"
    columns = (
        whole("variant"),
        "version",
        "MB",
        "ms p50 128",
        "ms p95 384",
        score,
        f"{score} >=",
        f"{score} on",
        "forced",
    )
    table = Table(*columns)
    for variant in catalog.variants:
        plan = catalog.direct(variant.name)
        quality, profile = variant.quality[-1], variant.profile
        table.add_row(
            variant.name,
            str(variant.version),
            f"{variant.size_bytes / 1e6:.1f}",
            f"{profile.cell(128).p50_ms:.1f}",
            f"{profile.cell(384).p95_ms:.1f}",
            f"{plan.certificate.f1:.3f}",  # of the questions that make the floor beside it
            f"{plan.certified_f1:.3f}",
            f"{quality.f1:.3f} ({quality.data})",
            "-" if quality.forced_f1 is None else f"{quality.forced_f1:.3f}",
        )
    Console().print(table)
    return {plan.name: plan.certified_f1 for plan in catalog.plans}


def show_certificates(catalog: Catalog) -> dict[str, Any]:
    """Print every floor by stratum, with its checks on other data; return the certificates."""
    console = Console()
    for plan in catalog.plans:
        console.print(_certificate_table(plan))
        if plan.certificate.paired is not None:
            console.print(_loss(plan.name, plan.certificate.paired), markup=False)
        for check in plan.certificate.checks:
            if check.shift:
                console.print(
                    f"{plan.name}: the floor of {check.stratum} fails on {check.data}: {check.shift}",
                    markup=False,
                )
    if not publish_checks.unprofiled(catalog):
        for name, other in publish_checks.dominated(catalog).items():
            console.print(f"{name} is dominated by {other}: publish refuses it", markup=False)
    return {plan.name: gist(plan) for plan in catalog.plans}


def show_plans(plans: Sequence[RatedPlan]) -> dict[str, Any]:
    """Print each plan's floors, and its cost relative to the largest variant; return both."""
    reports = list(dict.fromkeys(data for rated in plans for data in rated.cpu))
    columns = [f"CPU, {data}" for data in reports]
    table = Table(
        whole("plan"), "asks", "reach", "F1 >=", "loss <=", "cost", *columns, title="plans"
    )
    for rated in plans:
        plan, loss = rated.plan, rated.plan.certified_loss
        table.add_row(
            plan.name,
            ", ".join(plan.variants),
            " ".join(f"{share:.2f}" for share in plan.reach) or "1.00",
            f"{plan.certified_f1:.4f}",
            "-" if loss is None else f"{loss:.4f}",
            f"{rated.cost:.3f}",
            *(f"{rated.cpu[data]:.3f}" if data in rated.cpu else "-" for data in reports),
        )
    Console().print(table)
    return {rated.plan.name: _rated_gist(rated) for rated in plans}


def _rated_gist(rated: RatedPlan) -> dict[str, Any]:
    plan, paired = rated.plan, rated.plan.certificate.paired
    return gist(plan) | {
        "variants": plan.variants,
        "thresholds": plan.thresholds,
        "reach": plan.reach,
        "cost": rated.cost,
        "cpu": dict(rated.cpu),
        "paired": None if paired is None else asdict(paired),
    }


def _certificate_table(plan: Plan) -> Table:
    certificate = plan.certificate
    others = list(dict.fromkeys(check.data for check in certificate.checks))
    bounds = ", ".join(f"{b.method} {b.floor:.4f}" for b in certificate.bounds)
    title = f"{plan.name}: {bounds}; jointly at {1 - certificate.delta:.0%}"
    table = Table("questions", "contexts", "n", "F1", "floor", *others, title=title)
    found = {(check.data, check.stratum): check for check in certificate.checks}
    whole = ("all", certificate.n_contexts, certificate.n_questions, certificate.f1)
    rows = [(*whole, certificate.floor)]
    rows += [(s.name, s.n_contexts, s.n_questions, s.f1, s.floor) for s in certificate.strata]
    for name, n_contexts, n_questions, f1, floor in rows:
        checks = (_check(found.get((data, name))) for data in others)
        table.add_row(name, str(n_contexts), str(n_questions), f"{f1:.3f}", f"{floor:.3f}", *checks)
    return table


def _loss(name: str, paired: Paired) -> str:
    checks = "".join(f"; {c.data}: {c.loss:+.4f}, {c.verdict}" for c in paired.checks)
    return f"{name}: F1 {paired.f1_loss:+.4f} below {paired.to}, certified at most {paired.loss:.4f}{checks}"


def _check(check: Check | None) -> str:
    return "-" if check is None else f"{check.f1:.3f} of {check.n_contexts}: {check.verdict}"


def gist(plan: Plan) -> dict[str, Any]:
    certificate = plan.certificate
    return {
        "floor": certificate.floor,
        "f1": certificate.f1,
        "n_contexts": certificate.n_contexts,
        "bounds": {b.method: b.floor for b in certificate.bounds},
        "strata": [asdict(s) for s in certificate.strata],
        "checks": [asdict(c) | {"verdict": c.verdict} for c in certificate.checks],
    }
