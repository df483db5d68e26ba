"""The whole tree of spans that each kind of request leaves, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from logfire.testing import TestExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr

from mlx_manager.mlx_server.app import create_app
from mlx_manager.observability.setup import TelemetryOptions, configure, span_sink
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.support.running import RunningServer, eventually, running, settings_for
from tests.support.spans import UntracedTransport

CHAT = "/v1/chat/completions"
LIMIT_S = 1.0
KEY = "a-key-of-the-laptop"

# One span a line, below its parent, in the order of time. Behind its name stand its kind unless that is internal, its
# status unless that is unset, and those of the `SHOWN` attributes that it has.
SHOWN = (
    "http.response.status_code",
    "gen_ai.request.stream",
    "gen_ai.response.finish_reasons",
    "gen_ai.usage.output_tokens",
    "mlx.decode.tokens",
    "mlx.cancelled",
    "mlx.resumes",
    "error.type",
)
WHOLE = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat test/tiny gen_ai.request.stream=False gen_ai.response.finish_reasons=length gen_ai.usage.output_tokens=5
    route
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=5
"""
STREAMED = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat test/tiny gen_ai.request.stream=True gen_ai.response.finish_reasons=length gen_ai.usage.output_tokens=5
    route
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=5
"""
CANCELLED = """
POST /v1/chat/completions SERVER http.response.status_code=200 mlx.cancelled=True
  chat test/tiny gen_ai.request.stream=True gen_ai.usage.output_tokens=* mlx.cancelled=True
    route
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=*
"""
RESUMED = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat test/tiny gen_ai.request.stream=True gen_ai.response.finish_reasons=length gen_ai.usage.output_tokens=1000 mlx.resumes=1
    route
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=1000
    resume
"""  # noqa: E501
TIMED_OUT = """
POST /v1/chat/completions SERVER ERROR http.response.status_code=504 error.type=504
  chat test/tiny ERROR gen_ai.request.stream=False gen_ai.usage.output_tokens=* error.type=request_timeout
    route
    tokenize
    queue
    prefill
    decode ERROR mlx.decode.tokens=* error.type=request_timeout
"""
UNKNOWN_MODEL = """
POST /v1/chat/completions SERVER http.response.status_code=404
  chat test/unknown ERROR gen_ai.request.stream=False error.type=model_not_found
    route ERROR error.type=model_not_found
"""
OVERLOADED = """
POST /v1/chat/completions SERVER ERROR http.response.status_code=503 error.type=503
  chat test/tiny ERROR gen_ai.request.stream=False error.type=overloaded
    route
    tokenize
    queue ERROR error.type=overloaded
"""

FAILED = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat test/tiny ERROR gen_ai.request.stream=True gen_ai.usage.output_tokens=* error.type=engine_failed
    route
    tokenize
    queue
    prefill
    decode ERROR mlx.decode.tokens=* error.type=engine_failed
"""
FAILED_WHOLE = """
POST /v1/chat/completions SERVER ERROR http.response.status_code=503 error.type=503
  chat test/tiny ERROR gen_ai.request.stream=False gen_ai.usage.output_tokens=* error.type=engine_failed
    route
    tokenize
    queue
    prefill
    decode ERROR mlx.decode.tokens=* error.type=engine_failed
"""
LOADED = """
POST /v1/chat/completions SERVER http.response.status_code=200
  authenticate
  chat test/late gen_ai.request.stream=False gen_ai.response.finish_reasons=length gen_ai.usage.output_tokens=5
    route
    model.load
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=5
"""
REFUSED = """
POST /v1/chat/completions SERVER http.response.status_code=401
  authenticate ERROR error.type=invalid_api_key
"""
PARSED = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat mlx-manager/starter gen_ai.request.stream=False gen_ai.response.finish_reasons=tool_calls gen_ai.usage.output_tokens=*
    route
    tokenize
    queue
    prefill
    decode mlx.decode.tokens=*
    parse
"""  # noqa: E501
STREAMED_TIMED_OUT = """
POST /v1/chat/completions SERVER http.response.status_code=200
  chat test/tiny ERROR gen_ai.request.stream=True gen_ai.usage.output_tokens=* error.type=request_timeout
    route
    tokenize
    queue
    prefill
    decode ERROR mlx.decode.tokens=* error.type=request_timeout
"""


class Trees:
    """What the server's requests have left so far."""

    def __init__(self) -> None:
        self.exporter = TestExporter()

    def of(self, response: httpx.Response) -> list[ReadableSpan]:
        trace_id = int(response.headers["X-Trace-ID"], 16)
        spans = list(self.exporter.exported_spans)
        return [span for span in spans if span.context and span.context.trace_id == trace_id]

    async def whole(
        self, server: RunningServer, response: httpx.Response, *, has_work: bool = True
    ) -> list[ReadableSpan]:
        """The response's spans, once the outermost has ended and no work is put off."""

        def has_ended() -> bool:
            return any(span.kind is SpanKind.SERVER for span in self.of(response))

        def has_chat() -> bool:
            return any(
                "gen_ai.operation.name" in (one.attributes or {}) for one in self.of(response)
            )

        await eventually(lambda: has_ended() and (has_chat() or not has_work))
        await server.close_books()
        return self.of(response)


