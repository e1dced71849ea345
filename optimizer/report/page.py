"""The report of a study as one page. Texts from outside are escaped; every number comes from an input."""

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
        "fp32": ("Compared with the fp32 teacher", fp32(inputs)),
        "knobs": ("Candidates by knob", knobs(inputs)),
        "infeasible": ("Infeasible trials", infeasible(inputs)),
        "volume": ("Hypervolume over trials", volume(inputs)),
        "searches": ("Searches compared", searches(inputs)),
        "economy": ("Cost of a candidate", economy(inputs)),
        "ranks": ("Slices and finished students", ranks(inputs)),
        "labels": ("Distillation and labels alone", labels(inputs)),
        "curves": ("Learning curves", curves(inputs)),
        "certificates": ("Certificates", certificates(inputs)),
        "provenance": ("Provenance", provenance(inputs)),
    }
    title = f"{inputs.config.name}: study report"
    return document(title, inputs.config.name, _about(inputs), sections, _warning(inputs))


def _about(inputs: Inputs) -> str:
    said = [f"{len(inputs.trials)} trials, {len(inputs.front)} on the Pareto front"]
    if inputs.catalog:
        origin = inputs.catalog.origin
        said.append(f"{len(inputs.catalog.variants)} variants published {escape(origin.date)}")
        said.append(f"commit {escape(origin.commit)}, seed {origin.seed}")
    return "; ".join(said)


def _warning(inputs: Inputs) -> str:
    if inputs.catalog is None or inputs.catalog.origin.study == inputs.config.name:
        return ""
    return (
        f'<p class="warn">The catalog in {escape(str(inputs.repository))} was published by the study'
        f" {escape(inputs.catalog.origin.study)}, not by {escape(inputs.config.name)}.</p>"
    )
