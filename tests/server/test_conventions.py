"""Names that look like OpenTelemetry's are OpenTelemetry's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import opentelemetry.semconv._incubating.attributes as newer_attributes
import opentelemetry.semconv._incubating.metrics as newer_metrics
import opentelemetry.semconv.attributes as stable_attributes
import opentelemetry.semconv.metrics as stable_metrics
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mlx_manager.observability import attributes
from tests.conftest import TINY
from tests.support.collector import collecting
from tests.support.otlp import names
from tests.support.process import started
from tests.support.running import wait_until

# What begins like this must be in the conventions; what is ours begins with `mlx.`, what Logfire adds with `logfire.`.
SHARED = (
    "gen_ai",
    "server",
    "error",
    "http",
    "db",
    "url",
    "service",
    "deployment",
    "network",
    "exception",
)
OWN = ("mlx", "logfire", "telemetry")
# Words of ours without a dot, that metrics are split by.
PLAIN = {attributes.KIND, attributes.OUTCOME, attributes.SINK}
# Names that the installed package is too old for, each with where it comes from. None today.
TOO_NEW: dict[str, str] = {}


def conventional() -> set[str]:
    """All names in the package that the conventions are published as."""
    packages = (newer_attributes, newer_metrics, stable_attributes, stable_metrics)
    return {
        value
        for package in packages
        for module in (package, *_modules(package))
        for value in vars(module).values()
        if isinstance(value, str)
    }


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


def is_shared(name: str) -> bool:
    return name.partition(".")[0] in SHARED and "." in name


def declared() -> set[str]:
    """Every name in `attributes.py`."""
    values = [value for name, value in vars(attributes).items() if name.isupper()]
    texts = {value for value in values if isinstance(value, str)}
    return texts | {value.name for value in values if isinstance(value, attributes.Metric)}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> set[str]:
    """Every attribute and metric name that a server sends of chats that go well and of requests that don't."""
    folder = tmp_path_factory.mktemp("conventions")
    with collecting() as collector:
        with started(
            folder,
            *("server", "--model-dir", str(model_dir)),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            MLX_SERVER_CAPTURE_CONTENT="on",
        ) as server:
            for model, is_streamed in ((TINY, True), (TINY, False), ("test/unknown", False)):
                messages = [{"role": role, "content": "Hello"} for role in ("system", "user")]
                asked = {"model": model, "messages": messages, "max_tokens": 3, "stop": "never"}
                url = f"{server.url}/v1/chat/completions"
                httpx.post(url, json=asked | {"stream": is_streamed}, timeout=60)
            wait_until(lambda: "chat test/unknown" in collector.span_names, 60)
            server.process.terminate()
            server.wait()
        bodies = list(collector.bodies)
    spans = set[str]().union(*(_of_spans(body) for path, body in bodies if path == "/v1/traces"))
    metrics = set[str]().union(
        *(_of_metrics(body) for path, body in bodies if path == "/v1/metrics")
    )
    assert {"gen_ai.server.request.duration", "gen_ai.provider.name"} <= metrics
    assert {"gen_ai.input.messages", "error.type", "http.route", "service.name"} <= spans
    return spans | metrics


def _of_spans(body: bytes) -> Iterator[str]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        yield from names(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                for holder in (span, *span.events, *span.links):
                    yield from names(holder.attributes)


def _of_metrics(body: bytes) -> Iterator[str]:
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield metric.name
                found = getattr(metric, metric.WhichOneof("data") or "")
                for point in found.data_points:
                    yield from names(point.attributes)


def test_what_is_declared_is_in_the_conventions() -> None:
    shared = set(filter(is_shared, declared()))
    assert len(shared) > 30
    assert shared - conventional() - TOO_NEW.keys() == set()


def test_what_is_emitted_is_in_the_conventions_or_plainly_ours(emitted: set[str]) -> None:
    strange = {name for name in emitted if name.partition(".")[0] not in OWN} - PLAIN
    assert strange - conventional() - TOO_NEW.keys() == set()


def test_no_name_is_excused_that_needs_no_excuse(emitted: set[str]) -> None:
    assert TOO_NEW.keys() & conventional() == set()
    assert TOO_NEW.keys() - emitted - declared() == set()
