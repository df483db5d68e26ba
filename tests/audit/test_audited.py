"""The audited backend: one row for each request, however it ends, and never what it said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlx_manager.chat.events import (
    ChatEvent,
    Finished,
    Started,
    TextDelta,
    Timeline,
    Usage,
    collect,
)
from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    RawPrompt,
    Sampling,
    ToolCall,
)
from mlx_manager.database import Database
from mlx_manager.errors import EngineFailed, ModelNotFound
from mlx_manager.mlx_server.audit.audited import AuditedBackend
from mlx_manager.mlx_server.audit.tables import AuditRow
from mlx_manager.mlx_server.audit.writer import AuditWriter
from tests.audit.rows import stored, values

MARK = "xyzzy-secret"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SECOND_NS = 1_000_000_000
START_NS = 1_767_225_600 * SECOND_NS  # the first second of 2026


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.ns = START_NS

    def __call__(self) -> int:
        return self.ns

    def pass_s(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND_NS)


@dataclass
class Sink:
    """Keeps rows in a list."""

    rows: list[AuditRow] = field(default_factory=list)

    def put(self, row: AuditRow) -> None:
        self.rows.append(row)


Step = ChatEvent | BaseException | Callable[[], object] | float


class ScriptedBackend:
    """Plays `steps`: yields events, raises errors, calls functions, and sleeps so many seconds."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.is_closed = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                elif callable(step):
                    step()
                else:
                    yield step
        finally:
            self.is_closed = True


REQUEST = ChatRequest(
    model="asked",
    input=Conversation((Message("user", MARK),)),
    origin=Origin("request-1", "/v1/chat/completions", "127.0.0.1"),
)
STREAMED = replace(REQUEST, stream=True)
TIMELINE = Timeline(
    queued_ns=START_NS + SECOND_NS,
    admitted_ns=START_NS + 3 * SECOND_NS,
    first_token_ns=START_NS + 4 * SECOND_NS,
    prompt_tokens=20,
    cached_tokens=16,
    output_tokens=1,
)
STARTED = Started("answered", TIMELINE)
FINISHED = Finished("stop", Usage(input_tokens=20, output_tokens=2, cached_tokens=16))


def audited(
    backend: ScriptedBackend, sink: Sink | AuditWriter, clock: Clock | None = None
) -> AuditedBackend:
    return AuditedBackend(
        backend, sink, name="local", trace_id=lambda: TRACE, clock_ns=clock or Clock()
    )


async def read_all(backend: AuditedBackend, request: ChatRequest) -> list[ChatEvent]:
    return [event async for event in backend.stream(request)]


async def test_a_complete_answer_leaves_a_full_row() -> None:
    sink, clock = Sink(), Clock()
    backend = ScriptedBackend(STARTED, TextDelta(MARK), lambda: clock.pass_s(5.5), FINISHED)
    await read_all(audited(backend, sink, clock), STREAMED)
    [row] = sink.rows
    assert values(row) == {
        "id": None,
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
        "request_id": "request-1",
        "trace_id": TRACE,
        "endpoint": "/v1/chat/completions",
        "operation": "chat",
        "model": "asked",
        "response_model": "answered",
        "backend": "local",
        "stream": True,
        "status": 200,
        "outcome": "completed",
        "error_code": None,
        "duration_s": 5.5,
        "queue_s": 2.0,
        "time_to_first_token_s": 4.0,
        "input_tokens": 20,
        "cached_tokens": 16,
        "output_tokens": 2,
        "finish_reason": "stop",
        "client_address": "127.0.0.1",
        "key_id": None,
    }


async def test_the_events_pass_unchanged() -> None:
    events: list[ChatEvent] = [STARTED, TextDelta("a"), TextDelta("b"), FINISHED]
    assert await read_all(audited(ScriptedBackend(*events), Sink()), REQUEST) == events


async def test_a_text_completion_is_told_apart() -> None:
    sink = Sink()
    request = replace(REQUEST, input=RawPrompt(MARK))
    await read_all(audited(ScriptedBackend(STARTED, FINISHED), sink), request)
    assert sink.rows[0].operation == "text_completion"
    assert sink.rows[0].stream is False


async def test_a_collected_answer_leaves_its_row_at_once() -> None:
    sink, clock = Sink(), Clock()
    events = audited(ScriptedBackend(STARTED, FINISHED), sink, clock).stream(REQUEST)
    await collect(events)
    clock.pass_s(60)
    outcomes = [(row.outcome, row.status, row.duration_s) for row in sink.rows]
    await events.aclose()
    assert outcomes == [("completed", 200, 0.0)]
    assert len(sink.rows) == 1


async def test_a_refused_request_leaves_the_error_s_status_and_code() -> None:
    sink = Sink()
    backend = audited(ScriptedBackend(ModelNotFound("no such model")), sink)
    with pytest.raises(ModelNotFound):
        await read_all(backend, STREAMED)
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("failed", 404, "model_not_found")
    assert (row.model, row.response_model, row.input_tokens) == ("asked", None, None)
    assert (row.queue_s, row.time_to_first_token_s, row.finish_reason) == (None, None, None)


@pytest.mark.parametrize(("request_", "status"), [(STREAMED, 200), (REQUEST, 503)])
async def test_a_failure_in_the_middle_has_the_status_that_was_sent(
    request_: ChatRequest, status: int
) -> None:
    sink = Sink()
    backend = audited(ScriptedBackend(STARTED, TextDelta(MARK), EngineFailed("gone")), sink)
    with pytest.raises(EngineFailed):
        await read_all(backend, request_)
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("failed", status, "engine_failed")
    assert (row.input_tokens, row.cached_tokens, row.output_tokens) == (20, 16, 1)
    assert row.finish_reason is None


