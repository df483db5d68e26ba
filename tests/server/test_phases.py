"""Each phase that a request reached is in its trace, also when it came no further."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from mlx_manager.mlx_server.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure
from mlx_manager.traces.explain import waited_in_queue
from mlx_manager.traces.summary import Trace
from mlx_manager.web.waterfall import token_timelines
from tests.conftest import ENDLESS_TOKENS
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import Spans, UntracedTransport, ids

MODEL, BROKEN, SHORT = "test/tiny", "test/broken", "test/short"
# Models of the Hugging Face cache; the config of one says that its weights are quantised.
CACHED, REVISION = "org/cached", "6c2f6a7d4d4f0d5b1fd1b9d2c5bd66a6d6c6a001"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that answers one request, lets one wait, and has models that are broken or from a cache."""
    folder = tmp_path_factory.mktemp("small")
    models = tmp_path_factory.mktemp("more") / "models"
    shutil.copytree(model_dir, models)
    shutil.copytree(model_dir / MODEL, models / BROKEN)
    weights = next((models / BROKEN).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    cached = folder / "hub" / "models--org--cached" / "snapshots" / REVISION
    shutil.copytree(model_dir / MODEL, cached)
    config = json.loads((cached / "config.json").read_text())
    # Of this, mlx-lm loads what is really quantised: nothing.
    config["quantization"] = {"group_size": 64, "bits": 4}
    (cached / "config.json").write_text(json.dumps(config))
    settings = settings_for(folder, models, max_batch=1, max_waiting=1)
    # Before the server, whose trace store is only fed when there are spans.
    configure(TelemetryOptions("mlx-test"))
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def client(small: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client that leaves no spans of its own, and a model in memory."""
    transport = UntracedTransport()
    async with httpx.AsyncClient(base_url=small.url, transport=transport, timeout=60) as client:
        await client.post(CHAT, json=body(max_tokens=1))
        await small.close_books()
        yield client


def body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": MODEL, "messages": messages, "max_tokens": 5, "temperature": 0} | changes


def endless() -> dict[str, Any]:
    return body(max_tokens=ENDLESS_TOKENS, stream=True)


@asynccontextmanager
async def streamed(
    client: httpx.AsyncClient, server: RunningServer
) -> AsyncIterator[httpx.Response]:
    """An answer that goes on and on, once the engine has it."""
    async with client.stream("POST", CHAT, json=endless()) as response:
        await eventually(lambda: server.active(MODEL) == 1)
        yield response
    await eventually(lambda: server.active(MODEL) == 0)


async def one_waits(server: RunningServer) -> None:
    """Wait until the engine says so, which is once a second: it has passed a request over then."""
    engine = server.resident(MODEL).engine
    assert engine
    before = engine.vitals

    def has_said_so() -> bool:
        vitals = engine.vitals
        return vitals is not before and vitals is not None and vitals.waiting == 1

    await eventually(has_said_so)


async def phases_of(server: RunningServer, spans: Spans, trace_id: str) -> dict[str, ReadableSpan]:
    """The spans below the one chat of a trace, by name, in the order of their start; the chat itself is `chat`."""

    def found() -> list[ReadableSpan]:
        return [span for span in spans.all if f"{span.context.trace_id:032x}" == trace_id]

    def chats() -> list[ReadableSpan]:
        return [span for span in found() if "gen_ai.operation.name" in (span.attributes or {})]

    await eventually(lambda: bool(chats()))
    [chat] = chats()
    phases = [
        span for span in found() if span.parent and span.parent.span_id == chat.context.span_id
    ]
    return {"chat": chat} | {
        span.name: span for span in sorted(phases, key=lambda span: span.start_time or 0)
    }


async def stored(server: RunningServer, trace_id: str) -> Trace:
    """The trace as the store has it, once it is there to its end."""
    store = server.state.traces
    assert store is not None

    def found() -> Trace | None:
        trace = store.get_trace(trace_id)
        return trace if trace and any(span.kind == "server" for span in trace.spans) else None

    await server.close_books()
    await eventually(lambda: found() is not None)
    trace = found()
    assert trace
    return trace


async def ask(
    client: httpx.AsyncClient, server: RunningServer, spans: Spans, **changes: Any
) -> tuple[int, dict[str, ReadableSpan]]:
    """Send a request; return its status and what its trace has of the chat."""
    response = await client.post(CHAT, json=body(**changes))
    return response.status_code, await phases_of(server, spans, response.headers["X-Trace-ID"])


def failures(phases: dict[str, ReadableSpan]) -> dict[str, object]:
    """The error types of the spans whose status says that they failed."""
    return {
        name: (span.attributes or {}).get("error.type")
        for name, span in phases.items()
        if span.status.status_code is StatusCode.ERROR
    }


async def test_the_route_says_which_backend_has_the_model(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    _, phases = await ask(client, small, spans)
    assert list(phases) == ["chat", "route", "tokenize", "queue", "prefill", "decode"]
    attributes = phases["route"].attributes or {}
    assert attributes["mlx.backend"] == "local"
    assert attributes["mlx.route.model"] == MODEL


async def test_a_model_that_is_not_here_has_failed_when_it_was_looked_for(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    status, phases = await ask(client, small, spans, model="test/none")
    assert status == 404
    assert list(phases) == ["chat", "route"]
    assert failures(phases) == {"chat": "model_not_found", "route": "model_not_found"}
    assert "mlx.backend" not in (phases["route"].attributes or {})


async def test_a_model_that_cannot_be_loaded_has_failed_in_its_load(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    status, phases = await ask(client, small, spans, model=BROKEN)
    assert status == 503
    assert list(phases) == ["chat", "route", "model.load"]
    code = "model_load_failed"
    assert failures(phases) == {"chat": code, "model.load": code}
    load = phases["model.load"]
    assert (load.end_time or 0) - (load.start_time or 0) > 50_000_000
    assert load.events == ()
    assert (load.attributes or {})["mlx.model.source"] == "folder"
    assert "mlx.model.weights_bytes" not in (load.attributes or {})


async def test_a_load_says_what_was_loaded_and_where_its_time_went(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    _, phases = await ask(client, small, spans, model=CACHED)
    load = phases["model.load"]
    attributes: dict[str, Any] = dict(load.attributes or {})
    took_s = ((load.end_time or 0) - (load.start_time or 0)) / 1e9
    assert attributes["mlx.model.source"] == "hub-cache"
    assert attributes["mlx.model.weights_bytes"] > 100_000
    process_s = attributes["mlx.model.load.process_s"]
    weights_s = attributes["mlx.model.load.weights_s"]
    assert process_s > 0.01
    assert weights_s > 0
    assert (
        0.5 * took_s
        < max(process_s + weights_s, attributes["mlx.model.load.tokenizer_s"])
        <= took_s + 0.01
    )
    _, again = await ask(client, small, spans, model=CACHED)
    assert "model.load" not in again


async def test_the_chat_says_which_version_of_the_model_answered(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    _, cached = await ask(client, small, spans, model=CACHED)
    attributes = cached["chat"].attributes or {}
    assert attributes["mlx.model.revision"] == REVISION
    assert attributes["mlx.quantization"] == "4bit"
    assert attributes["mlx.engine.restarts"] == 0
    _, other = await ask(client, small, spans)
    assert not {"mlx.model.revision", "mlx.quantization"} & set(other["chat"].attributes or {})


async def test_the_chat_says_how_often_its_engine_was_replaced(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    engine = small.resident(MODEL).engine
    assert engine
    assert engine.pid
    os.kill(engine.pid, signal.SIGKILL)
    await eventually(lambda: not engine.is_alive)
    status, phases = await ask(client, small, spans)
    assert status == 200
    assert (phases["chat"].attributes or {})["mlx.engine.restarts"] == 1
    assert "model.load" in phases


async def test_a_prompt_that_is_too_long_has_failed_when_it_was_encoded(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    long = [{"role": "user", "content": "word " * 100}]
    await client.post(CHAT, json=body(model=SHORT, max_tokens=1))
    status, phases = await ask(client, small, spans, model=SHORT, messages=long)
    assert status == 400
    assert list(phases) == ["chat", "route", "tokenize"]
    code = "context_length_exceeded"
    assert failures(phases) == {"chat": code, "tokenize": code}


async def test_a_request_that_finds_the_queue_full_has_failed_there(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    async with streamed(client, small):
        waiting = asyncio.create_task(client.post(CHAT, json=body()))
        await eventually(lambda: small.active(MODEL) == 2)
        status, phases = await ask(client, small, spans)
    await waiting
    assert status == 503
    assert list(phases) == ["chat", "route", "tokenize", "queue"]
    assert failures(phases) == {"chat": "overloaded", "queue": "overloaded"}


async def test_a_client_that_leaves_the_queue_has_waited_and_not_failed(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    async with streamed(client, small):
        waiting = asyncio.create_task(client.post(CHAT, json=body()))
        await eventually(lambda: small.active(MODEL) == 2)
        waiting.cancel()
        left = await spans.wait(f"chat {MODEL}")
        phases = await phases_of(small, spans, f"{left.context.trace_id:032x}")
    assert list(phases) == ["chat", "route", "tokenize", "queue"]
    assert failures(phases) == {}
    assert len(phases["queue"].links) == 1
    assert (left.attributes or {})["mlx.cancelled"] is True


async def test_a_request_that_waited_links_to_the_chat_that_had_its_place(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    async with streamed(client, small) as response:
        waiting = asyncio.create_task(ask(client, small, spans))
        await one_waits(small)
    _, waited = await waiting
    before = await phases_of(small, spans, response.headers["X-Trace-ID"])

    [link] = waited["queue"].links
    assert ids(link.context) == ids(before["chat"].context)
    assert dict(link.attributes or {}) == {"mlx.link.reason": "waited_behind"}
    assert before["queue"].links == ()
    assert all(span.links == () for name, span in waited.items() if name != "queue")


async def test_a_trace_is_explained_by_the_one_that_it_waited_behind(
    client: httpx.AsyncClient, small: RunningServer
) -> None:
    async with streamed(client, small) as response:
        waiting = asyncio.create_task(client.post(CHAT, json=body()))
        await one_waits(small)
    trace = await stored(small, (await waiting).headers["X-Trace-ID"])
    [finding] = waited_in_queue(trace)
    assert finding.trace_id == response.headers["X-Trace-ID"]


async def test_an_engine_that_stood_still_while_it_decoded_is_a_stall_in_the_trace(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    engine = small.resident(MODEL).engine
    assert engine
    assert engine.pid
    request = body(max_tokens=1500, stream=True)
    async with client.stream("POST", CHAT, json=request) as response:
        lines = response.aiter_lines()
        for _ in range(20):
            await anext(lines)
        os.kill(engine.pid, signal.SIGSTOP)
        await asyncio.sleep(0.6)
        os.kill(engine.pid, signal.SIGCONT)
        async for _ in lines:
            pass
    phases = await phases_of(small, spans, response.headers["X-Trace-ID"])

    decode = phases["decode"]
    assert decode.attributes
    gap_s = decode.attributes["mlx.decode.longest_gap_s"]
    # On a busy machine there may be others.
    [longest] = [
        event
        for event in decode.events
        if event.attributes and event.attributes["mlx.stall.duration_s"] == gap_s
    ]
    attributes: dict[str, Any] = dict(longest.attributes or {})
    assert longest.name == "stall"
    assert set(attributes) == {"mlx.stall.after_token", "mlx.stall.duration_s"}
    assert (
        0.5
        < attributes["mlx.stall.duration_s"]
        == (decode.attributes or {})["mlx.decode.longest_gap_s"]
    )
    assert 4 <= attributes["mlx.stall.after_token"] < 1500
    end_ns = longest.timestamp + int(attributes["mlx.stall.duration_s"] * 1e9)
    assert (decode.start_time or 0) < longest.timestamp < end_ns < (decode.end_time or 0)


@pytest.mark.parametrize(("tokens", "stride", "entries"), [(40, 1, 40), (600, 4, 150)])
async def test_the_trace_says_when_each_token_left_the_engine(
    client: httpx.AsyncClient,
    small: RunningServer,
    spans: Spans,
    tokens: int,
    stride: int,
    entries: int,
) -> None:
    _, phases = await ask(client, small, spans, max_tokens=tokens)
    decode = phases["decode"]
    attributes: dict[str, Any] = dict(decode.attributes or {})
    offsets = attributes["mlx.decode.token_offsets_ms"]
    assert attributes["mlx.decode.tokens"] == tokens
    assert (attributes["mlx.decode.token_stride"], len(offsets)) == (stride, entries)
    assert offsets[0] == 0
    assert list(offsets) == sorted(offsets)
    lasted_ms = ((decode.end_time or 0) - (decode.start_time or 0)) / 1e6
    assert 0.5 * lasted_ms < offsets[-1] <= lasted_ms
    gaps_ms = [after - before for before, after in pairwise(offsets)]
    assert max(gaps_ms) >= attributes["mlx.decode.longest_gap_s"] * 1e3 - 0.01 or stride > 1


async def test_the_viewer_draws_a_long_answer_from_the_store(
    client: httpx.AsyncClient, small: RunningServer, spans: Spans
) -> None:
    response = await client.post(CHAT, json=body(max_tokens=600))
    [line] = token_timelines(await stored(small, response.headers["X-Trace-ID"]))
    assert (line.tokens, line.stride) == (600, 4)
    assert 0 < line.median_gap_ms <= line.longest_gap_ms < line.length_ms
