"""Answers Prometheus scrapes: with fresh metrics while scrapes are few, at bounded cost when they are many.

The text is built on the event loop, one metric at a time; requests run between two metrics.
Declares no metric, and knows nothing of HTTP but two content types.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from gateway.clock import now_ms
from gateway.domain import Size
from gateway.observability.metrics import Metrics
from gateway.qa.codec import TYPICAL_TOKENS
from gateway.request.service import AnswerService
from gateway.serving_set import ServingSet

PLAIN_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE = openmetrics.CONTENT_TYPE_LATEST
OPENMETRICS = "application/openmetrics-text"
EOF = b"# EOF\n"  # ends a text in OpenMetrics

# Burst and rate per second of texts that are built; other scrapes get the last one.
BURST, PER_SECOND = 10.0, 2.0

Page = Sequence[tuple[frozenset[str], bytes]]  # of each metric: its names, its text


@dataclass(frozen=True, slots=True)
class Scraped:
    content_type: str
    text: bytes


class Exposition:
    """The metrics of one service, as Prometheus asks for them."""

    def __init__(self, service: AnswerService, clock: Callable[[], float] = now_ms) -> None:
        self._service = service
        self._clock = clock
        self._pages: dict[str, Page] = {}  # the last text, by content type
        self._left = BURST
        self._counted_ms = clock()
        self._one_at_a_time = asyncio.Lock()

    async def scrape(self, accept: str, names: Collection[str]) -> Scraped:
        """Return all metrics, or those that have one of `names`, in the form the caller takes best."""
        content_type = negotiate(accept)
        async with self._one_at_a_time:
            if self._may_make() or content_type not in self._pages:
                self._pages[content_type] = await self._make(content_type)
            page = self._pages[content_type]
        texts = [text for known, text in page if not names or not known.isdisjoint(names)]
        end = EOF if content_type == OPENMETRICS_TYPE else b""
        return Scraped(content_type, b"".join((*texts, end)))

    def _may_make(self) -> bool:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._counted_ms) * PER_SECOND / 1e3)
        self._counted_ms = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def _make(self, content_type: str) -> Page:
        metrics, serving = self._service.metrics, self._service.serving
        if serving is not None:
            metrics.note_queue(waits(serving, self._clock()))
        self._service.show_live()
        page = []
        async for metric in _collected(metrics):
            page.append((names_of(metric), render(metric, content_type)))
            await asyncio.sleep(0)  # let requests run in between
        return page


async def _collected(metrics: Metrics) -> AsyncIterator[Metric]:
    """Yield all metrics, of all workers where there are several."""
    if metrics.merge is None:
        for metric in metrics.registry.collect():
            yield metric
        return
    own = []
    for metric in metrics.registry.collect():
        own.append(metric)
        await asyncio.sleep(0)
    for metric in await metrics.merge(own):
        yield metric


class _One:
    """A registry of one metric, which is what the encoders read."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def names_of(metric: Metric) -> frozenset[str]:
    """Return its own name and those of its series."""
    return frozenset((metric.name, *(sample.name for sample in metric.samples)))


def render(metric: Metric, content_type: str) -> bytes:
    """Return one metric as text, without what ends a text."""
    if content_type == OPENMETRICS_TYPE:
        text: bytes = openmetrics.generate_latest(_One(metric))  # type: ignore[no-untyped-call]  # the library's
        return text.removesuffix(EOF)
    return generate_latest(_One(metric))


def text(metrics: Metrics) -> str:
    """Return all metrics as Prometheus' plain text."""
    return "".join(render(m, PLAIN_TYPE).decode() for m in metrics.registry.collect())


def negotiate(accept: str) -> str:
    """Return OpenMetrics' content type where the caller takes it, else the plain text's."""
    for part in accept.lower().split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        if media_type == OPENMETRICS and "q=0" not in parameters:
            return OPENMETRICS_TYPE
    return PLAIN_TYPE


def waits(serving: ServingSet, now_ms: float) -> Mapping[str, tuple[int, float]]:
    """Return by variant the windows pending there, and the wait of a typical request, ms."""
    latency, found = serving.latency, {}
    for variant in serving.trust:
        stage = latency.predict_stage(variant, Size(TYPICAL_TOKENS, 1), 0.5, now_ms)
        found[variant] = (latency.queue.lines[variant].windows, stage.wait_ms)
    return found
