"""The audited backend and an entry: what a row says of a request, however it ends, and never what was said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
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
    Sampling,
    ToolCall,
)
from mlx_manager.database import Database
from mlx_manager.errors import EngineFailed, ModelNotFound
from mlx_manager.mlx_server.audit.audited import AuditedBackend
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.audit.log import AuditLog
from tests.audit.rows import stored

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
    origin=Origin("request-1", "/v1/chat/completions", "127.0.0.1", "conversation", "laptop"),
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


async def read_all(backend: ScriptedBackend, request: ChatRequest, entry: Entry) -> None:
    """Read an answer to its end, as a route that streams does."""
    audited = AuditedBackend(backend, lambda origin: entry, name="local")
    async for _ in audited.stream(request):
        pass


def opened(clock: Clock | None = None, origin: Origin = REQUEST.origin) -> Entry:
    return Entry(origin, TRACE, (clock or Clock()).ns)


def ended(entry: Entry, status: int | None, clock: Clock | None = None) -> dict[str, object]:
    """Close an entry as the middleware does, and return its row."""
    entry.status = status
    entry.end((clock or Clock()).ns)
    return entry.values()


def end_of(row: dict[str, object]) -> tuple[object, ...]:
    return (row["outcome"], row["error_code"], row["error_type"])


async def test_a_complete_answer_leaves_a_full_row() -> None:
    clock = Clock()
    entry = opened(clock)
    backend = ScriptedBackend(STARTED, TextDelta(MARK), lambda: clock.pass_s(5.5), FINISHED)
    await read_all(backend, STREAMED, entry)
    assert ended(entry, 200, clock) == {
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
        "error_type": None,
        "duration_s": 5.5,
        "queue_s": 2.0,
        "time_to_first_token_s": 4.0,
        "input_tokens": 20,
        "cached_tokens": 16,
        "output_tokens": 2,
        "finish_reason": "stop",
        "key_id": "laptop",
        "session_id": "conversation",
        "client_address": "127.0.0.1",
    }


async def test_the_events_pass_unchanged() -> None:
    events: list[ChatEvent] = [STARTED, TextDelta("a"), TextDelta("b"), FINISHED]
    audited = AuditedBackend(ScriptedBackend(*events), lambda origin: opened(), name="local")
    assert [event async for event in audited.stream(REQUEST)] == events


async def test_the_entry_is_that_of_the_request_and_not_of_its_twin() -> None:
    twin = replace(REQUEST, origin=replace(REQUEST.origin))
    entries = {request.origin: opened() for request in (REQUEST, twin)}
    audited = AuditedBackend(ScriptedBackend(STARTED, FINISHED), entries.__getitem__, name="local")
    await collect(audited.stream(twin))
    rows = [ended(entry, 200) for entry in entries.values()]
    assert [row["response_model"] for row in rows] == [None, "answered"]


async def test_a_collected_answer_is_complete_though_its_stream_is_closed() -> None:
    entry = opened()
    audited = AuditedBackend(ScriptedBackend(STARTED, FINISHED), lambda origin: entry, name="local")
    async with aclosing(audited.stream(REQUEST)) as events:
        await collect(events)
    assert end_of(ended(entry, 200)) == ("completed", None, None)


async def test_a_request_that_the_backend_refuses_leaves_code_and_type() -> None:
    entry = opened()
    with pytest.raises(ModelNotFound):
        await read_all(ScriptedBackend(ModelNotFound("no such model")), STREAMED, entry)
    row = ended(entry, 404)
    assert end_of(row) == ("failed", "model_not_found", "invalid_request_error")
    assert (row["model"], row["response_model"], row["input_tokens"]) == ("asked", None, None)
    assert (row["queue_s"], row["time_to_first_token_s"]) == (None, None)


async def test_a_request_that_never_reaches_a_backend_leaves_a_row_of_what_is_known() -> None:
    entry = opened(origin=Origin("1", "/v1/completions", None))
    entry.fail("invalid_request", 400)
    row = ended(entry, 400)
    assert end_of(row) == ("failed", "invalid_request", "invalid_request_error")
    assert (row["operation"], row["status"]) == ("text_completion", 400)
    assert (row["model"], row["stream"], row["backend"]) == (None, None, None)


@pytest.mark.parametrize("status", [200, 503])
async def test_a_failure_in_the_middle_has_its_own_type_and_the_status_that_was_sent(
    status: int,
) -> None:
    entry = opened()
    backend = ScriptedBackend(STARTED, TextDelta(MARK), EngineFailed("gone"))
    with pytest.raises(EngineFailed):
        await read_all(backend, STREAMED, entry)
    row = ended(entry, status)
    assert row["status"] == status
    assert end_of(row) == ("failed", "engine_failed", "server_error")
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (20, 16, 1)
    assert row["finish_reason"] is None


async def test_a_client_that_leaves_before_it_is_told_of_its_prompt_has_had_it_read() -> None:
    entry, request = opened(), replace(REQUEST, timeline=replace(TIMELINE))
    with pytest.raises(asyncio.CancelledError):
        await read_all(ScriptedBackend(asyncio.CancelledError()), request, entry)
    row = ended(entry, None)
    assert row["outcome"] == "cancelled"
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (20, 16, 1)


async def test_a_client_that_leaves_before_its_prompt_is_read_has_used_no_tokens() -> None:
    for steps in ([STARTED], []):
        timeline = replace(TIMELINE, first_token_ns=None, output_tokens=0)
        entry, request = opened(), replace(REQUEST, timeline=timeline)
        started = [replace(one, timeline=timeline) for one in steps]
        with pytest.raises(asyncio.CancelledError):
            await read_all(ScriptedBackend(*started, asyncio.CancelledError()), request, entry)
        row = ended(entry, None)
        assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (None,) * 3


async def test_the_first_failure_is_the_one_that_counts() -> None:
    entry = opened()
    entry.fail("engine_failed", 503)
    entry.fail("internal_error", 500)
    assert ended(entry, 500)["error_code"] == "engine_failed"


async def test_an_unforeseen_error_is_an_internal_one() -> None:
    entry = opened()
    with pytest.raises(ZeroDivisionError):
        await read_all(ScriptedBackend(ZeroDivisionError(MARK)), REQUEST, entry)
    row = ended(entry, 500)
    assert end_of(row) == ("failed", "internal_error", "server_error")
    assert MARK not in str(row)


async def test_a_stream_that_stops_short_has_failed() -> None:
    entry = opened()
    await read_all(ScriptedBackend(STARTED, TextDelta(MARK)), STREAMED, entry)
    assert end_of(ended(entry, 200)) == ("failed", "internal_error", "server_error")


@pytest.mark.parametrize("status", [200, None])
async def test_a_client_that_leaves_has_cancelled_and_frees_the_backend(
    status: int | None,
) -> None:
    entry, clock = opened(), Clock()
    backend = ScriptedBackend(STARTED, TextDelta("a"), TextDelta("b"), FINISHED)
    audited = AuditedBackend(backend, lambda origin: entry, name="local")
    async with aclosing(audited.stream(STREAMED)) as events:
        await anext(events)
        await anext(events)
        clock.pass_s(2)
    row = ended(entry, status, clock)
    assert end_of(row) == ("cancelled", None, None)
    assert (row["status"], row["duration_s"], row["output_tokens"]) == (status, 2.0, 1)
    assert backend.is_closed


@pytest.mark.parametrize("steps", [(60.0,), (STARTED, 60.0)], ids=["waiting", "decoding"])
async def test_a_cancelled_task_has_cancelled_and_frees_the_backend(steps: Sequence[Step]) -> None:
    entry, backend = opened(), ScriptedBackend(*steps)
    task = asyncio.create_task(read_all(backend, REQUEST, entry))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert end_of(ended(entry, None)) == ("cancelled", None, None)
    assert backend.is_closed


async def test_a_clock_that_is_set_back_makes_no_duration_negative() -> None:
    entry, clock = opened(), Clock()
    clock.pass_s(-60)
    assert ended(entry, 200, clock)["duration_s"] == 0


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
    async with AuditLog(database) as log:
        entry = log.open(Origin(written, written, written), TRACE)
        entry.asked(written, False)
        log.close(entry)
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
    async with AuditLog(database) as log:
        for backend in every_end_of(request):
            mine = replace(request, origin=replace(request.origin))
            entry = log.open(mine.origin, TRACE)
            await asyncio.gather(read_all(backend, mine, entry), return_exceptions=True)
            log.close(entry)
    assert len(await stored(database)) == 5
    files = [path.read_bytes() for path in database_file.parent.glob("audit.db*")]
    assert any(b"request-1" in content for content in files)
    assert not any(MARK.encode() in content for content in files)