async def test_an_unforeseen_error_is_an_internal_one() -> None:
    sink = Sink()
    with pytest.raises(ZeroDivisionError):
        await read_all(audited(ScriptedBackend(ZeroDivisionError(MARK)), sink), REQUEST)
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("failed", 500, "internal_error")
    assert MARK not in str(values(row))


async def test_a_stream_that_stops_short_has_failed() -> None:
    sink = Sink()
    await read_all(audited(ScriptedBackend(STARTED, TextDelta(MARK)), sink), REQUEST)
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("failed", 500, "internal_error")


@pytest.mark.parametrize(("request_", "status"), [(STREAMED, 200), (REQUEST, None)])
async def test_a_client_that_leaves_has_cancelled_and_frees_the_backend(
    request_: ChatRequest, status: int | None
) -> None:
    sink, clock = Sink(), Clock()
    backend = ScriptedBackend(STARTED, TextDelta("a"), TextDelta("b"), FINISHED)
    async with aclosing(audited(backend, sink, clock).stream(request_)) as events:
        await anext(events)
        await anext(events)
        clock.pass_s(2)
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("cancelled", status, None)
    assert (row.duration_s, row.output_tokens, row.finish_reason) == (2.0, 1, None)
    assert backend.is_closed


@pytest.mark.parametrize("steps", [(60.0,), (STARTED, 60.0)], ids=["waiting", "decoding"])
async def test_a_cancelled_task_has_cancelled_and_frees_the_backend(steps: Sequence[Step]) -> None:
    sink, backend = Sink(), ScriptedBackend(*steps)
    task = asyncio.create_task(read_all(audited(backend, sink), REQUEST))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [row] = sink.rows
    assert (row.outcome, row.status, row.error_code) == ("cancelled", None, None)
    assert backend.is_closed


async def test_the_trace_is_the_one_that_the_stream_started_in() -> None:
    sink, traces = Sink(), ["a" * 32]
    backend = AuditedBackend(
        ScriptedBackend(lambda: traces.insert(0, "b" * 32), STARTED, FINISHED),
        sink,
        name="local",
        trace_id=lambda: traces[0],
    )
    await read_all(backend, REQUEST)
    assert sink.rows[0].trace_id == "a" * 32


async def test_by_default_times_are_of_the_wall_clock() -> None:
    sink = Sink()
    backend = ScriptedBackend(0.02, STARTED, FINISHED)
    before = datetime.now(UTC)
    await read_all(AuditedBackend(backend, sink, name="local", trace_id=lambda: None), REQUEST)
    [row] = sink.rows
    assert before <= row.started_at <= datetime.now(UTC)
    assert 0.02 <= row.duration_s < 5
    assert row.trace_id is None


async def test_requests_answered_at_once_keep_their_rows_apart() -> None:
    sink = Sink()
    backend = audited(ScriptedBackend(STARTED, 0.01, FINISHED), sink)
    requests = [
        replace(REQUEST, origin=replace(REQUEST.origin, request_id=str(number)))
        for number in range(20)
    ]
    await asyncio.gather(*(read_all(backend, request) for request in requests))
    assert sorted(int(row.request_id) for row in sink.rows) == list(range(20))


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("m" * 300, "m" * 255),
        ("a\ud800b", "a?b"),
        ("a\0b", "ab"),
        ("模型", "模型"),
        ("sk-abcdef123", "sk-[redacted]"),
    ],
    ids=["long", "surrogate", "null", "plain", "key"],
)
async def test_whatever_name_a_client_writes_fits_the_log(
    database: Database, written: str, kept: str
) -> None:
    origin = Origin(written, written, written)
    request = replace(REQUEST, model=written, origin=origin)
    async with AuditWriter(database) as writer:
        with pytest.raises(ModelNotFound):
            await read_all(audited(ScriptedBackend(ModelNotFound("no")), writer), request)
    [row] = await stored(database)
    assert (row.model, row.request_id, row.endpoint) == (kept, kept, kept)
    assert row.client_address == kept[:64]


def every_end_of(request: ChatRequest) -> list[ScriptedBackend]:
    text, calls = TextDelta(MARK), ModelNotFound(MARK, param=MARK)
    return [
        ScriptedBackend(STARTED, text, FINISHED),
        ScriptedBackend(STARTED, text, EngineFailed(MARK)),
        ScriptedBackend(STARTED, text, ValueError(MARK)),
        ScriptedBackend(calls),
        ScriptedBackend(STARTED, text),
    ]


async def test_nothing_of_what_was_said_is_in_the_database_file(
    database: Database, database_file: Path
) -> None:
    call = ToolCall(MARK, MARK, {MARK: MARK})
    turns = (
        Message("user", MARK, name=MARK),
        Message("assistant", MARK, tool_calls=(call,)),
        Message("tool", MARK),
    )
    request = replace(
        REQUEST,
        input=Conversation(turns, {MARK: MARK}),
        sampling=Sampling(seed=1),
        stop=(MARK,),
    )
    async with AuditWriter(database) as writer:
        for backend in every_end_of(request):
            await asyncio.gather(
                read_all(audited(backend, writer), request), return_exceptions=True
            )
    assert len(await stored(database)) == 5
    files = [path.read_bytes() for path in database_file.parent.glob("audit.db*")]
    assert any(b"request-1" in content for content in files)
    assert not any(MARK.encode() in content for content in files)
