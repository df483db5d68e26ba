"""A chat is one span with its phases, and three numbers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

import logfire
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.trace import SpanKind, StatusCode

from mlx_manager.chat.events import (
    ChatEvent,
    Finished,
    Interval,
    Load,
    Route,
    Stall,
    Started,
    TextDelta,
    Timeline,
    TraceContext,
    Usage,
    collect,
)
from mlx_manager.chat.request import ChatRequest, Conversation, Message, Origin, RawPrompt, Sampling
from mlx_manager.errors import EngineFailed, ModelNotFound, ShuttingDown
from mlx_manager.mlx_server.generation.findings import MOST_FINDINGS, Findings
from mlx_manager.observability import attributes as names
from mlx_manager.observability.instrumented import InstrumentedBackend
from mlx_manager.observability.metrics import ChatMetrics
from tests.support.spans import Spans, ids

SECRET = "marked-secret-4711"
MS = 1_000_000
ORIGIN = Origin(request_id="r-1", endpoint="/v1/chat/completions")
CHAT = ChatRequest("asked/model", Conversation((Message("user", SECRET),)), ORIGIN, stream=True)


class Recorded:
    """A backend that plays the events it was given, with `act` in their midst."""

    def __init__(
        self, *texts: str, timeline: Timeline, act: Callable[[], object] = lambda: None
    ) -> None:
        self.texts, self.timeline, self.act = texts, timeline, act
        self.is_closed = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        try:
            with logfire.span("inside"):
                await asyncio.sleep(0)
            yield Started("answering/model", self.timeline)
            for text in self.texts:
                yield TextDelta(text)
            self.act()
            yield Finished("stop", Usage(12, len(self.texts), 4))
        finally:
            self.is_closed = True


def a_timeline() -> Timeline:
    """Loaded for 5 ms, tokenized for 1, waited 2, prefilled 10, and made 5 tokens in 8."""
    start = time.time_ns()
    return Timeline(
        model_load=Interval(start, start + 5 * MS),
        tokenize=Interval(start + 5 * MS, start + 6 * MS),
        queued_ns=start + 6 * MS,
        admitted_ns=start + 8 * MS,
        first_token_ns=start + 18 * MS,
        finished_ns=start + 26 * MS,
        prompt_tokens=12,
        cached_tokens=4,
        prefill_chunks=2,
        output_tokens=5,
        batch_width_sum=10,
        batch_width_max=3,
        longest_gap_ns=3 * MS,
    )


def fail(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def metrics(reader: InMemoryMetricReader) -> ChatMetrics:
    return ChatMetrics(MeterProvider([reader]).get_meter("test"))


Point = HistogramDataPoint | NumberDataPoint


def collected(reader: InMemoryMetricReader) -> dict[str, list[Point]]:
    """All points by metric. A second look would find no exemplars: they belong to one collection."""
    found: dict[str, list[Point]] = defaultdict(list)
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            found[metric.name] += [
                point for point in metric.data.data_points if isinstance(point, Point)
            ]
    return found


async def test_a_chat_is_a_span_with_what_was_asked_and_what_came(
    spans: Spans, metrics: ChatMetrics
) -> None:
    request = ChatRequest(
        "asked/model",
        CHAT.input,
        ORIGIN,
        Sampling(temperature=0.0, top_k=5, seed=7),
        max_tokens=64,
        stop=("END",),
        stream=True,
    )
    backend = InstrumentedBackend(Recorded("a", "b", timeline=a_timeline()), metrics=metrics)

    answer = await collect(backend.stream(request))

    assert answer.text == "ab"
    span = spans.one("chat asked/model")
    assert span.kind is SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes or {})
    assert attributes.pop("gen_ai.response.time_to_first_chunk") > 0  # type: ignore[operator]
    assert attributes.pop("mlx.time_to_first_token_s") == pytest.approx(0.018, abs=0.01)
    assert attributes == {
        "logfire.span_type": "span",
        "logfire.msg": "chat asked/model",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "asked/model",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_k": 5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "chatcmpl-r-1",
        "gen_ai.response.model": "answering/model",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "mlx.backend": "local",
        "mlx.request.id": "r-1",
        "mlx.queue_s": 0.002,
        "mlx.time_per_output_token_s": 0.002,
        "mlx.batch.width_mean": 2.0,
        "mlx.batch.width_max": 3,
        "mlx.cache.matched_tokens": 4,
        "mlx.cache.outcome": "partial",
    }
    assert SECRET not in spans.text()


async def test_generation_controls_that_were_asked_for_are_on_the_span(
    spans: Spans, metrics: ChatMetrics
) -> None:
    sampling = Sampling(
        top_p=0.9,
        top_k=7,
        min_p=0.05,
        presence_penalty=0.5,
        frequency_penalty=0.0,
        repetition_penalty=1.1,
        logit_bias={5: -100.0, 6: 1.0},
        xtc_probability=0.5,
        xtc_threshold=0.2,
        min_tokens=3,
        ignore_end=True,
        top_logprobs=0,
    )
    request = ChatRequest("m", RawPrompt("x"), ORIGIN, sampling, priority="low")

    await collect(
        InstrumentedBackend(Recorded("a", timeline=Timeline()), metrics=metrics).stream(request)
    )

    attributes = spans.one("text_completion m").attributes or {}
    expected = {
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 7,
        "mlx.request.min_p": 0.05,
        "mlx.request.priority": "low",
        "gen_ai.request.presence_penalty": 0.5,
        "gen_ai.request.frequency_penalty": 0.0,
        "mlx.request.repetition_penalty": 1.1,
        "mlx.request.logit_biases": 2,
        "mlx.request.xtc_probability": 0.5,
        "mlx.request.xtc_threshold": 0.2,
        "mlx.request.min_tokens": 3,
        "mlx.request.ignore_eos": True,
        "mlx.request.top_logprobs": 0,
    }
    assert {name: attributes.get(name) for name in expected} == expected


async def test_images_that_no_model_here_reads_are_counted(
    spans: Spans, metrics: ChatMetrics
) -> None:
    result = Message("tool", "An image was left out.", left_out=2)
    request = ChatRequest("m", Conversation((result, result)), ORIGIN)

    await collect(
        InstrumentedBackend(Recorded("a", timeline=Timeline()), metrics=metrics).stream(request)
    )

    assert (spans.one("chat m").attributes or {})["mlx.request.left_out"] == 4


async def test_what_was_not_asked_is_absent(spans: Spans, metrics: ChatMetrics) -> None:
    request = ChatRequest("m", RawPrompt("x"), ORIGIN)

    await collect(
        InstrumentedBackend(Recorded("a", timeline=Timeline()), metrics=metrics).stream(request)
    )

    attributes = spans.one("text_completion m").attributes or {}
    absent = {"temperature", "top_p", "top_k", "seed", "max_tokens", "stop_sequences"}
    assert not {f"gen_ai.request.{name}" for name in absent} & set(attributes)
    assert not [
        name for name in attributes if name.startswith("mlx.request.") and name != "mlx.request.id"
    ]
    assert not [name for name in attributes if name.endswith("_penalty")]
    assert "gen_ai.response.time_to_first_chunk" not in attributes


async def test_phases_have_the_times_of_the_engine(spans: Spans, metrics: ChatMetrics) -> None:
    timeline = a_timeline()

    await collect(
        InstrumentedBackend(Recorded("a", timeline=timeline), metrics=metrics).stream(CHAT)
    )

    chat = spans.one("chat asked/model")
    phases = [span for span in spans.all if ids(span.parent) == ids(chat.context)]
    lasted = {span.name: ((span.end_time or 0) - (span.start_time or 0)) / MS for span in phases}
    lasted.pop("inside")
    assert lasted == {"model.load": 5, "tokenize": 1, "queue": 2, "prefill": 10, "decode": 8}
    assert spans.one("queue").start_time == timeline.queued_ns
    prefill = spans.one("prefill").attributes or {}
    assert prefill["mlx.prefill.tokens"] == 8
    assert prefill["mlx.cache.outcome"] == "partial"
    assert prefill["mlx.prefill.chunks"] == 2
    decode = spans.one("decode").attributes or {}
    assert decode["mlx.decode.tokens"] == 5
    assert decode["mlx.decode.tokens_per_s"] == pytest.approx(500)
    assert decode["mlx.decode.longest_gap_s"] == 0.003
    assert (decode["mlx.batch.width_mean"], decode["mlx.batch.width_max"]) == (2, 3)


async def test_what_was_found_in_an_answer_is_told_without_its_text(
    spans: Spans, metrics: ChatMetrics
) -> None:
    timeline = a_timeline()
    findings = Findings("hermes", timeline)
    findings.note("tool_call_began", "wait")
    for _ in range(MOST_FINDINGS):
        findings.note("tool_call_repaired", None)
    findings.note("tool_call_malformed", None)
    findings.note("tool_call_ended", None)
    findings.note("tool_call_left_out", 12)

    await collect(
        InstrumentedBackend(Recorded("a", timeline=timeline), metrics=metrics).stream(CHAT)
    )

    parse = spans.one("parse")
    began, *repaired, malformed, ended, left_out = parse.events
    assert (
        dict(parse.attributes or {}).items()
        >= {
            "mlx.parse.family": "hermes",
            "mlx.parse.tool_calls": 1,
            "mlx.parse.repairs": len(repaired),
            "mlx.parse.malformed": 1,
        }.items()
    )
    assert malformed.name == "tool_call.malformed"
    assert dict(began.attributes or {}) == {"gen_ai.tool.name": "wait"}
    assert {event.name for event in repaired} == {"tool_call.repaired"}
    assert (ended.name, left_out.name) == ("tool_call.ended", "tool_call.left_out")
    assert dict(left_out.attributes or {}) == {"mlx.parse.left_out_characters": 12}


async def test_what_the_timeline_says_of_a_phase_is_on_its_span(
    spans: Spans, metrics: ChatMetrics
) -> None:
    timeline = a_timeline()
    assert timeline.first_token_ns is not None
    timeline.routing = Interval(
        timeline.first_token_ns - 19 * MS, timeline.first_token_ns - 18 * MS
    )
    timeline.route = Route("local", "found/model", "hub-cache", "abc123")
    timeline.load = Load(weights_bytes=4096, weights_s=0.5)
    timeline.quantization, timeline.engine_restarts = "4bit", 2
    timeline.waited_behind = (TraceContext(0xA, 0xB, 1),)
    timeline.stalls = (Stall(timeline.first_token_ns + MS, 3 * MS, 2, True),)
    timeline.token_offsets_us, timeline.token_stride = [0, 1500, 8000], 2

    await collect(
        InstrumentedBackend(Recorded("a", timeline=timeline), metrics=metrics).stream(CHAT)
    )

    chat = spans.one("chat asked/model").attributes or {}
    assert chat["mlx.model.revision"] == "abc123"
    assert (chat["mlx.quantization"], chat["mlx.engine.restarts"]) == ("4bit", 2)
    assert set(spans.one("route").attributes or {}) >= {"mlx.backend", "mlx.route.model"}
    load = spans.one("model.load").attributes or {}
    assert load["mlx.model.source"] == "hub-cache"
    assert (load["mlx.model.weights_bytes"], load["mlx.model.load.weights_s"]) == (4096, 0.5)
    assert not {"mlx.model.load.process_s", "mlx.model.load.tokenizer_s"} & set(load)
    (link,) = spans.one("queue").links
    assert ids(link.context) == (f"{0xA:032x}", f"{0xB:016x}")
    decode = spans.one("decode")
    (stall,) = decode.events
    assert (stall.name, stall.timestamp) == ("stall", timeline.first_token_ns + MS)
    assert dict(stall.attributes or {}) == {
        "mlx.stall.after_token": 2,
        "mlx.stall.duration_s": 0.003,
        "mlx.stall.cause": "prefill",
    }
    assert (decode.attributes or {})["mlx.decode.token_offsets_ms"] == (0.0, 1.5, 8.0)
    assert (decode.attributes or {})["mlx.decode.token_stride"] == 2


async def test_a_request_carries_its_span_and_not_that_of_whoever_asked(
    spans: Spans, metrics: ChatMetrics
) -> None:
    carried = list[TraceContext | None]()

    class Looking:
        async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            carried.append(request.trace)
            request.timeline.queued_ns = time.time_ns()
            raise EngineFailed("no")
            yield

    with pytest.raises(EngineFailed):
        await collect(
            InstrumentedBackend(Looking(), metrics=metrics).stream(
                replace(CHAT, timeline=Timeline())
            )
        )

    context = spans.one("chat asked/model").context
    assert context
    assert carried == [TraceContext(context.trace_id, context.span_id, context.trace_flags)]
    queue = spans.one("queue")
    assert queue.status.status_code is StatusCode.ERROR


async def test_its_parent_is_the_span_current_when_it_was_asked_for(
    spans: Spans, metrics: ChatMetrics
) -> None:
    backend = InstrumentedBackend(Recorded("a", timeline=Timeline()), metrics=metrics)

    with logfire.span("request"):
        events = backend.stream(CHAT)
    with logfire.span("elsewhere"):
        await collect(events)

    assert ids(spans.one("chat asked/model").parent) == ids(spans.one("request").context)


async def test_it_is_never_current_for_whoever_reads_the_stream(
    spans: Spans, metrics: ChatMetrics
) -> None:
    """And yet what the backend does before its first event is its child."""
    backend = InstrumentedBackend(Recorded("a", "b", timeline=Timeline()), metrics=metrics)

    with logfire.span("request"):
        request = trace.get_current_span().get_span_context()
        async for _ in backend.stream(CHAT):
            assert trace.get_current_span().get_span_context() == request

    assert ids(spans.one("inside").parent) == ids(spans.one("chat asked/model").context)


async def test_a_stream_may_be_read_by_one_task_and_closed_by_another(
    spans: Spans, metrics: ChatMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    events = InstrumentedBackend(Recorded("a", timeline=a_timeline()), metrics=metrics).stream(CHAT)

    await asyncio.create_task(anext(events))
    await asyncio.create_task(events.aclose())

    assert (spans.one("chat asked/model").attributes or {})["mlx.cancelled"] is True
    assert caplog.records == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailed(f"about {SECRET}"), "engine_failed"),
        (KeyError(SECRET), "KeyError"),
        # The client is still there: it is told, and the trace says whose doing it was.
        (ShuttingDown(f"about {SECRET}"), "shutting_down"),
    ],
)
async def test_a_failure_is_an_error_with_its_code_and_without_its_text(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader, error: Exception, code: str
) -> None:
    inner = Recorded("a", timeline=a_timeline(), act=fail(error))

    with pytest.raises(type(error)):
        await collect(InstrumentedBackend(inner, metrics=metrics).stream(CHAT))

    span = spans.one("chat asked/model")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    assert (span.attributes or {})["error.type"] == code
    assert "mlx.cancelled" not in (span.attributes or {})
    assert span.events == ()
    assert SECRET not in spans.text()
    decode = spans.one("decode")
    assert decode.status.status_code is StatusCode.ERROR
    assert (decode.attributes or {})["error.type"] == code
    assert spans.one("prefill").status.status_code is StatusCode.UNSET
    found = collected(reader)
    (point,) = found[names.REQUEST_DURATION.name]
    assert (point.attributes or {})["error.type"] == code
    assert found[names.TIME_TO_FIRST_TOKEN.name] == []
    assert found[names.REQUESTS_CANCELLED.name] == []


async def test_a_request_that_is_refused_has_no_phases_and_no_model_in_its_numbers(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    class Refusing:
        async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            raise ModelNotFound("no such model")
            yield

    with pytest.raises(ModelNotFound):
        await collect(InstrumentedBackend(Refusing(), metrics=metrics).stream(CHAT))

    assert [span.name for span in spans.all] == ["chat asked/model"]
    found = collected(reader)
    (point,) = found[names.REQUEST_DURATION.name]
    assert dict(point.attributes or {}) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "http.route": "/v1/chat/completions",
        "error.type": "model_not_found",
    }


async def test_what_only_the_engines_record_knows_is_absent_without_it(
    spans: Spans, metrics: ChatMetrics
) -> None:
    timeline = a_timeline()
    timeline.prefill_chunks = None
    timeline.batch_width_sum = timeline.batch_width_max = timeline.longest_gap_ns = 0

    await collect(
        InstrumentedBackend(Recorded("a", timeline=timeline), metrics=metrics).stream(CHAT)
    )

    known = {
        name
        for span in ("chat asked/model", "prefill", "decode")
        for name in spans.one(span).attributes or {}
    }
    assert {"mlx.prefill.tokens", "mlx.decode.tokens"} <= known
    assert known.isdisjoint(
        {
            *("mlx.batch.width_mean", "mlx.batch.width_max"),
            *("mlx.prefill.chunks", "mlx.decode.longest_gap_s"),
        }
    )


async def test_a_reader_that_leaves_cancels_and_is_no_error(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    timeline = a_timeline()
    timeline.finished_ns = None
    inner = Recorded("a", "b", timeline=timeline)

    async with aclosing(InstrumentedBackend(inner, metrics=metrics).stream(CHAT)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break

    assert inner.is_closed
    span = spans.one("chat asked/model")
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["mlx.cancelled"] is True
    assert "error.type" not in (span.attributes or {})
    assert spans.named("decode")
    found = collected(reader)
    assert found[names.REQUEST_DURATION.name] == []
    (counted,) = found[names.REQUESTS_CANCELLED.name]
    assert isinstance(counted, NumberDataPoint)
    assert counted.value == 1


async def test_a_cancelled_task_is_cancelled_and_no_error(
    spans: Spans, metrics: ChatMetrics
) -> None:
    class Waiting:
        async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
            yield Started("m", Timeline(queued_ns=time.time_ns()))
            await asyncio.sleep(60)

    task = asyncio.create_task(
        collect(InstrumentedBackend(Waiting(), metrics=metrics).stream(CHAT))
    )
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    span = spans.one("chat asked/model")
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes or {})["mlx.cancelled"] is True
    queue = spans.one("queue")
    assert (queue.end_time or 0) - (queue.start_time or 0) > 10 * MS
    assert spans.named("prefill") == []


async def test_the_three_numbers_are_in_the_buckets_of_the_conventions(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    await collect(
        InstrumentedBackend(Recorded("a", timeline=a_timeline()), metrics=metrics).stream(CHAT)
    )

    found = collected(reader)
    for metric in (
        names.REQUEST_DURATION,
        names.TIME_TO_FIRST_TOKEN,
        names.TIME_PER_OUTPUT_TOKEN,
    ):
        (point,) = found[metric.name]
        assert isinstance(point, HistogramDataPoint)
        assert point.count == 1
        assert tuple(point.explicit_bounds) == metric.buckets
        assert dict(point.attributes or {}) == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "mlx",
            "gen_ai.request.model": "asked/model",
            "gen_ai.response.model": "answering/model",
            "http.route": "/v1/chat/completions",
        }
        (exemplar,) = point.exemplars
        assert f"{exemplar.trace_id:032x}" == ids(spans.one("chat asked/model").context)[0]
    assert names.REQUEST_DURATION.buckets[-1] == pytest.approx(81.92)


async def test_an_unsampled_chat_is_answered_and_counted_but_not_traced(
    spans: Spans, metrics: ChatMetrics, reader: InMemoryMetricReader
) -> None:
    unsampled = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0))
    backend = InstrumentedBackend(Recorded("a", timeline=a_timeline()), metrics=metrics)

    with trace.use_span(trace.NonRecordingSpan(unsampled)):
        answer = await collect(backend.stream(CHAT))

    assert answer.text == "a"
    assert spans.all == []
    found = collected(reader)
    assert len(found[names.REQUEST_DURATION.name]) == 1


async def test_a_wall_clock_that_is_set_back_makes_no_negative_duration(
    spans: Spans, metrics: ChatMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    past = Timeline(
        queued_ns=3,
        admitted_ns=2,
        first_token_ns=1,
        finished_ns=0,
        prompt_tokens=1,
        output_tokens=2,
    )
    backend = InstrumentedBackend(Recorded("a", timeline=past), metrics=metrics)
    assert [event async for event in backend.stream(CHAT)]
    assert "non-negative" not in caplog.text
    attributes = spans.one("chat asked/model").attributes or {}
    assert attributes["mlx.time_to_first_token_s"] == attributes["mlx.queue_s"] == 0


async def test_what_a_reader_does_after_the_end_is_no_part_of_the_chat(
    spans: Spans, reader: InMemoryMetricReader, metrics: ChatMetrics
) -> None:
    books = list[Callable[[], None]]()
    backend = InstrumentedBackend(
        Recorded("a", timeline=a_timeline()), metrics=metrics, later=books.append
    )
    async with aclosing(backend.stream(CHAT)) as events:
        async for event in events:
            if isinstance(event, Finished):
                break
    assert spans.named("chat asked/model") == []
    (close,) = books
    close()
    chat = spans.one("chat asked/model")
    assert "mlx.cancelled" not in (chat.attributes or {})
    assert "mlx.requests.cancelled" not in collected(reader)