def drawn(spans: list[ReadableSpan]) -> str:
    """The spans as lines. Fails for one whose parent is missing."""
    below: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in spans:
        below[span.parent.span_id if span.parent else None].append(span)
    lines = ["", *_lines(below, None, ""), ""]
    assert len(lines) == len(spans) + 2, "each span has a parent among the others"
    return "\n".join(lines)


def _lines(
    below: dict[int | None, list[ReadableSpan]], parent: int | None, indent: str
) -> Iterator[str]:
    for span in sorted(below.get(parent, ()), key=_times):
        assert span.context is not None
        yield indent + _line(span)
        yield from _lines(below, span.context.span_id, indent + "  ")


def _times(span: ReadableSpan) -> tuple[int, int]:
    return span.start_time or 0, span.end_time or 0


def _line(span: ReadableSpan) -> str:
    kind = [] if span.kind is SpanKind.INTERNAL else [span.kind.name]
    status = span.status.status_code
    said = [] if status is StatusCode.UNSET else [status.name]
    return " ".join([span.name, *kind, *said, *_shown(span)])


def _shown(span: ReadableSpan) -> Iterator[str]:
    found = span.attributes or {}
    for name in SHOWN:
        if name in found:
            value = found[name]
            yield f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def loosened(tree: str, pattern: str) -> str:
    """`tree` with a `*` for each count that `pattern` leaves open; a count must be there, and above nothing."""
    lines = tree.split("\n")
    patterns = pattern.split("\n")
    return "\n".join(map(_loosened, lines, patterns)) if len(lines) == len(patterns) else tree


def _loosened(line: str, pattern: str) -> str:
    for word in pattern.split():
        name, _, value = word.partition("=")
        if value == "*":
            line = " ".join(
                word if part.startswith(f"{name}=") and int(part.partition("=")[2]) > 0 else part
                for part in line.split(" ")
            )
    return line


def body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Count to a million."}]
    return {"model": TINY, "messages": messages, "max_tokens": 5, "temperature": 0} | changes


ENDLESS = body(max_tokens=ENDLESS_TOKENS, stream=True)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that takes one request at a time, and not for long."""
    folder = tmp_path_factory.mktemp("narrow")
    settings = settings_for(folder, model_dir, max_batch=1, max_waiting=0, chat_timeout_s=LIMIT_S)
    with running(create_app(settings)) as server:
        # By the other endpoint, which has a limit of its own: loading may take longer.
        warm_up = {"model": TINY, "prompt": "x", "max_tokens": 1}
        answer = httpx.post(f"{server.url}/v1/completions", json=warm_up, timeout=60)
        assert answer.status_code == 200
        yield server


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[RunningServer]:
    """A server that asks for a key, and gives a request up with its engine."""
    keys = {"laptop": SecretStr(KEY)}
    folder = tmp_path_factory.mktemp("fragile")
    settings = settings_for(folder, model_dir, max_resumes=0, api_keys=keys, preload=TINY)
    with running(create_app(settings)) as server:
        yield server


@pytest.fixture
async def caller(fragile: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key."""
    transport, headers = UntracedTransport(), {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        base_url=fragile.url, transport=transport, headers=headers, timeout=60
    ) as client:
        yield client


