"""A study's page: its sections. Every text from outside is escaped; every number is an input's."""

from __future__ import annotations

from html import escape

from optimizer.report.certificates import certificates, provenance
from optimizer.report.comparisons import economy, fp32, labels, searches
from optimizer.report.inputs import Inputs
from optimizer.report.overview import pareto
from optimizer.report.searches import curves, infeasible, knobs, ranks, volume
from optimizer.report.shell import document


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    sections = {
        "pareto": ("Accuracy, latency, size", pareto(inputs)),
        "fp32": ("Beside the fp32 teacher", fp32(inputs)),
        "knobs": ("Candidates by knob", knobs(inputs)),
        "infeasible": ("Infeasible trials", infeasible(inputs)),
        "volume": ("Hypervolume over trials", volume(inputs)),
        "searches": ("Search against others", searches(inputs)),
        "economy": ("What a candidate cost", economy(inputs)),
        "ranks": ("Supernet against finished", ranks(inputs)),
        "labels": ("Distilled against labels alone", labels(inputs)),
        "curves": ("Learning curves", curves(inputs)),
        "certificates": ("Certificates", certificates(inputs)),
        "provenance": ("What it ran on", provenance(inputs)),
    }
    title = f"{inputs.config.name}: report of a study"
    return document(title, inputs.config.name, _about(inputs), sections, _warning(inputs))


def _about(inputs: Inputs) -> str:
    said = [f"{len(inputs.trials)} trials, {len(inputs.front)} on the front"]
    if inputs.catalog:
        origin = inputs.catalog.origin
        said.append(f"{len(inputs.catalog.variants)} variants published {escape(origin.date)}")
        said.append(f"commit {escape(origin.commit)}, seed {origin.seed}")
    return "; ".join(said)


def _warning(inputs: Inputs) -> str:
    if inputs.catalog is None or inputs.catalog.origin.study == inputs.config.name:
        return ""
    return (
        f'<p class="warn">The catalog in {escape(str(inputs.repository))} is of the study'
        f" {escape(inputs.catalog.origin.study)}, not of {escape(inputs.config.name)}.</p>"
    )
