"""Make OpenTelemetry's instruments from our descriptions of metrics."""

from __future__ import annotations

from opentelemetry import metrics
from opentelemetry.metrics import Counter, Histogram, Meter

from mlx_manager.observability.attributes import Metric

SCOPE = "mlx_manager"


def own_meter() -> Meter:
    """The meter of all that we measure ourselves; it may be asked for before telemetry is configured."""
    return metrics.get_meter(SCOPE)


def histogram(meter: Meter, metric: Metric) -> Histogram:
    """Return a histogram with the metric's own buckets."""
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )


def counter(meter: Meter, metric: Metric) -> Counter:
    """Return a counter."""
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)
