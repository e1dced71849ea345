"""docs/pareto.svg shows the variants that ship."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from gateway.catalog import store
from gateway.docs import pareto
from tests.fakes import ROOT

CATALOG = store.read(ROOT / "model_repository")


def test_the_picture_is_what_the_catalog_makes() -> None:
    """Who publishes other models runs `make docs-pareto`; else the README would show the models before."""
    assert (ROOT / "docs" / "pareto.svg").read_text() == pareto.picture(CATALOG)


def test_every_variant_is_drawn_within_the_plot() -> None:
    """A point beyond the axes would be missing without a word."""
    drawn = [e.attrib for e in ET.fromstring(pareto.picture(CATALOG)).iter() if "r" in e.attrib]
    marks = [(float(e["cx"]), float(e["cy"])) for e in drawn]
    assert len(marks) == 2 * len(CATALOG.variants) + 2  # and two of the legend
    assert all(pareto.LEFT <= x <= pareto.RIGHT and y <= pareto.BOTTOM for x, y in marks), (
        "widen the axes in gateway/docs/pareto.py"
    )


def test_the_readme_tells_every_variant_and_the_constant_answer() -> None:
    """A figure that is not the catalog's, or F1 without what silence scores, misleads."""
    readme = (ROOT / "README.md").read_text()
    for variant in CATALOG.variants:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{variant.name}`"))
        quality = next(q for q in variant.quality if q.data == pareto.DATA)
        floor = next(p for p in CATALOG.plans if p.name == variant.name).certified_f1
        for figure in (variant.size_bytes / 1e6, 100 * quality.f1, 100 * floor):
            assert re.search(rf"(?<![\d.]){figure:.1f}(?![\d.])", row), (variant.name, figure)
    assert f"| {100 * pareto.constant_f1(CATALOG):.1f} |" in readme


def test_a_catalog_without_the_test_data_is_refused() -> None:
    """Scores on other questions must not stand on the same axis."""
    first = replace(CATALOG.variants[0], quality=())
    with pytest.raises(ValueError, match=f"no scores on {pareto.DATA}"):
        pareto.picture(replace(CATALOG, variants=(first, *CATALOG.variants[1:])))
