"""docs/metrics.md says what gateway/metrics.py declares."""

from __future__ import annotations

from gateway import metrics_doc
from gateway.metrics import Metrics
from tests.fakes import ROOT

OF_THE_PROCESS = ("python_", "process_")


def test_the_page_is_what_the_declarations_make() -> None:
    """Who changes a metric runs `make docs-metrics`; a page by hand would be out of date."""
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_doc.document(Metrics())


def test_every_registered_metric_is_on_the_page() -> None:
    """None can be declared past the documentation."""
    metrics = Metrics()
    endings = {"counter": "_total", "info": "_info"}
    registered = {m.name + endings.get(m.type, "") for m in metrics.registry.collect()}
    ours = {name for name in registered if not name.startswith(OF_THE_PROCESS)}
    assert ours == {each.name for each in metrics.declared}


def test_names_follow_the_practice_of_prometheus() -> None:
    """Base units, one prefix, `_total` on counters: what tools and people expect."""
    for each in Metrics().declared:
        assert each.name.startswith("bertier_")
        assert each.name.endswith("_total") == (each.kind == "counter")
        assert not each.name.endswith(("_ms", "_milliseconds", "_kb"))
        assert each.told.endswith(".")
