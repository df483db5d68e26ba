"""OpenTelemetry's metrics as Prometheus names and writes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from mlx_manager.observability import attributes as names
from mlx_manager.observability.exposition import family_name, labels
from mlx_manager.observability.observed import Figure, Observed, dropped
from mlx_manager.observability.prometheus import PrometheusReader
from tests.support.scrape import Scrape


@pytest.fixture
def reader() -> PrometheusReader:
    return PrometheusReader()


@pytest.fixture
def provider(reader: PrometheusReader) -> Iterator[MeterProvider]:
    resource = Resource({"service.name": "test", "service.instance.id": "1"})
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def meter(provider: MeterProvider) -> Meter:
    return provider.get_meter("tests", "1.0")


def in_trace(trace_id: int) -> Context:
    """A context in a sampled trace."""
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    span = trace.NonRecordingSpan(
        trace.SpanContext(trace_id, 7, is_remote=False, trace_flags=flags)
    )
    return trace.set_span_in_context(span, Context())


def scraped(reader: PrometheusReader) -> Scrape:
    return Scrape.parsed(reader.scrape("").body.decode())


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        (
            "gen_ai.server.request.duration",
            "s",
            "histogram",
            "gen_ai_server_request_duration_seconds",
        ),
        ("mlx.memory.bytes", "By", "gauge", "mlx_memory_bytes"),
        ("mlx.tokens", "{token}", "counter", "mlx_tokens"),
        ("already.total", "1", "counter", "already"),
        ("a.share", "1", "gauge", "a_share_ratio"),
        ("seconds.spent", "s", "counter", "seconds_spent"),
        ("2nd--try", "", "gauge", "_2nd_try"),
        ("distance", "km", "gauge", "distance_km"),
    ],
)
def test_names_follow_the_rules_of_opentelemetry(
    name: str, unit: str, kind: str, expected: str
) -> None:
    assert family_name(name, unit, kind)[0] == expected


def test_values_of_attributes_that_become_one_label_are_joined() -> None:
    found = labels({"a.b": "second", "a-b": "first", "flag": True, "list": ("x", 1)})
    assert found == {"a_b": "first;second", "flag": "true", "list": '["x", 1]'}


def test_what_text_can_not_hold_does_not_fail_the_scrape(
    reader: PrometheusReader, meter: Meter
) -> None:
    meter.create_counter("odd").add(1, {"who": 'a "b"\n\\ \ud800 é'})
    (sample,) = scraped(reader).matching("odd_total")
    assert sample.labels["who"] == 'a "b"\n\\ ? é'


def test_an_exemplar_stands_at_the_bucket_it_fell_into_until_a_newer_one_does(
    reader: PrometheusReader, meter: Meter
) -> None:
    durations = meter.create_histogram("d", "s", explicit_bucket_boundaries_advisory=[1.0, 2.0])

    def found() -> dict[str, tuple[str, float]]:
        return {
            sample.labels["le"]: (sample.exemplar.labels["trace_id"][-1], sample.exemplar.value)
            for sample in scraped(reader).matching("d_seconds_bucket")
            if sample.exemplar is not None
        }

    durations.record(1.0, {}, in_trace(1))
    durations.record(9.0, {}, in_trace(2))
    durations.record(1.5, {}, Context())
    first = {"1.0": ("1", 1.0), "+Inf": ("2", 9.0)}
    assert found() == first
    assert found() == first
    durations.record(0.5, {}, in_trace(3))
    assert found() == first | {"1.0": ("3", 0.5)}


def test_a_name_that_is_used_for_two_kinds_keeps_the_first(
    reader: PrometheusReader, provider: MeterProvider
) -> None:
    provider.get_meter("one").create_counter("same").add(1)
    provider.get_meter("two").create_counter("same").add(2)
    provider.get_meter("three").create_up_down_counter("same").add(4)
    scrape = scraped(reader)
    assert scrape.total("same_total", otel_scope_name="one") == 1
    assert scrape.total("same_total", otel_scope_name="two") == 2
    assert scrape.matching("same") == []


def test_the_resource_is_target_info(reader: PrometheusReader, meter: Meter) -> None:
    meter.create_counter("x").add(1)
    (target,) = scraped(reader).matching("target_info")
    assert target.labels == {"service_name": "test", "service_instance_id": "1"}


def test_observed_figures_come_from_who_is_there_now(
    reader: PrometheusReader, meter: Meter
) -> None:
    observed = Observed(meter)
    model = {names.REQUEST_MODEL: "m"}

    def depth() -> list[float]:
        return [sample.value for sample in scraped(reader).matching("mlx_queue_depth")]

    assert depth() == []
    with observed.attached(lambda: [Figure(names.QUEUE_DEPTH, 3, model)]):
        assert depth() == [3]
    assert depth() == []


def test_each_sink_counts_what_it_dropped(reader: PrometheusReader, meter: Meter) -> None:
    lost = {"audit": 2, "traces": 5}
    source = dropped({"audit": lambda: lost["audit"], "traces": lambda: lost["traces"]})
    with Observed(meter).attached(source):
        lost["traces"] += 1
        scrape = scraped(reader)
    assert scrape.total("mlx_telemetry_dropped_total", sink="audit") == 2
    assert scrape.total("mlx_telemetry_dropped_total", sink="traces") == 6
