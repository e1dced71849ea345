"""docs/reference/metrics.md says what gateway/observability/metrics_declared.py declares and gateway/observability/metrics.py makes."""

from __future__ import annotations

from gateway.docs import metrics as metrics_doc
from gateway.observability import metrics_declared
from gateway.observability.metrics import Metrics
from gateway.observability.metrics_declared import Declared
from tests.fakes import ROOT

OF_THE_PROCESS = ("python_", "process_")


def test_the_page_is_what_the_declarations_make() -> None:
    """Who changes a metric runs `make docs-metrics`; a page by hand would be out of date."""
    assert (ROOT / "docs" / "reference" / "metrics.md").read_text() == metrics_doc.document(
        Metrics()
    )


def test_every_registered_metric_is_on_the_page() -> None:
    """None can be made past the documentation, nor be of another kind than it says."""
    metrics = Metrics()
    endings = {"counter": "_total", "info": "_info"}
    ours = {
        (m.name + endings.get(m.type, ""), "gauge" if m.type == "info" else m.type)
        for m in metrics.registry.collect()
        if not m.name.startswith(OF_THE_PROCESS)
    }
    assert ours == {(each.name, each.kind) for each in metrics.declared}


def test_every_declaration_is_made() -> None:
    """One that nothing exports would be missing on the page without a word."""
    description = [each for each in vars(metrics_declared).values() if isinstance(each, Declared)]
    assert set(description) == set(Metrics().declared)


def test_names_follow_the_practice_of_prometheus() -> None:
    """Base units, one prefix, `_total` on counters: what tools and people expect."""
    for each in Metrics().declared:
        assert each.name.startswith("bertier_")
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert not each.name.endswith(("_ms", "_milliseconds", "_kb"))
        assert each.description.endswith(".")
