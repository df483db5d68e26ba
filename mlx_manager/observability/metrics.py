"""The instruments of a chat: how long, how soon, how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, Meter
from opentelemetry.util.types import AttributeValue

from mlx_manager.observability import attributes as names

SCOPE = "mlx_manager"


@dataclass(frozen=True, slots=True)
class Measured:
    """One chat in numbers, in seconds; None for what it didn't reach."""

    duration_s: float
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


class ChatMetrics:
    """Records each chat once, at its end.

    `context` carries the chat's span, so that an exemplar leads from a bucket to the trace.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or metrics.get_meter(SCOPE)
        self._duration = _histogram(meter, names.REQUEST_DURATION)
        self._first_token = _histogram(meter, names.TIME_TO_FIRST_TOKEN)
        self._per_token = _histogram(meter, names.TIME_PER_OUTPUT_TOKEN)
        self._cancelled = _counter(meter, names.REQUESTS_CANCELLED)

    def completed(
        self, chat: Measured, dimensions: Mapping[str, AttributeValue], context: Context
    ) -> None:
        """Record a chat that came to its end, well or badly."""
        self._duration.record(chat.duration_s, dimensions, context)
        if chat.time_to_first_token_s is not None:
            self._first_token.record(chat.time_to_first_token_s, dimensions, context)
        if chat.time_per_output_token_s is not None:
            self._per_token.record(chat.time_per_output_token_s, dimensions, context)

    def cancelled(self, dimensions: Mapping[str, AttributeValue], context: Context) -> None:
        """Count a chat that its client left; its duration says nothing about the server."""
        self._cancelled.add(1, dimensions, context)


def _histogram(meter: Meter, metric: names.Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )


def _counter(meter: Meter, metric: names.Metric) -> Counter:
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)
