"""A stream whose client reads slowly, stops reading or leaves: an ASGI connection that the test holds in its hand."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mlx_manager.chat.backend import ChatBackend
from mlx_manager.chat.events import (
    ChatEvent,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    Timeline,
    Usage,
)
from mlx_manager.chat.request import (
    ChatRequest,
    Conversation,
    Message,
    Origin,
    RawPrompt,
    Sampling,
)
from mlx_manager.errors import EngineFailed, MlxManagerError
from mlx_manager.mlx_server.api.streaming import EventStream, Ping, begin
from mlx_manager.mlx_server.audit.audited import AuditedBackend
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.generation.local import LocalBackend
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.process import EngineOptions, EngineProcess
from mlx_manager.observability.instrumented import InstrumentedBackend
from mlx_manager.wire import sse
from mlx_manager.wire.anthropic.streams import to_events
from mlx_manager.wire.openai.errors import error_event
from mlx_manager.wire.openai.streams import to_chunks
from mlx_manager.wire.signature import Signer
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import eventually

MODEL = "test/tiny"
# Pieces are 16 ms apart: so many tokens are more than a dozen of them on a fast machine, too.
TOKENS = 500

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(model_dir: Path) -> AsyncIterator[ModelPool]:
    async def start(files: ModelFiles) -> EngineProcess:
        return await EngineProcess.start(files.id, files.path, EngineOptions())

    pool = ModelPool(Catalog({}, [model_dir], None), start, max_loaded=1)
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(pool: ModelPool) -> ChatBackend:
    return LocalBackend(pool, {"chat": 600.0, "text_completion": 600.0})


@dataclass
class Connection:
    """A client that takes `takes` pieces at once, and the rest only when it `resumes`."""

    takes: int
    resumes: asyncio.Event = field(default_factory=asyncio.Event)
    leaves: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: list[bytes] = field(default_factory=list)
    is_complete: bool = False

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Return when the client has room for the message, as a server's `send` does."""
        if message["type"] == "http.response.start":
            return
        if len(self.pieces) == self.takes:
            await self.resumes.wait()
        self.pieces.append(message["body"])
        self.is_complete = not message.get("more_body", False)

    @property
    def events(self) -> list[str]:
        lines = b"".join(self.pieces).decode().splitlines()
        return [line.removeprefix("data: ") for line in lines if line]

    @property
    def text(self) -> str:
        *events, done = self.events
        assert done == "[DONE]"
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
        return "".join(delta.get("content") or "" for delta in deltas)


async def answer(
    backend: ChatBackend, client: Connection, max_tokens: int = TOKENS, limit_s: float = 60
) -> None:
    """Stream one answer to `client`; equal requests get equal answers.

    With `top_k` no answer ends by itself: the end of a turn is never among the likely tokens.
    """
    request = ChatRequest(
        model=MODEL,
        input=Conversation((Message("user", "Count to a million."),)),
        origin=Origin("a-request", "/v1/chat/completions"),
        sampling=Sampling(temperature=1, top_k=20, seed=7),
        max_tokens=max_tokens,
        stream=True,
    )
    chunks = to_chunks(backend.stream(request), request, 0, False)
    to_event = partial(error_event, request_id="a-request")
    first = await begin(client.receive, chunks, 60)
    stream = EventStream(first, chunks, sse.DONE, to_event, limit_s, Ping(60))
    await stream({"type": "http"}, client.receive, client.send)


def is_free(pool: ModelPool) -> bool:
    """Whether nobody has a lease of the model or a place in its batch."""
    [resident] = pool.residents
    return resident.leases == 0 and has_computed_all(pool)


def has_computed_all(pool: ModelPool) -> bool:
    """Whether every answer has ended for the engine, read or not."""
    [resident] = pool.residents
    return resident.engine is not None and resident.engine.active_sequences == 0


async def test_a_client_that_stops_reading_holds_nobody_up_and_loses_nothing(
    pool: ModelPool, backend: ChatBackend
) -> None:
    slow, quick = Connection(takes=3), Connection(takes=10 * TOKENS)
    reading = asyncio.create_task(answer(backend, slow))
    await eventually(lambda: len(slow.pieces) == 3)
    await eventually(lambda: has_computed_all(pool))  # the engine waits for no reader
    await answer(backend, quick)
    assert (len(slow.pieces), slow.is_complete, quick.is_complete) == (3, False, True)

    slow.resumes.set()
    await reading
    assert slow.is_complete
    assert slow.text == quick.text
    assert len(slow.text) > TOKENS
    assert len(slow.pieces) < 12 < len(quick.pieces)
    await eventually(lambda: is_free(pool))


async def test_a_client_that_never_reads_on_is_cut_off_at_the_limit(
    pool: ModelPool, backend: ChatBackend, caplog: pytest.LogCaptureFixture
) -> None:
    client = Connection(takes=3)
    reading = asyncio.create_task(answer(backend, client, max_tokens=ENDLESS_TOKENS, limit_s=1))
    await eventually(lambda: len(client.pieces) == 3)
    assert not is_free(pool)
    async with asyncio.timeout(5):
        await reading
    assert len(client.pieces) == 3
    assert not client.is_complete
    assert pool.residents[0].leases == 0
    await eventually(lambda: is_free(pool), timeout_s=5)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "within 1 s" in warning.getMessage()


