"""Prometheus metrics of a search service."""

import itertools
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vrag_jax.serving.live import LiveIndex

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_METHODS = {'GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'}
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """What a service has done so far.

    Args:
      live: the index that is served; how often it was replaced is told as well.

    Attributes:
      waiting: requests that are worked on.
      queries: how many queries a request has brought.
    """

    def __init__(self, live: LiveIndex):
        # Not the library's global registry: several services may live in a process.
        self._registry = CollectorRegistry()
        self.requests = Counter(
            'vrag_requests', 'Requests answered.', ('route', 'method', 'status'),
            registry=self._registry)
        self.errors = Counter(
            'vrag_errors', 'Requests answered with a status of 400 or more.',
            ('route', 'status'), registry=self._registry)
        self.seconds = Histogram(
            'vrag_request_seconds', 'Seconds from a request to the end of its answer.',
            ('route',), buckets=_SECONDS, registry=self._registry)
        self.queries = Histogram(
            'vrag_request_queries', 'Queries of a search request.', buckets=_QUERIES,
            registry=self._registry)
        self.waiting = Gauge(
            'vrag_waiting_requests', 'Searches and images that are worked on.',
            registry=self._registry)
        self._registry.register(_IndexCollector(live))

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class MetricsMiddleware:
    """Counts and times the requests of an application.

    Args:
      app: the application.
      metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # By its route, not its path: paths are as many as there are pages.
            route = getattr(scope.get('route'), 'path', 'none')
            method = scope['method'] if scope['method'] in _METHODS else 'other'
            self._metrics.requests.labels(route, method, status).inc()
            if status >= 400:
                self._metrics.errors.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)


class _IndexCollector:
    """Reads what the index counts itself whenever metrics are asked for."""

    def __init__(self, live: LiveIndex):
        self._live = live

    def collect(self) -> Iterator[Metric]:
        version, counts = self._live.current, self._live.current.engine.counts
        yield CounterMetricFamily('vrag_engine_queries', 'Different queries of the requests that '
                                  'this index was asked.', counts.queries)
        yield CounterMetricFamily('vrag_engine_cache_hits', 'Of these, queries whose hits were '
                                  'known.', counts.known)
        batches = itertools.accumulate(counts.batches)
        sizes = [(str(2.0 ** (n + 1) - 1), count) for n, count in enumerate(batches)]
        yield HistogramMetricFamily(
            'vrag_engine_batch', 'Queries that were searched together.',
            buckets=[*sizes[:-1], ('+Inf', sizes[-1][1])], sum_value=counts.searched)
        yield GaugeMetricFamily('vrag_pages', 'Pages of the index.', len(version.store))
        reloads = CounterMetricFamily(
            'vrag_index_reloads', 'Times that the index on disk was replaced.',
            labels=['result'])
        reloads.add_metric(['done'], self._live.reloads)
        reloads.add_metric(['failed'], self._live.failures)
        yield reloads
