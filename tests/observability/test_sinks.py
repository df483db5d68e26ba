"""Any sinks at once: a broken one loses its own data, counts it, and costs nobody else anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlx_manager.observability.deadline import Deadline
from mlx_manager.observability.destinations import Destination, Exports
from mlx_manager.observability.losses import Losses
from mlx_manager.observability.outbox import Outbox, flush_all
from mlx_manager.observability.sampling import Sampling
from mlx_manager.observability.sinks import Sinks
from tests.observability.conftest import TOKEN, Python
from tests.support.certificate import make_certificate
from tests.support.collector import Behaviour, collecting
from tests.support.running import wait_until

# Makes a span and a metric, sends them, and prints whether all was sent, what was lost, and how long that took.
REPORT = """
import json, time
from mlx_manager.observability.setup import TelemetryOptions, configure, flush, losses, shutdown
configure(TelemetryOptions("test"))
import logfire
from opentelemetry import metrics
counter = metrics.get_meter("mlx_manager").create_counter("mlx.requests.cancelled")
began = time.perf_counter()
for number in range(%(spans)d):
    with logfire.span(f"work {number}"):
        counter.add(1)
worked = time.perf_counter() - began
flushed = flush(%(timeout_s)s)
sent = time.perf_counter() - began
lost_at_flush = dict(losses().by_sink())
shutdown(1.0)
print(json.dumps([flushed, worked < 5, sent < %(timeout_s)s + 5, lost_at_flush, dict(losses().by_sink())]))
"""


def report(spans: int = 3, timeout_s: float = 5.0) -> str:
    return REPORT % {"spans": spans, "timeout_s": timeout_s}


def test_a_collector_gets_spans_and_metrics_by_the_standard_variables(python: Python) -> None:
    with collecting() as collector:
        done = python(
            report(),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-tenant=blue",
            OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        )
        assert done.stdout.strip() == "[true, true, true, {}, {}]", done.stderr
        assert collector.span_names == ["work 0", "work 1", "work 2"]
        assert "mlx.requests.cancelled" in collector.metric_names
        assert (collector.headers["x-tenant"], collector.headers["Content-Encoding"]) == (
            "blue",
            "gzip",
        )
        assert {path for path, _ in collector.bodies} == {"/v1/traces", "/v1/metrics"}
    assert done.stderr == ""


def test_each_signal_can_have_an_endpoint_of_its_own(python: Python) -> None:
    with collecting() as traces, collecting() as numbers:
        done = python(
            report(),
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{traces.url}/here",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{numbers.url}/there",
            OTEL_EXPORTER_OTLP_TRACES_HEADERS="x-signal=traces",
            OTEL_EXPORTER_OTLP_METRICS_HEADERS="x-signal=numbers",
            OTEL_METRICS_EXPORTER="otlp",
        )
        assert done.stderr == ""
        assert {path for path, _ in traces.bodies} == {"/here"}
        assert {path for path, _ in numbers.bodies} == {"/there"}
        assert traces.headers["x-signal"] == "traces"
        assert numbers.headers["x-signal"] == "numbers"


@pytest.mark.parametrize(
    ("variables", "signals"),
    [
        (("OTEL_EXPORTER_OTLP_CERTIFICATE",), {"traces", "metrics"}),
        (("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",), {"traces"}),
        ((), set()),
    ],
)
def test_a_collector_s_own_certificate_is_trusted_where_it_is_named_and_nowhere_else(
    python: Python, tmp_path: Path, variables: Sequence[str], signals: set[str]
) -> None:
    certificate = make_certificate(tmp_path)
    with collecting(certificate=certificate) as collector:
        done = python(
            report(),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
            **dict.fromkeys(variables, str(certificate)),
        )
        assert {path.removeprefix("/v1/") for path, _ in collector.bodies} == signals
    assert ('"otlp": 3' in done.stdout) is ("traces" not in signals)
    assert ('"otlp_metrics": 1' in done.stdout) is ("metrics" not in signals)
    assert "Traceback" not in done.stderr


def test_metrics_can_be_switched_off_alone(python: Python) -> None:
    with collecting() as collector:
        python(report(), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="none")
        assert collector.span_names == ["work 0", "work 1", "work 2"]
        assert collector.metric_names == set()


@pytest.mark.parametrize(
    "variable", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_SAMPLER": "always_off"}]
)
def test_traces_can_be_switched_off_alone(python: Python, variable: dict[str, str]) -> None:
    with collecting() as collector:
        python(report(), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variable)
        assert collector.span_names == []
        assert collector.metric_names


def test_logfire_and_a_collector_get_the_same_and_not_each_others_keys(python: Python) -> None:
    with collecting() as logfire, collecting() as collector:
        done = python(
            report(),
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=logfire.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=of-the-collector",
        )
        assert done.stdout.strip() == "[true, true, true, {}, {}]", done.stderr
        assert logfire.span_names == collector.span_names == ["work 0", "work 1", "work 2"]
        assert logfire.metric_names == collector.metric_names
        assert logfire.headers["Authorization"] == TOKEN
        assert "x-key" not in logfire.headers
        assert "Authorization" not in collector.headers


@pytest.mark.parametrize("behaviour", ["is silent", "fails", "is busy"])
def test_a_broken_sink_loses_its_own_data_and_nothing_else(
    python: Python, behaviour: Behaviour
) -> None:
    with collecting(behaviour) as broken, collecting() as well:
        done = python(
            report(timeout_s=4.0),
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=broken.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=well.url,
        )
        assert well.span_names == ["work 0", "work 1", "work 2"]
        assert well.metric_names
    assert done.returncode == 0
    assert '"logfire": 3' in done.stdout
    assert '"otlp"' not in done.stdout
    assert "Traceback" not in done.stderr


def test_a_sink_that_refuses_loses_its_own_data_and_nothing_else(
    python: Python, refused_port: int
) -> None:
    with collecting() as well:
        done = python(
            report(timeout_s=4.0),
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=well.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{refused_port}",
            OTEL_EXPORTER_OTLP_TIMEOUT="1",
        )
        assert well.span_names == ["work 0", "work 1", "work 2"]
    assert '"otlp": 3' in done.stdout
    assert '"logfire"' not in done.stdout


def test_a_slow_sink_gets_everything_later(python: Python) -> None:
    with collecting("is slow") as slow, collecting() as fast:
        done = python(
            report(timeout_s=10.0),
            LOGFIRE_TOKEN=TOKEN,
            LOGFIRE_BASE_URL=slow.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=fast.url,
        )
        assert slow.span_names == fast.span_names == ["work 0", "work 1", "work 2"]
    assert done.stdout.strip() == "[true, true, true, {}, {}]"


@pytest.mark.parametrize(
    "variable",
    [
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon marked-secret"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "marked-secret"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_a_sink_that_is_set_up_wrongly_is_off_and_says_so(
    python: Python, variable: dict[str, str]
) -> None:
    with collecting() as collector:
        done = python(report(), OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variable)
        assert collector.bodies == []
    assert done.stdout.strip() == "[true, true, true, {}, {}]"
    assert "telemetry sink misconfigured: otlp is off" in done.stderr
    assert "marked-secret" not in done.stderr


def test_a_console_that_nobody_reads_holds_nothing_up(python: Python) -> None:
    """The pipe takes 64 KiB and then blocks whoever writes."""
    done = python("""
