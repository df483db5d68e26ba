"""What Prometheus reads: a metric reader that is asked, and never asks by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from opentelemetry.sdk.metrics.export import MetricReader, MetricsData
from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as classic_text
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.registry import Collector

from mlx_manager.observability.exposition import Exemplars, families

OPENMETRICS = CONTENT_TYPE_LATEST
CLASSIC = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class Scrape:
    """The body of an answer, and what it is."""

    body: bytes
    content_type: str


class PrometheusReader(MetricReader):
    """Renders the metrics on demand, with exemplars, which OpenTelemetry's own exporter for Prometheus leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._exemplars: Exemplars = {}
        self._families: list[Metric] = []

    def scrape(self, accept: str) -> Scrape:
        """Read the metrics now; OpenMetrics unless the Accept header wants plain text and doesn't name it."""
        with self._lock:
            # Where there is no metric at all, nothing is received.
            self._families = []
            self.collect()
            found = _Found(self._families)
        if "openmetrics" not in accept and "text/" in accept:
            return Scrape(classic_text(found), CLASSIC)
        return Scrape(openmetrics_text(found), OPENMETRICS)  # type: ignore[no-untyped-call]

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
        """Nothing is kept open."""

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: object
    ) -> None:
        self._families = families(metrics_data, self._exemplars)


class _Found(Collector):
    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found
