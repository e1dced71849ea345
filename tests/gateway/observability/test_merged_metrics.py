"""The metrics of several processes as those of one."""

from __future__ import annotations

from gateway.frontends.http.exposition import OPENMETRICS_TYPE, render
from gateway.observability.merged_metrics import lasting, merged
from gateway.observability.metrics import Metrics

FIRST, SECOND = "a" * 32, "b" * 32


def rendered(*processes: Metrics, gone: Metrics | None = None) -> list[str]:
    """Return the lines of all; the first was scraped, the last is the parent."""
    own, *others, parents = [list(each.registry.collect()) for each in processes]
    if gone is not None:
        others.append(lasting([], list(gone.registry.collect())))
    metrics = merged(own, parents, others)
    return b"".join(render(m, OPENMETRICS_TYPE) for m in metrics).decode().splitlines()


def asked(n: int, trace_id: str = "") -> Metrics:
    metrics = Metrics()
    for _ in range(n):
        metrics.note_request("http", "standard", "qa", "ok", 0.004, trace_id)
    return metrics


def test_counters_and_histograms_are_summed_with_their_labels() -> None:
    """A rate of the whole is what dashboards and alerts are made for."""
    lines = rendered(asked(3), asked(4), Metrics())
    labels = 'frontend="http",outcome="ok",slo_class="standard",task="qa"'
    assert f"bertier_requests_total{{{labels}}} 7.0" in lines
    of = 'frontend="http",slo_class="standard",task="qa"'
    assert (
        'bertier_request_duration_seconds_bucket{frontend="http",le="0.005",slo_class="standard",task="qa"} 7.0'
        in lines
    )
    assert f"bertier_request_duration_seconds_count{{{of}}} 7.0" in lines


def test_a_bucket_keeps_its_newest_exemplar() -> None:
    """It leads from a slow bucket to a trace, whichever worker answered."""
    lines = rendered(asked(1, FIRST), asked(1, SECOND), Metrics())
    bucket = next(line for line in lines if "duration" in line and 'le="0.005"' in line)
    assert "2.0" in bucket
    assert SECOND in bucket
    assert any(FIRST in line for line in rendered(asked(1, FIRST), asked(1), Metrics()))


def test_gauges_are_added_or_taken_from_who_knows() -> None:
    """Requests in flight add up; whether the model server is up is the parent's to say."""
    one, other, parent = Metrics(), Metrics(), Metrics()
    one.in_flight.inc(2)
    other.in_flight.inc(3)
    parent.backend_up.labels("triton").set(1)
    for each in (one, other):
        each.windows_pending.labels("small").set(4)  # each sees the work of all
    other.windows_pending.labels("small").set(9)  # when it was scraped last
    one.breaker_open.labels("small").set(1)
    other.breaker_open.labels("small").set(0)
    lines = rendered(one, other, parent)
    assert "bertier_requests_in_flight 5.0" in lines
    assert 'bertier_backend_up{backend="triton"} 1.0' in lines
    assert 'bertier_windows_pending{variant="small"} 4.0' in lines
    assert 'bertier_breaker_open{variant="small"} 1.0' in lines


def test_a_worker_that_is_gone_still_counts() -> None:
    """A sum that falls looks like a restart to Prometheus, and its rate like a burst."""
    gone = asked(5)
    gone.in_flight.inc(3)
    lines = rendered(asked(1), Metrics(), gone=gone)
    assert any(
        line.startswith("bertier_requests_total{") and line.endswith(" 6.0") for line in lines
    )
    assert "bertier_requests_in_flight 0.0" in lines
    twice = lasting(lasting([], list(gone.registry.collect())), list(asked(2).registry.collect()))
    (requests,) = [metric for metric in twice if metric.name == "bertier_requests"]
    assert [sample.value for sample in requests.samples] == [7.0]
