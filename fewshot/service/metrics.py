"""What the service counts of itself, as Prometheus reads it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewshot.records import UNKNOWN, Prediction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_PHOTOS = (1, 2, 4, 8, 16, 32, 64)
# The photos that the gauge of the unknown rate looks back on.
N_RECENT = 1000


class Metrics:
    """The service's counters. Each app has its own registry, so that two in one process do not mix.

    Args:
        index_size: the numbers of classes and of enrolled photos, asked for when the metrics are read.
        n_decoders_died: of the processes that decode photos, likewise.
    """

    def __init__(self, index_size: Callable[[], tuple[int, int]], n_decoders_died: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fewshot_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fewshot_request_seconds",
            "Seconds from a request's first byte to the end of its answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_photos = Histogram(
            "fewshot_batch_photos", "Photos an engine batch.", buckets=BATCH_PHOTOS, registry=self.registry
        )
        self.photos = Counter("fewshot_photos", "Photos answered, by reason.", ["reason"], registry=self.registry)
        self.enrolled = Counter("fewshot_enrolled", "Photos enrolled over HTTP.", registry=self.registry)
        self.waiting = Gauge("fewshot_waiting_photos", "Photos accepted and not yet answered.", registry=self.registry)
        self._recent: deque[bool] = deque(maxlen=N_RECENT)
        unknown = Gauge(
            "fewshot_unknown_rate",
            f"Share of the last {N_RECENT} readable photos answered {UNKNOWN!r}; NaN before the first.",
            registry=self.registry,
        )
        unknown.set_function(lambda: sum(self._recent) / len(self._recent) if self._recent else float("nan"))
        self.registry.register(_Asked(index_size, n_decoders_died))
        ProcessCollector(registry=self.registry)

    def count_answers(self, predictions: Sequence[Prediction]) -> None:
        """Count photos by the reason of their answer."""
        for prediction in predictions:
            self.photos.labels(prediction.reason).inc()
            if prediction.reason != "bad_image":
                self._recent.append(prediction.answer == UNKNOWN)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Asked(Collector):
    def __init__(self, index_size: Callable[[], tuple[int, int]], n_decoders_died: Callable[[], int]) -> None:
        self._index_size = index_size
        self._n_decoders_died = n_decoders_died

    def describe(self) -> list[Metric]:
        """Nothing yet: the registry shall not read the index when the collector is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        n_classes, n_supports = self._index_size()
        yield GaugeMetricFamily("fewshot_classes", "Enrolled classes.", n_classes)
        yield GaugeMetricFamily("fewshot_supports", "Enrolled photos.", n_supports)
        what = "Processes that decode photos and died of one, or were ended; each is replaced."
        yield CounterMetricFamily("fewshot_decoders_died", what, self._n_decoders_died())


class Measured:
    """Middleware that counts and times every request under its route's pattern, never under what a client typed."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and measure it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
