"""Configure telemetry, once per process and before anything that is instrumented is used."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TextIO, cast

import logfire
from logfire import AdvancedOptions, ConsoleOptions, MetricsOptions
from logfire.sampling import SamplingOptions
from opentelemetry import metrics, propagate, trace
from opentelemetry._logs import get_logger_provider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mlx_manager import __version__
from mlx_manager.observability.background import Background
from mlx_manager.observability.captions import Captions
from mlx_manager.observability.client_metrics import AnthropicCalls, ClientMetrics
from mlx_manager.observability.console import BackgroundText
from mlx_manager.observability.content import ContentRedactor
from mlx_manager.observability.deadline import Deadline
from mlx_manager.observability.destinations import (
    Exports,
    metric_destinations,
    span_destinations,
)
from mlx_manager.observability.finished_spans import DirectWriter, SpanWriter, TracerWriter
from mlx_manager.observability.instruments import SCOPE
from mlx_manager.observability.known_secrets import keep_out, secrets_in
from mlx_manager.observability.losses import Losses
from mlx_manager.observability.observed import Observed, Source, dropped
from mlx_manager.observability.prometheus import PrometheusReader, Scrape
from mlx_manager.observability.propagation import BoundedTraceContext
from mlx_manager.observability.redaction import LogRedactor, Redactor, keep_only_frames
from mlx_manager.observability.sampling import RecordingSampler, Sampling, sampling_from
from mlx_manager.observability.sinks import Sinks

Environment = Literal["development", "production"]

# So long may all that telemetry is sent to hold the end up, together and once: the application's, and its process's.
SEND_S = 1.0


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """Who is speaking, who reads along, and which traces leave the machine.

    `console` is for people at the terminal, `metrics` lets Prometheus read. Without a `sample_ratio` it is what
    `OTEL_TRACES_SAMPLER` says; `slow_s` is from when on a trace is kept anyway. `records_content` lets through what a
    `ContentRecorder` has written.
    """

    service_name: str
    environment: Environment = "development"
    console: bool = False
    metrics: bool = False
    sample_ratio: float | None = None
    slow_s: float | None = None
    records_content: bool = False
    service_version: str = __version__


@dataclass(frozen=True, slots=True)
class _Process:
    """What the process knows about its telemetry once that is set up."""

    options: TelemetryOptions
    background: Background
    sinks: Sinks
    losses: Losses
    observed: Observed
    prometheus: PrometheusReader | None
    processors: Sequence[SpanProcessor]
    exports: Exports
    deadline: Deadline


# OpenTelemetry's providers belong to the process, and so does the knowledge that they are set.
_lock = threading.Lock()
_process: _Process | None = None


def configure(
    options: TelemetryOptions,
    *,
    span_processors: Sequence[SpanProcessor] = (),
    metric_readers: Sequence[MetricReader] = (),
) -> bool:
    """Set up the telemetry of the process and return True; do nothing and return False when it is set up already.

    The first call wins: with both applications in one process, the one imported first names the service. What
    `span_processors` are given is redacted. No network is touched unless `LOGFIRE_TOKEN` or a standard
    `OTEL_EXPORTER_OTLP_ENDPOINT` is set. When the process ends, what is waiting is sent, for `SEND_S` at most.
    """
    global _process
    with _lock:
        if _process is not None:
            return False
        _prefer_current_conventions()
        keep_out(secrets_in(os.environ))
        background, losses = Background("telemetry"), Losses()
        sinks = Sinks(losses)
        sampling = sampling_from(os.environ, options.sample_ratio, options.slow_s)
        prometheus = PrometheusReader() if options.metrics else None
        readers = [*metric_readers, *([prometheus] if prometheus else [])]
        processors = [_redactor(options), Captions(), AnthropicCalls(ClientMetrics())]
        console = BackgroundText(sys.stdout, losses) if options.console else None
        exports = _exports(sampling, losses, console)
        processors += [sinks, *span_processors, exports]
        readers += exports.metric_readers
        # From a daemon thread: threads inherit that, and the SDK's would hold the exit up.
        background.do(lambda: _configure_logfire(options, sampling, console, processors, readers))
        observed = Observed(dropped(losses.by_sink))
        # Registered after the SDK's own handlers, so it runs before them.
        atexit.register(_shut_down_at_exit)
        _process = _Process(
            options,
            background,
            sinks,
            losses,
            observed,
            prometheus,
            processors,
            exports,
            Deadline(SEND_S),
        )
        return True


def is_configured() -> bool:
    """Whether this process has telemetry, and so `span_sink` anything to give."""
    return _process is not None


@contextmanager
def span_sink(processor: SpanProcessor, name: str = "sink") -> Iterator[None]:
    """Give every span that ends to `processor`, redacted, sampled or not, until the block ends.

    Its losses are counted under `name`. Telemetry must be configured.
    """
    with _configured().sinks.attached(processor, name):
        yield


def span_writer() -> SpanWriter:
    """The quickest way to write spans that are over when they are made."""
    if _process is None or _process.options.console:
        return TracerWriter(trace.get_tracer(SCOPE))
    resource = cast(TracerProvider, trace.get_tracer_provider()).resource
    return DirectWriter(_process.processors, resource, InstrumentationScope(SCOPE))


def losses() -> Losses:
    """What each sink has lost; a sink of one's own adds to it. Telemetry must be configured."""
    return _configured().losses