@pytest.fixture
def trees() -> Iterator[Trees]:
    configure(TelemetryOptions("mlx-test"))
    trees = Trees()
    with span_sink(SimpleSpanProcessor(trees.exporter)):
        yield trees


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client without spans of its own, of a server that has its model in memory."""
    transport = UntracedTransport()
    async with httpx.AsyncClient(base_url=server.url, transport=transport, timeout=60) as client:
        assert (await client.post(CHAT, json=body(max_tokens=1))).status_code == 200
        yield client


@pytest.fixture
async def hurried(narrow: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = UntracedTransport()
    async with httpx.AsyncClient(base_url=narrow.url, transport=transport, timeout=60) as client:
        yield client


async def first_text(lines: AsyncIterator[str]) -> None:
    """Read until the first text: the stream is then in the middle of its answer."""
    async for line in lines:
        if '"content":"' in line and '"content":""' not in line:
            return
    raise AssertionError("the answer has no text")


@pytest.mark.parametrize(("is_streamed", "tree"), [(False, WHOLE), (True, STREAMED)])
async def test_an_answer(
    client: httpx.AsyncClient, server: RunningServer, trees: Trees, is_streamed: bool, tree: str
) -> None:
    asked = body(stream=True) if is_streamed else body()
    response = await client.post(CHAT, json=asked)
    assert drawn(await trees.whole(server, response)) == tree


async def test_an_answer_whose_client_leaves(
    client: httpx.AsyncClient, server: RunningServer, trees: Trees
) -> None:
    async with client.stream("POST", CHAT, json=ENDLESS) as response:
        await first_text(response.aiter_lines())
    tree = drawn(await trees.whole(server, response))
    assert loosened(tree, CANCELLED) == CANCELLED


async def test_an_answer_whose_engine_is_killed(
    client: httpx.AsyncClient, server: RunningServer, trees: Trees
) -> None:
    long = ENDLESS | {"max_tokens": 1000}
    async with client.stream("POST", CHAT, json=long) as response:
        # One iterator for all of it: a second one would find the stream consumed.
        lines = response.aiter_lines()
        await first_text(lines)
        engine = server.resident(TINY).engine
        assert engine is not None
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
    assert drawn(await trees.whole(server, response)) == RESUMED


async def test_an_answer_that_takes_too_long(
    hurried: httpx.AsyncClient, narrow: RunningServer, trees: Trees
) -> None:
    response = await hurried.post(CHAT, json=ENDLESS | {"stream": False})
    tree = drawn(await trees.whole(narrow, response))
    assert loosened(tree, TIMED_OUT) == TIMED_OUT


async def test_a_model_that_does_not_exist(
    client: httpx.AsyncClient, server: RunningServer, trees: Trees
) -> None:
    response = await client.post(CHAT, json=body(model="test/unknown"))
    assert drawn(await trees.whole(server, response)) == UNKNOWN_MODEL


async def test_one_request_too_many(
    hurried: httpx.AsyncClient, narrow: RunningServer, trees: Trees
) -> None:
    first = {"model": TINY, "prompt": "x", "max_tokens": ENDLESS_TOKENS, "temperature": 0}
    asking = asyncio.create_task(hurried.post("/v1/completions", json=first))
    await eventually(lambda: narrow.active(TINY) == 1)
    response = await hurried.post(CHAT, json=body())
    asking.cancel()
    assert drawn(await trees.whole(narrow, response)) == OVERLOADED


def are_decoding(server: RunningServer, sequences: int) -> bool:
    """Whether the engine has so many sequences, and a token of each."""
    engine = server.resident(TINY).engine
    made = [one.received_tokens for one in engine._streams.values()] if engine else []
    return len(made) == sequences and min(made) > 0


def kill_the_engine(server: RunningServer) -> None:
    engine = server.resident(TINY).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def without_authentication(tree: str) -> str:
    """What `LOADED` shows already."""
    return tree.replace("  authenticate\n", "")


async def test_a_stream_whose_engine_is_killed_and_which_is_given_up(
    caller: httpx.AsyncClient, fragile: RunningServer, trees: Trees
) -> None:
    async with caller.stream("POST", CHAT, json=ENDLESS) as response:
        lines = response.aiter_lines()
        await first_text(lines)
        kill_the_engine(fragile)
        assert "engine_failed" in "".join([line async for line in lines])
    tree = without_authentication(drawn(await trees.whole(fragile, response)))
    assert loosened(tree, FAILED) == FAILED


async def test_an_answer_whose_engine_is_killed_and_which_is_given_up(
    caller: httpx.AsyncClient, fragile: RunningServer, trees: Trees
) -> None:
    # The one beside it has the model loaded.
    async with caller.stream("POST", CHAT, json=ENDLESS):
        asking = asyncio.create_task(caller.post(CHAT, json=ENDLESS | {"stream": False}))
        await eventually(lambda: are_decoding(fragile, 2))
        kill_the_engine(fragile)
        response = await asking
    tree = without_authentication(drawn(await trees.whole(fragile, response)))
    assert loosened(tree, FAILED_WHOLE) == FAILED_WHOLE


async def test_a_model_that_is_loaded_for_a_caller_with_a_key(
    caller: httpx.AsyncClient, fragile: RunningServer, trees: Trees
) -> None:
    response = await caller.post(CHAT, json=body(model="test/late"))
    assert drawn(await trees.whole(fragile, response)) == LOADED


async def test_a_caller_without_a_key(
    caller: httpx.AsyncClient, fragile: RunningServer, trees: Trees
) -> None:
    response = await caller.post(CHAT, json=body(), headers={"Authorization": "Bearer nobody-s"})
    assert drawn(await trees.whole(fragile, response, has_work=False)) == REFUSED


async def test_an_answer_that_thinks_and_calls(
    client: httpx.AsyncClient, server: RunningServer, trees: Trees
) -> None:
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    asked = {
        "model": "mlx-manager/starter",
        "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "max_tokens": 200,
        "temperature": 0,
    }
    await client.post(CHAT, json=asked)
    response = await client.post(CHAT, json=asked)
    tree = drawn(await trees.whole(server, response))
    assert loosened(tree, PARSED) == PARSED


async def test_a_stream_that_takes_too_long(
    hurried: httpx.AsyncClient, narrow: RunningServer, trees: Trees
) -> None:
    response = await hurried.post(CHAT, json=ENDLESS)
    tree = drawn(await trees.whole(narrow, response))
    assert loosened(tree, STREAMED_TIMED_OUT) == STREAMED_TIMED_OUT
