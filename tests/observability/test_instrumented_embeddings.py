"""A request for embeddings is one span with its phases, a duration and its tokens."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import StatusCode

from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.events import Interval, Route, Timeline
from mlx_manager.chat.request import Origin
from mlx_manager.errors import EngineFailed, PromptTooLong
from mlx_manager.observability.instrumented_embeddings import InstrumentedEmbeddings
from mlx_manager.observability.metrics import ChatMetrics
from tests.support.spans import Spans

SECRET = "marked-secret-4711"
MS = 1_000_000
ORIGIN = Origin(request_id="r-1", endpoint="/v1/embeddings", key_id="laptop")
NAME = "embeddings asked/model"


class Recorded:
    """A backend that has 6 tokens' vectors ready, unless `act` keeps it from answering."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.act = act

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self.act()
        return Embeddings("answering/model", (array("f", [1, 0]), array("f", [0, 1])), 6)


def request(timeline: Timeline) -> EmbeddingRequest:
    inputs = (SECRET, SECRET)
    return EmbeddingRequest(
        "asked/model", inputs, ORIGIN, encoding_format="base64", timeline=timeline
    )


def a_timeline(*, is_whole: bool = True) -> Timeline:
    """Routed in 1 ms, tokenized in 1, waited 2, and computed for 10 in two batches of 2 and 4 inputs."""
    start = time.time_ns()
    reached = Timeline(
        routing=Interval(start, start + MS),
        route=Route("local", "answering/model", "folder", "abc"),
        tokenize=Interval(start + MS, start + 2 * MS),
        prompt_tokens=6,
    )
    if is_whole:
        reached.queued_ns, reached.admitted_ns = start + 2 * MS, start + 4 * MS
        reached.finished_ns = start + 14 * MS
        reached.batches, reached.batch_width_sum, reached.batch_width_max = 2, 6, 4
    return reached


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def metrics(reader: InMemoryMetricReader) -> ChatMetrics:
    return ChatMetrics(MeterProvider([reader]).get_meter("test"))


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    data = reader.get_metrics_data()
    scopes = [
        scope for one in (data.resource_metrics if data else []) for scope in one.scope_metrics
    ]
    found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
    return [point for metric in found for point in metric.data.data_points]


def fail(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


async def test_an_answer_is_one_span_with_its_phases(spans: Spans, metrics: ChatMetrics) -> None:
    await InstrumentedEmbeddings(Recorded(), metrics=metrics).embed(request(a_timeline()))

    said = dict(spans.one(NAME).attributes or {})
    assert said["gen_ai.operation.name"] == "embeddings"
    assert (said["gen_ai.request.model"], said["gen_ai.response.model"]) == (
        "asked/model",
        "answering/model",
    )
    assert said["gen_ai.embeddings.dimension.count"] == 2
    assert said["gen_ai.request.encoding_formats"] == ("base64",)
    assert said["gen_ai.usage.input_tokens"] == 6
    assert (said["mlx.request.inputs"], said["mlx.key.id"]) == (2, "laptop")
    assert (said["mlx.queue_s"], said["mlx.model.revision"]) == (0.002, "abc")
    computed = spans.one("compute")
    assert (computed.end_time or 0) - (computed.start_time or 0) == 10 * MS
    work = dict(computed.attributes or {})
    assert (work["mlx.compute.tokens"], work["mlx.compute.batches"]) == (6, 2)
    assert (work["mlx.batch.width_mean"], work["mlx.batch.width_max"]) == (3, 4)
    assert SECRET not in spans.text()


async def test_an_answer_is_measured(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    await InstrumentedEmbeddings(Recorded(), metrics=metrics).embed(request(a_timeline()))

    (duration,) = points(reader, "gen_ai.server.request.duration")
    assert duration.count == 1
    assert duration.attributes["gen_ai.operation.name"] == "embeddings"
    assert duration.attributes["gen_ai.response.model"] == "answering/model"
    tokens = {one.attributes["kind"]: one.value for one in points(reader, "mlx.tokens")}
    assert tokens == {"input": 6, "output": 0, "cached": 0}
    assert points(reader, "gen_ai.server.time_to_first_token") == []


async def test_a_failure_is_that_of_its_last_phase(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    backend = InstrumentedEmbeddings(Recorded(fail(PromptTooLong(SECRET))), metrics=metrics)
    with pytest.raises(PromptTooLong):
        await backend.embed(request(a_timeline(is_whole=False)))

    for name in (NAME, "tokenize"):
        span = spans.one(name)
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "context_length_exceeded"
    assert spans.named("compute") == []
    assert SECRET not in spans.text()
    (duration,) = points(reader, "gen_ai.server.request.duration")
    assert duration.attributes["error.type"] == "context_length_exceeded"
    assert points(reader, "mlx.tokens") == []


async def test_an_engine_that_died_fails_the_computing(spans: Spans, metrics: ChatMetrics) -> None:
    timeline = a_timeline()
    timeline.finished_ns = None
    backend = InstrumentedEmbeddings(Recorded(fail(EngineFailed("gone"))), metrics=metrics)
    with pytest.raises(EngineFailed):
        await backend.embed(request(timeline))

    assert (spans.one("compute").attributes or {})["error.type"] == "engine_failed"
    assert spans.one("queue").status.status_code is StatusCode.UNSET


async def test_a_client_that_leaves_is_counted_and_no_error(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    backend = InstrumentedEmbeddings(Recorded(fail(asyncio.CancelledError())), metrics=metrics)
    with pytest.raises(asyncio.CancelledError):
        await backend.embed(request(a_timeline()))

    span = spans.one(NAME)
    assert (span.attributes or {})["mlx.cancelled"] is True
    assert span.status.status_code is StatusCode.UNSET
    assert [one.value for one in points(reader, "mlx.requests.cancelled")] == [1]
    assert points(reader, "gen_ai.server.request.duration") == []