def _configured() -> _Process:
    if _process is None:
        raise RuntimeError("Telemetry is not configured yet: call configure() first.")
    return _process


@contextmanager
def metric_source(source: Source) -> Iterator[None]:
    """Ask `source` for figures whenever metrics are read, until the block ends.

    Nobody reads metrics where telemetry isn't configured, so there it does nothing.
    """
    if _process is None:
        yield
        return
    with _process.observed.attached(source):
        yield


def scrape(accept: str) -> Scrape | None:
    """The metrics as Prometheus reads them, in the format that the Accept header prefers; None when that is off.

    Takes milliseconds: keep it off the event loop.
    """
    if _process is None or _process.prometheus is None:
        return None
    return _process.prometheus.scrape(accept)


def hurry() -> None:
    """Begin to send what is waiting, and wait for nothing: for when an application begins to stop.

    Whoever takes nothing is found out while it does other things, and then `flush` doesn't wait for them.
    """
    if _process is not None:
        _process.background.begin(_process.exports.hurry)


def flush(timeout_s: float = SEND_S) -> bool:
    """Send what is waiting; False when that took longer than `timeout_s`, and then it goes on in the background.

    For the end of an application's lifespan: the process may run another one. At once when nothing is sent anywhere,
    or only to those who have not answered for as long already. What it takes of `SEND_S` the end of the process lacks.
    The SDK's own time limits don't hold: with a server that accepts and never answers, `force_flush(3000)` took 9 to
    46 s, and `shutdown` raised.
    """
    if _process is not None:
        _process.deadline.begin()
    return _within(timeout_s, lambda: _send(timeout_s))


def shutdown(timeout_s: float) -> bool:
    """Send what is waiting and stop for good; False when `timeout_s` passed first, and what is left is lost.

    Happens by itself when the process ends.
    """
    is_done = _within(timeout_s, lambda: _flush_and_stop(timeout_s))
    _forget_exit_handlers()
    return is_done


def _shut_down_at_exit() -> None:
    shutdown(_configured().deadline.left_s())


def _flush_and_stop(timeout_s: float) -> bool:
    # Logfire's own order would collect the last metrics when their receivers have been shut down.
    # Not all of the time: what couldn't be sent is still to be counted.
    is_flushed = _send(timeout_s * 0.8)
    logfire.shutdown(_milliseconds(timeout_s * 0.2), flush=False)
    return is_flushed