async def test_a_client_that_reads_nothing_until_the_time_is_up_has_timed_out(
    pool: ModelPool, backend: ChatBackend
) -> None:
    await answer(backend, Connection(takes=10 * TOKENS), max_tokens=1)  # loads the model
    client, entry = Connection(takes=3), Entry(Origin("1", "/"), None, 0)
    limited = LocalBackend(pool, {"chat": 0.3})
    audited = AuditedBackend(limited, lambda origin: entry, name="local")
    await answer(InstrumentedBackend(audited), client, max_tokens=ENDLESS_TOKENS, limit_s=1)
    assert (len(client.pieces), client.is_complete) == (3, False)
    entry.status = 200
    entry.end(1)
    row = entry.values()
    assert (row["outcome"], row["error_code"]) == ("failed", "request_timeout")
    await eventually(lambda: is_free(pool))


async def test_a_client_that_leaves_while_nothing_can_be_written_is_noticed(
    pool: ModelPool, backend: ChatBackend
) -> None:
    client = Connection(takes=3)
    reading = asyncio.create_task(answer(backend, client, max_tokens=ENDLESS_TOKENS))
    await eventually(lambda: len(client.pieces) == 3)
    assert not is_free(pool)
    client.leaves.set()
    async with asyncio.timeout(5):
        await reading
    assert not client.is_complete
    await eventually(lambda: is_free(pool), timeout_s=5)


END = b"the end"


def told(error: MlxManagerError) -> bytes:
    return error.code.encode()


async def slowly(first_s: float, *pieces: bytes) -> AsyncGenerator[bytes, None]:
    """A stream whose second piece takes `first_s`, as that of a long prompt does."""
    yield b"begun"
    await asyncio.sleep(first_s)
    for piece in pieces:
        yield piece


async def pinged(
    pieces: AsyncGenerator[bytes, None], client: Connection, every_s: float = 0.02
) -> None:
    first = await begin(client.receive, pieces, every_s)
    stream = EventStream(first, pieces, END, told, 10, Ping(every_s, b"ping"))
    await stream({"type": "http"}, client.receive, client.send)


async def test_pings_are_sent_while_a_prompt_is_read() -> None:
    client = Connection(takes=100)
    await pinged(slowly(0.6, b"a", b"b", END), client)
    begun, *pings, a, b, end = client.pieces
    assert (begun, a, b, end) == (b"begun", b"a", b"b", END)
    assert len(pings) > 2
    assert set(pings) == {b"ping"}
    assert client.is_complete


@pytest.mark.parametrize("pieces", [(END,), (b"a", END)])
async def test_a_prompt_that_is_read_quickly_gets_no_ping(pieces: tuple[bytes, ...]) -> None:
    client = Connection(takes=100)
    await pinged(slowly(0, *pieces), client, every_s=5)
    assert client.pieces == [b"begun", *pieces]
    assert client.is_complete


async def test_pings_are_sent_wherever_nothing_comes_for_a_while() -> None:
    async def halting() -> AsyncGenerator[bytes, None]:
        yield b"begun"
        for piece in (b"a", b"b"):
            yield piece
            await asyncio.sleep(0.15)
        yield END

    client = Connection(takes=100)
    await pinged(halting(), client)
    assert [piece for piece in client.pieces if piece != b"ping"] == [b"begun", b"a", b"b", END]
    b = client.pieces.index(b"b")
    assert set(client.pieces[2:b]) == set(client.pieces[b + 1 : -1]) == {b"ping"}
    assert client.is_complete


async def test_pings_are_sent_while_thoughts_are_hidden() -> None:
    async def thinking() -> AsyncGenerator[ChatEvent, None]:
        yield Started("m", Timeline())
        for _ in range(4):
            yield ReasoningDelta("Hm. ")
            await asyncio.sleep(0.05)
        yield TextDelta("Yes.")
        yield Finished("stop", Usage(1, 9))

    request = ChatRequest("m", RawPrompt("Hi"), Origin("r", "/v1/messages"))
    client = Connection(takes=100)
    await pinged(to_events(thinking(), request, Signer(b"key"), shows_thinking=False), client)
    kinds = [piece.split(b"\n")[0].removeprefix(b"event: ") for piece in client.pieces]
    begun, thought, *pings, text, end, _ = kinds
    assert (begun, thought) == (b"message_start", b"content_block_start")
    assert (text, end) == (b"content_block_delta", b"content_block_stop")
    assert len(pings) > 2
    assert set(pings) == {b"ping"}


async def test_no_ping_is_sent_to_a_client_that_has_not_taken_what_came() -> None:
    client = Connection(takes=2)
    writing = asyncio.create_task(pinged(slowly(0, b"a", b"b", END), client))
    await eventually(lambda: len(client.pieces) == 2)
    await asyncio.sleep(0.1)
    assert b"ping" not in client.pieces
    client.leaves.set()
    async with asyncio.timeout(5):
        await writing


async def test_an_error_while_a_prompt_is_read_is_told_after_the_pings() -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield b"begun"
        await asyncio.sleep(0.1)
        raise EngineFailed("It died.")

    client = Connection(takes=100)
    await pinged(failing(), client)
    assert client.pieces[1] == b"ping"
    assert client.pieces[-1] == b"engine_failed"
    assert client.is_complete


async def test_a_client_that_leaves_while_its_prompt_is_read_ends_the_work() -> None:
    ended = asyncio.Event()

    async def watched() -> AsyncGenerator[bytes, None]:
        try:
            yield b"begun"
            await asyncio.sleep(60)
        finally:
            ended.set()

    client = Connection(takes=100)
    answering = asyncio.create_task(pinged(watched(), client))
    await eventually(lambda: b"ping" in client.pieces)
    client.leaves.set()
    async with asyncio.timeout(5):
        await answering
    assert ended.is_set()
    assert not client.is_complete