import json, os, sys
out, saved = os.pipe(), os.dup(1)
sys.stdout = os.fdopen(out[1], "w")
from mlx_manager.observability.setup import TelemetryOptions, configure, flush, losses, shutdown
configure(TelemetryOptions("test", console=True))
import logfire
for number in range(3000):
    with logfire.span("work " + "x" * 200):
        pass
flushed, _ = flush(0.5), shutdown(0.5)
os.write(saved, json.dumps([flushed, losses().by_sink()["console"] > 1000]).encode())
os._exit(0)
""")

    assert done.stdout == "[false, true]", done.stderr


class Raises(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise OSError("disk full")


def test_a_local_sink_that_raises_is_counted_and_the_others_get_their_span() -> None:
    losses, exporter = Losses(), InMemorySpanExporter()
    sinks = Sinks(losses)
    span = ReadableSpan("work")
    with (
        sinks.attached(Raises(), "broken"),
        sinks.attached(SimpleSpanProcessor(exporter), "well"),
    ):
        sinks.on_end(span)

    assert losses.by_sink() == {"broken": 1}


def test_an_outbox_that_is_full_loses_what_comes_and_never_waits() -> None:
    losses, sent, gate = Losses(), list[int](), Gate()
    outbox = Outbox("box", gate.passing(sent), losses, capacity=3, batch_size=2, delay_s=0)
    outbox.put(0)
    wait_until(lambda: gate.is_reached)
    for number in range(1, 6):
        outbox.put(number)
    assert not outbox.wait(0.01)
    gate.is_open = True
    assert flush_all([outbox], 10)

    assert sent == [0, 1, 2, 3]
    assert losses.by_sink() == {"box": 2}


def test_what_an_outbox_cannot_send_is_counted_and_the_next_batch_is_tried() -> None:
    losses, sent = Losses(), list[int]()

    def send(batch: Sequence[int]) -> bool:
        if 0 in batch:
            raise ValueError("no such thing")
        sent.extend(batch)
        return 1 not in batch

    outbox = Outbox("box", send, losses, batch_size=1)
    for number in range(3):
        outbox.put(number)
    assert flush_all([outbox], 10)

    assert (sent, losses.by_sink()) == ([1, 2], {"box": 2})


def test_a_closed_outbox_counts_what_it_still_had() -> None:
    losses = Losses()
    outbox = Outbox[int]("box", lambda batch: True, losses, delay_s=60)
    outbox.put(1)
    outbox.close()
    outbox.put(2)

    assert losses.by_sink() == {"box": 2}


def test_nobody_waits_for_what_is_on_its_way_from_a_closed_outbox() -> None:
    losses, sent, gate = Losses(), list[int](), Gate()
    outbox = Outbox("box", gate.passing(sent), losses, delay_s=0)
    outbox.put(1)
    wait_until(lambda: gate.is_reached)
    outbox.close()
    began_s = time.monotonic()
    assert not outbox.wait(20)
    waited_s = time.monotonic() - began_s
    gate.is_open = True

    assert waited_s < 10
    assert losses.by_sink() == {"box": 1}


def test_whoever_has_not_answered_for_as_long_is_not_waited_for_again() -> None:
    losses, sent, gate = Losses(), list[int](), Gate()
    hangs = Outbox("hangs", gate.passing(sent), losses, delay_s=0)
    well = Outbox[int]("well", lambda batch: True, losses, delay_s=60)
    hangs.put(1)
    wait_until(lambda: gate.is_reached)
    assert not flush_all([hangs, well], 0.01)
    hangs.put(2)
    well.put(3)
    began_s = time.monotonic()
    assert not hangs.wait(60, patience_s=0.01)
    assert well.wait(0) is False, "it has its time"
    well.hurry()
    assert well.wait(60, patience_s=60)
    waited_s = time.monotonic() - began_s
    gate.is_open = True

    assert waited_s < 30


def test_an_end_that_begins_sends_what_there_is_and_waits_for_nothing() -> None:
    with collecting() as collector:
        exporter = OTLPMetricExporter(f"{collector.url}/v1/metrics")
        to: Destination[MetricExporter] = Destination("metrics", exporter)
        exports = Exports([], [to], Sampling(), Losses())
        # Metrics are read once a minute by themselves.
        provider = MeterProvider(exports.metric_readers)
        provider.get_meter("test").create_counter("counted").add(1)
        exports.hurry()
        wait_until(lambda: collector.metric_names == {"counted"})
        provider.shutdown()
        exports.shutdown()


def test_the_end_of_a_process_has_what_the_end_of_its_application_has_left() -> None:
    now_s = [100.0]
    deadline = Deadline(1.0, lambda: now_s[0])
    assert deadline.left_s() == 1.0
    deadline.begin()
    for at_s, left_s in ((100.25, 0.75), (101.5, 0.0), (160.0, 1.0)):
        now_s[0] = at_s
        assert deadline.left_s() == pytest.approx(left_s)


def test_metrics_that_come_too_late_fail_no_shutdown(python: Python) -> None:
    """The SDK raises then."""
    with collecting() as collector:
        done = python(
            """
import time
from mlx_manager.observability.setup import TelemetryOptions, configure, metric_source, shutdown
configure(TelemetryOptions("test"))
def slow():
    time.sleep(0.9)
    return []
with metric_source(slow):
    print(shutdown(1.0))
""",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        )
    assert (done.stdout, done.returncode, done.stderr) == ("False\n", 0, "")


class Gate:
    """Holds sending up until it is opened."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_reached = False

    def passing(self, sent: list[int]):  # type: ignore[no-untyped-def]
        def send(batch: Sequence[int]) -> bool:
            self.is_reached = True
            while not self.is_open:
                time.sleep(0.001)
            sent.extend(batch)
            return True

        return send
