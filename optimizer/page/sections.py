"""A study's page: head, sections, style and script. Every text from outside is escaped; every number is an input's.

The page opens from disk and asks the network for nothing: style and script are in it, and its policy
lets nothing else in.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path

from optimizer.page.compared import economy, fp32, labels, searches
from optimizer.page.overview import pareto
from optimizer.page.searched import curves, infeasible, knobs, ranks, volume
from optimizer.page.vouched import certificates, provenance
from optimizer.report import Inputs

HERE = Path(__file__).parent

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src '{style_hash}'; script-src '{script_hash}'">
<title>{name}: report of a study</title>
<style>{style}</style>
</head>
<body>
<h1>{name}</h1>
<p class="soft">{about}</p>
<nav>{nav}</nav>
{warning}{sections}
<div id="tip" role="tooltip"></div>
<script>{script}</script>
</body>
</html>
"""


def page(inputs: Inputs) -> str:
    """Return the whole page."""
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
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
    return PAGE.format(
        name=escape(inputs.config.name),
        about=_about(inputs),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        nav=" ".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items()),
        warning=_warning(inputs),
        sections="\n".join(
            f'<section id="{key}"><h2>{title}</h2>\n{inside}</section>'
            for key, (title, inside) in sections.items()
        ),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
