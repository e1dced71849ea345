"""Sections of the report: the certificates, and the provenance of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gateway.catalog.schema import Check, Plan
from optimizer.report.inputs import Inputs, Stage
from optimizer.report.tables import Raw, no_catalog, plain, share, table


def certificates(inputs: Inputs) -> str:
    """Return every floor by stratum, with its checks on other data."""
    if inputs.catalog is None:
        return no_catalog(inputs)
    return "".join(_certificate(plan) for plan in inputs.catalog.plans)


def _certificate(plan: Plan) -> str:
    c = plan.certificate
    others = list(dict.fromkeys(check.data for check in c.checks))
    found = {(check.data, check.stratum): check for check in c.checks}
    rows = [["all", c.n_contexts, c.n_questions, share(c.f1), c.floor]]
    rows += [[s.name, s.n_contexts, s.n_questions, share(s.f1), s.floor] for s in c.strata]
    for row in rows:
        row += [_verdict(found.get((data, str(row[0])))) for data in others]
    bounds = "; ".join(f"{escape(b.method)} {b.floor}" for b in c.bounds)
    shifts = "".join(
        f'<p class="fails">{escape(check.stratum)} on {escape(check.data)}:'
        f" {escape(check.shift)}</p>"
        for check in c.checks
        if check.shift
    )
    parts = (
        ""
        if c.strata
        else '<p class="none">No strata: an earlier version made this certificate.</p>'
    )
    return (
        f"<h3>{escape(plan.name)}: F1 &ge; {c.floor}</h3>"
        f'<p class="soft">{escape(c.method)}; all floors together are wrong with probability {c.delta} at most;'
        f" {escape(c.data)}. {bounds}</p>"
        + table(("questions", "contexts", "n", "F1", "floor", *others), rows)
        + parts
        + shifts
    )


def _verdict(check: Check | None) -> Raw:
    if check is None:
        return Raw("-")
    kind = check.verdict.split()[0]
    return Raw(
        f'{share(check.f1)} <span class="{kind}">{check.verdict}</span>'
        f' <span class="soft">({check.n_contexts} contexts)</span>'
    )


def provenance(inputs: Inputs) -> str:
    """Return commit, seeds, hashes, versions and processors."""
    return _origin(inputs) + _hosts(inputs) + _stages(inputs.stages)


def _origin(inputs: Inputs) -> str:
    seeds: list[list[object]] = [["seed of the study file", inputs.config.seed]]
    if inputs.catalog is None:
        return table(("", "value"), seeds) + no_catalog(inputs)
    origin = inputs.catalog.origin
    rows: list[list[object]] = [
        *seeds,
        ["published study", origin.study],
        ["its seed", origin.seed],
        ["its commit", origin.commit],
        ["published", origin.date],
    ]
    hashes = list(origin.data_sha256.items())
    return table(("", "value"), rows) + table(("data", "sha256"), hashes)


def _hosts(inputs: Inputs) -> str:
    if inputs.catalog is None:
        return ""
    rows = []
    for variant in inputs.catalog.variants:
        host = variant.profile.host
        rows.append([variant.name, host.cpu, host.flags, host.cores, host.gpu or "-", host.engine])
    heads = ("latency of", "processor", "instruction sets", "cores", "GPU", "engine")
    return table(heads, rows)


def _stages(stages: Sequence[Stage]) -> str:
    known = [stage for stage in stages if stage.ran_on]
    rows: list[list[object]] = []
    for stage in known:
        on = dict(stage.ran_on)
        first = [on.pop(key, "-") or "-" for key in ("commit", "cpu", "gpu")]
        versions = ", ".join(f"{name} {version}" for name, version in on.items())
        rows.append([stage.name, plain(stage.seconds), *first, versions])
    without = len(stages) - len(known)
    said = (
        f'<p class="soft">{without} stages were run by earlier versions, which did not record this.</p>'
        * bool(without)
    )
    if not known:
        return said or '<p class="none">No data yet: no stage of the run folder is finished.</p>'
    heads = ("stage", "seconds", "commit", "processor", "GPU", "versions")
    return f'<div class="scroll">{table(heads, rows)}</div>{said}'
