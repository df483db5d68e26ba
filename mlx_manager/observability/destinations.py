"""Where telemetry leaves the machine: Logfire, and any OTLP collector that the standard variables name.

Logfire's library would build both itself. But what its exporters lose they count nowhere, a server that never answers
holds its flush up for longer than it was given, and its tail sampling stands before *every* sink, the local ones too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urljoin

from logfire import AdvancedOptions
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from mlx_manager.observability.losses import Losses
from mlx_manager.observability.outbox import Outbox, flush_all
from mlx_manager.observability.sampling import Sampling
from mlx_manager.observability.tail import TailSampler

logger = logging.getLogger(__name__)
E = TypeVar("E", SpanExporter, MetricExporter)

# Logfire adds counts up itself, see `METRICS_PREFERRED_TEMPORALITY` in its library.
_LOGFIRE_TEMPORALITY: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA
)
# Metrics come once a minute; this is ten minutes of an outage.
_METRICS_WAITING = 10


@dataclass(frozen=True, slots=True)
class Destination(Generic[E]):
    """A sink's name, as `mlx.telemetry.dropped` has it, and what sends to it."""

    name: str
    exporter: E


class Exports(SpanProcessor):
    """Sends spans to every destination, each through an outbox of its own. Stands behind the `Redactor`.

    Flushes and closes the outbox of a `console`, too, so that all are waited for at once.
    """

    def __init__(
        self,
        spans: Sequence[Destination[SpanExporter]],
        metrics: Sequence[Destination[MetricExporter]],
        sampling: Sampling,
        losses: Losses,
        *,
        console: Outbox[str] | None = None,
    ) -> None:
        self._console = [console] if console else []
        self._exporters = [destination.exporter for destination in spans]
        self._spans = [
            Outbox(to.name, _sends_spans(to.exporter), losses, delay_s=0.5) for to in spans
        ]
        self._metrics = [
            Outbox(
                to.name,
                _sends_metrics(to.exporter),
                losses,
                capacity=_METRICS_WAITING,
                batch_size=1,
            )
            for to in metrics
        ]
        self.metric_readers: list[MetricReader] = [
            PeriodicExportingMetricReader(_Handover(to.exporter, outbox))
            for to, outbox in zip(metrics, self._metrics, strict=True)
        ]
        self._sampler = TailSampler(sampling, self._put, losses)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """With nobody to send to, no trace has to wait for a decision."""
        if self._spans:
            self._sampler.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Send it, if its trace is one that is sent."""
        if self._spans:
            self._sampler.on_end(span)

    def hurry(self) -> None:
        """Begin to send what is waiting, and the metrics as they are now, without waiting for it."""
        for reader in self.metric_readers:
            reader.collect()
        for outbox in self._outboxes:
            outbox.hurry()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what is waiting, metrics too; False when that took too long, or somebody has long been too slow."""
        self._sampler.force_flush()
        return flush_all(self._outboxes, timeout_millis / 1000)

    def shutdown(self) -> None:
        """Stop. What has not been flushed is lost, and counted."""
        self._sampler.shutdown()
        for outbox in self._outboxes:
            outbox.close()
        for exporter in self._exporters:
            exporter.shutdown()

    @property
    def _outboxes(self) -> list[Outbox[ReadableSpan] | Outbox[MetricsData] | Outbox[str]]:
        return [*self._spans, *self._metrics, *self._console]

    def _put(self, span: ReadableSpan) -> None:
        for outbox in self._spans:
            outbox.put(span)


class _Handover(MetricExporter):
    """Gives what the SDK has collected to an outbox, so that one receiver never waits for another."""

    def __init__(self, exporter: MetricExporter, outbox: Outbox[MetricsData]) -> None:
        # The SDK offers no public way to ask an exporter for what it prefers.
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        self._exporter = exporter
        self._outbox = outbox

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        # The reader collects once more while it shuts down, after the last flush.
        if self._outbox.is_closed:
            return MetricExportResult.FAILURE
        self._outbox.put(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True  # `Exports.force_flush` waits for all at once

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self._exporter.shutdown()


def span_destinations(environ: Mapping[str, str]) -> list[Destination[SpanExporter]]:
    """Where spans go: nowhere, unless a token or an endpoint is set."""
    found = [
        Destination(name, OTLPSpanExporter(f"{url}v1/traces", headers=headers, compression=_GZIP))
        for name, url, headers in _logfire_accounts(environ)
    ]
    return [*found, *_collector("otlp", "TRACES", environ, OTLPSpanExporter)]


def metric_destinations(environ: Mapping[str, str]) -> list[Destination[MetricExporter]]:
    """The same for metrics."""
    found = [
        Destination(
            f"{name}_metrics",
            OTLPMetricExporter(
                f"{url}v1/metrics",
                headers=headers,
                compression=_GZIP,
                preferred_temporality=_LOGFIRE_TEMPORALITY,
            ),
        )
        for name, url, headers in _logfire_accounts(environ)
    ]
    return [*found, *_collector("otlp_metrics", "METRICS", environ, OTLPMetricExporter)]


_GZIP = Compression.Gzip


def _logfire_accounts(environ: Mapping[str, str]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A name, a base URL and headers for each of the tokens, which commas separate."""
    options = AdvancedOptions(base_url=environ.get("LOGFIRE_BASE_URL") or None)
    tokens = filter(None, (part.strip() for part in environ.get("LOGFIRE_TOKEN", "").split(",")))
    for number, token in enumerate(tokens, 1):
        name = "logfire" if number == 1 else f"logfire_{number}"
        url = urljoin(options.generate_base_url(token), "/")
        yield name, url, {"Authorization": token}


def _collector(
    name: str, signal: str, environ: Mapping[str, str], make: Callable[[], E]
) -> Iterable[Destination[E]]:
    """The collector of one signal. Its exporter reads the standard variables itself, headers and time-outs too."""
    endpoint = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    if not (environ.get(endpoint) or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return []
    if environ.get(f"OTEL_{signal}_EXPORTER", "").strip().lower() not in ("", "otlp"):
        return []
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    )
    if protocol.strip().lower() not in ("", "http/protobuf"):
        return _misconfigured(name, f"the protocol is {protocol}; only http/protobuf is spoken")
    try:
        return [Destination(name, make())]
    except ValueError:
        # A word in a variable is wrong. It stays out of the log: it may be one of the headers, which hold keys.
        return _misconfigured(name, "an OTEL_EXPORTER_OTLP_ variable has a value that isn't valid")


def _misconfigured(name: str, reason: str) -> list[Destination[E]]:
    logger.error(
        "telemetry sink misconfigured: %(sink)s is off, %(reason)s",
        {"sink": name, "reason": reason},
    )
    return []


def _sends_spans(exporter: SpanExporter) -> Callable[[Sequence[ReadableSpan]], bool]:
    return lambda batch: exporter.export(batch) is SpanExportResult.SUCCESS


def _sends_metrics(exporter: MetricExporter) -> Callable[[Sequence[MetricsData]], bool]:
    return lambda batch: exporter.export(batch[0]) is MetricExportResult.SUCCESS