def _send(timeout_s: float) -> bool:
    try:
        return logfire.force_flush(_milliseconds(timeout_s))
    except Exception:  # noqa: BLE001 -- the SDK raises one when metrics could not be read in time: they are lost, no more
        return False


def _exports(sampling: Sampling, losses: Losses, console: BackgroundText | None) -> Exports:
    # They say it again for each try; ours say once when an outage begins and once when it ends.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    return Exports(
        span_destinations(os.environ),
        metric_destinations(os.environ),
        sampling,
        losses,
        console=console.outbox if console else None,
    )


def _configure_logfire(
    options: TelemetryOptions,
    sampling: Sampling,
    console: BackgroundText | None,
    span_processors: Sequence[SpanProcessor],
    metric_readers: Sequence[MetricReader],
) -> None:
    with _without_exporters_of_logfire():
        _configure_pipeline(options, sampling, console, span_processors, metric_readers)


def _configure_pipeline(
    options: TelemetryOptions,
    sampling: Sampling,
    console: BackgroundText | None,
    span_processors: Sequence[SpanProcessor],
    metric_readers: Sequence[MetricReader],
) -> None:
    logfire.configure(
        send_to_logfire=False,
        service_name=options.service_name,
        service_version=options.service_version,
        environment=options.environment,
        console=_console(console),
        additional_span_processors=span_processors,
        # Without a reader each number would still be looked at, hundreds for each answer.
        metrics=MetricsOptions(additional_readers=metric_readers, views=_VIEWS)
        if metric_readers
        else False,
        sampling=SamplingOptions(head=RecordingSampler(sampling)),
        # `redaction` stands in its place and says why.
        scrubbing=False,
        inspect_arguments=False,
        # Baggage is whatever the caller writes into a header.
        add_baggage_to_attributes=False,
        # A client's `traceparent` is continued on purpose; unset, Logfire warns about each.
        distributed_tracing=True,
        advanced=AdvancedOptions(
            exception_callback=keep_only_frames, log_record_processors=[LogRedactor()]
        ),
    )
    propagate.set_global_textmap(BoundedTraceContext())


def _redactor(options: TelemetryOptions) -> Redactor:
    """The first of all processors: those behind it see what it has left of a span."""
    return ContentRedactor() if options.records_content else Redactor()


# Logfire's own views turn histograms into exponential ones, which have no buckets of ours and fail a Prometheus scrape.
_VIEWS = (View(instrument_name="otel.sdk.*", aggregation=DropAggregation()),)


def _console(output: BackgroundText | None) -> ConsoleOptions | Literal[False]:
    if output is None:
        return False
    return ConsoleOptions(
        span_style="show-parents",
        show_project_link=False,
        min_log_level="info",
        output=cast(TextIO, output),
    )


@contextmanager
def _without_exporters_of_logfire() -> Iterator[None]:
    """Keep Logfire from building OTLP exporters of its own beside ours; it asks these variables and nothing else."""
    names = [f"OTEL_{signal}_EXPORTER" for signal in ("TRACES", "METRICS", "LOGS")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "none"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prefer_current_conventions() -> None:
    """Let the instrumentations that still default to the old names (`http.url`, `db.statement`) use today's.

    They read this variable when they first run, and there is no other way to tell them.
    """
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")


def _within(timeout_s: float, work: Callable[[], object]) -> bool:
    return _process is None or _process.background.do(work, timeout_s)


def _forget_exit_handlers() -> None:
    """Keep the SDK from starting over at exit, and without a time limit, what is done or given up."""
    atexit.unregister(_shut_down_at_exit)
    for proxy in (trace.get_tracer_provider(), metrics.get_meter_provider(), get_logger_provider()):
        provider = getattr(proxy, "provider", None)  # the SDK's own, behind Logfire's
        # None of metrics where nobody reads any.
        if shut_down := getattr(provider, "shutdown", None):
            atexit.unregister(shut_down)


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
