"""The metrics of several processes as those of one: counters and histograms summed, gauges by their meaning.

Series keep their labels, and buckets the newest of their exemplars. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Metric
from prometheus_client.samples import Exemplar, Sample

from gateway.observability import metrics_declared as declared

SUMMED = {
    *(declared.IN_FLIGHT.name, declared.CONNECTIONS.name, declared.REPLICA_IN_FLIGHT.name),
    *(declared.CACHE_ANSWERS.name, declared.CACHE_BYTES.name),
    *("process_virtual_memory_bytes", "process_resident_memory_bytes"),
    *("process_open_fds", "process_max_fds"),
}
LOWEST = {
    *(declared.REPLICA_UP.name, declared.CERTIFICATE_ENDS.name),
    "process_start_time_seconds",
}
# Known to the parent alone, which has the catalog, all tests and what callers report.
PARENTS = {
    *(declared.BACKEND_UP.name, declared.HEALING.name, declared.VARIANT_UP.name),
    *(declared.HASH_MATCHES.name, declared.CERTIFIED_F1.name, declared.CATALOG_REFUSED.name),
    *(declared.CATALOG.name.removesuffix("_info"), declared.CATALOG_LOADED.name),
    *(declared.CERTIFICATE_EVIDENCE.name, declared.CERTIFICATE_BROKEN.name),
    *(declared.CONFIDENCE_SHIFT.name, declared.CONFIDENCE_SHIFTED.name),
    *(declared.CANDIDATE_SHARE.name, declared.CANDIDATE_REFUSED.name),
    *(declared.ROLLOUT_EVIDENCE.name, declared.LIVE_F1.name, declared.LIVE_KNOWN.name),
    *(declared.LIVE_LOW_F1.name, declared.LIVE_HIGH_F1.name),
}
# Of work that every worker sees: one that was not asked now has an old value.
FRESHEST = {declared.WINDOWS_PENDING.name, declared.QUEUE_WAIT.name}

Snapshot = Sequence[Metric]
_Key = tuple[str, tuple[tuple[str, str], ...]]


def merged(own: Snapshot, parents: Snapshot, others: Iterable[Snapshot]) -> list[Metric]:
    """Return the metrics of all; `own`: of the process that was scraped, up to date."""
    workers = [own, *others]
    everyone = [*workers, parents]
    found: list[Metric] = []
    for metric in own:
        if metric.name in PARENTS:
            sources = [parents]
        elif metric.name in FRESHEST:
            sources = [own]
        elif metric.name in LOWEST:
            sources = workers
        else:
            sources = everyone
        same = [each for snapshot in sources for each in snapshot if each.name == metric.name]
        found.append(_merge(metric, same))
    return found


def lasting(gone: Snapshot, snapshot: Snapshot) -> list[Metric]:
    """Return what processes that ended still count for: a sum that falls would look like a restart.

    `gone`: the same of those that ended before; `snapshot`: of the one that ended now.
    """
    counted = [metric for metric in snapshot if metric.type in ("counter", "histogram")]
    before = {metric.name: metric for metric in gone}
    new = [_merge(m, [before.pop(m.name), m] if m.name in before else [m]) for m in counted]
    return [*new, *before.values()]


def _merge(like: Metric, same: Sequence[Metric]) -> Metric:
    """Return one metric of several by the same name."""
    join = _join_of(like)
    series: dict[_Key, Sample] = {}
    for metric in same:
        for sample in metric.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            before = series.get(key)
            series[key] = sample if before is None else _joined(before, sample, join)
    metric = Metric(like.name, like.documentation, like.type, like.unit)
    metric.samples = _in_order(series)
    return metric


def _join_of(metric: Metric) -> Callable[[float, float], float]:
    if metric.type in ("counter", "histogram") or metric.name in SUMMED:
        return lambda one, other: one + other
    return min if metric.name in LOWEST else max


def _joined(one: Sample, other: Sample, join: Callable[[float, float], float]) -> Sample:
    exemplar = _newest(one.exemplar, other.exemplar)
    return one._replace(value=join(one.value, other.value), exemplar=exemplar)


def _newest(one: Exemplar | None, other: Exemplar | None) -> Exemplar | None:
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda each: each.timestamp or 0.0)


def _in_order(series: dict[_Key, Sample]) -> list[Sample]:
    """Return the samples with those of one histogram together, as both text formats want them."""
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for (_, labels), sample in series.items():
        group = tuple(pair for pair in labels if pair[0] != "le")
        groups.setdefault(group, []).append(sample)
    return [sample for group in groups.values() for sample in group]
