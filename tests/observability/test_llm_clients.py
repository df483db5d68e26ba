"""The SDKs' calls through a stand-in provider: one span each, with counts, without words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import logfire
import openai
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from tests.observability.conftest import Python
from tests.support.provider import CHUNK, COUNTS, MESSAGES, SECRET, app, received
from tests.support.running import RunningServer, running
from tests.support.spans import Spans, ids


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningServer]:
    with running(app) as server:
        yield server


@pytest.fixture(autouse=True)
def _instrumented() -> None:
    instrument_llm_clients()
    received.clear()


@pytest.fixture
async def gpt(provider: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{provider.url}/v1", api_key=SECRET, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def claude(provider: RunningServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=provider.url, api_key=SECRET, max_retries=0
    ) as client:
        yield client


def the_call(spans: Spans, parent: str = "request") -> ReadableSpan:
    """The only span with token counts: a CLIENT span, under the caller's; its one HTTP attempt is below it."""
    (call,) = [span for span in spans.all if "gen_ai.request.model" in (span.attributes or {})]
    assert call.kind is SpanKind.CLIENT
    assert ids(call.parent) == ids(spans.one(parent).context)
    (attempt,) = [span for span in spans.all if span.name == "POST"]
    assert ids(attempt.parent) == ids(call.context)
    trace_id, span_id = ids(attempt.context)
    assert received == [f"00-{trace_id}-{span_id}-01"]
    assert SECRET not in spans.text()
    return call


def counts(span: ReadableSpan) -> tuple[object, object]:
    attributes = span.attributes or {}
    return attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]


def cached(span: ReadableSpan) -> tuple[object, object]:
    """Input tokens that the provider read from its cache, and those that it wrote there."""
    attributes = span.attributes or {}
    kinds = ("cache_read", "cache_write")
    read, written = (attributes[f"gen_ai.usage.{kind}.input_tokens"] for kind in kinds)
    return read, written


async def test_an_openai_call_has_its_counts(gpt: openai.AsyncOpenAI, spans: Spans) -> None:
    with logfire.span("request"):
        answer = await gpt.chat.completions.create(
            model="gpt", messages=MESSAGES, temperature=0, max_completion_tokens=9
        )

    assert answer.choices[0].message.content == SECRET
    call = the_call(spans)
    assert counts(call) == (11, 3)
    attributes = call.attributes or {}
    assert call.name == "chat gpt"
    assert attributes["gen_ai.provider.name"] == "openai"
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.temperature"] == 0
    assert attributes["gen_ai.request.max_tokens"] == 9
    assert attributes["gen_ai.response.model"] == "gpt-real"
    assert attributes["gen_ai.response.id"] == "c-1"
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert cached(call) == (4, 5)
    assert attributes["gen_ai.usage.reasoning.output_tokens"] == 2
    assert attributes["server.address"] == "127.0.0.1"


async def test_an_openai_stream_has_its_counts_on_the_same_span(
    gpt: openai.AsyncOpenAI, spans: Spans
) -> None:
    with logfire.span("request"):
        stream = await gpt.chat.completions.create(
            model="gpt", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        text = [c.choices[0].delta.content async for c in stream if c.choices]

    assert text == [SECRET, "more", ""]
    call = the_call(spans)
    assert counts(call) == (11, 3)
    assert cached(call) == (4, 5)
    attributes = call.attributes or {}
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.response.time_to_first_chunk"]
    assert "mlx.cancelled" not in attributes


async def test_a_call_of_the_responses_api_has_its_counts(
    gpt: openai.AsyncOpenAI, spans: Spans
) -> None:
    with logfire.span("request"):
        await gpt.responses.create(model="gpt", input=SECRET, max_output_tokens=9)

    call = the_call(spans)
    attributes = call.attributes or {}
    assert (call.name, attributes["gen_ai.request.max_tokens"]) == ("chat gpt", 9)
    assert (counts(call), cached(call)) == ((11, 3), (4, 5))
    assert attributes["gen_ai.usage.reasoning.output_tokens"] == 2
    assert attributes["gen_ai.response.id"] == "r-1"


async def test_a_stream_of_the_responses_api_has_its_counts_on_the_same_span(
    gpt: openai.AsyncOpenAI, spans: Spans
) -> None:
    with logfire.span("request"):
        stream = await gpt.responses.create(model="gpt", input=SECRET, stream=True)
        assert len([event async for event in stream]) == 3

    call = the_call(spans)
    assert (counts(call), cached(call)) == ((11, 3), (4, 5))
    assert (call.attributes or {})["gen_ai.response.model"] == "gpt-real"
    assert "mlx.cancelled" not in (call.attributes or {})


async def test_a_call_for_embeddings_has_its_count(gpt: openai.AsyncOpenAI, spans: Spans) -> None:
    with logfire.span("request"):
        await gpt.embeddings.create(model="embed", input=SECRET)

    call = the_call(spans)
    attributes = call.attributes or {}
    assert (call.name, attributes["gen_ai.operation.name"]) == ("embeddings embed", "embeddings")
    assert attributes["gen_ai.usage.input_tokens"] == 11
    assert attributes["gen_ai.response.model"] == "embed-real"


async def test_an_openai_stream_that_is_left_ends_its_span_as_cancelled(
    gpt: openai.AsyncOpenAI, spans: Spans
) -> None:
    with logfire.span("request"):
        async with await gpt.chat.completions.create(
            model="gpt", messages=MESSAGES, stream=True
        ) as stream:
            await anext(aiter(stream))

    call = the_call(spans)
    assert (call.attributes or {})["mlx.cancelled"] is True
    assert call.status.status_code is StatusCode.UNSET


async def test_an_openai_error_is_an_error_without_its_text(
    gpt: openai.AsyncOpenAI, spans: Spans
) -> None:
    with logfire.span("request"), pytest.raises(openai.NotFoundError):
        await gpt.chat.completions.create(model="unknown", messages=MESSAGES)

    call = the_call(spans)
    assert call.status.status_code is StatusCode.ERROR
    assert (call.attributes or {})["error.type"] == "NotFoundError"


def test_the_synchronous_openai_client_is_traced_too(provider: RunningServer, spans: Spans) -> None:
    gpt = openai.OpenAI(base_url=f"{provider.url}/v1", api_key=SECRET, max_retries=0)
    with gpt, logfire.span("request"):
        stream = gpt.chat.completions.create(
            model="gpt", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        assert len(list(stream)) == 4

    assert counts(the_call(spans)) == (11, 3)


async def test_an_openai_call_sends_its_trace_where_httpx_is_not_instrumented(
    provider: RunningServer, spans: Spans
) -> None:
    async def plain(request: Any) -> Any:
        seen.append(request.headers.get("traceparent"))
        return openai_httpx.Response(200, json=CHUNK | {"choices": [], "usage": COUNTS})

    import httpx2 as openai_httpx

    seen: list[str | None] = []
    transport = openai_httpx.MockTransport(plain)
    client = openai_httpx.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(base_url="http://x/v1", api_key="k", http_client=client) as gpt:
        await gpt.chat.completions.create(model="gpt", messages=MESSAGES)

    trace_id, span_id = ids(spans.one("chat gpt").context)
    assert seen == [f"00-{trace_id}-{span_id}-01"]


async def test_an_anthropic_call_has_its_counts(
    claude: anthropic.AsyncAnthropic, spans: Spans
) -> None:
    with logfire.span("request"):
        await claude.messages.create(model="claude", messages=MESSAGES, max_tokens=9)

    call = the_call(spans)
    # Both are parts of the input, as with everybody else.
    assert (counts(call), cached(call)) == ((11, 3), (4, 5))
    assert (call.attributes or {})["gen_ai.provider.name"] == "anthropic"
    assert (call.attributes or {})["gen_ai.operation.name"] == "chat"


async def test_an_anthropic_stream_has_its_counts_on_the_same_span(
    claude: anthropic.AsyncAnthropic, spans: Spans
) -> None:
    with logfire.span("request"):
        async with claude.messages.stream(
            model="claude", messages=MESSAGES, max_tokens=9
        ) as stream:
            assert await stream.get_final_text() == SECRET

    call = the_call(spans)
    assert (counts(call), cached(call)) == ((11, 3), (4, 5))


def test_without_the_packages_it_is_a_debug_line(python: Python) -> None:
    done = python("""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("openai", "anthropic"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s", stream=sys.stdout)
from mlx_manager.mlx_server.observability.logfire_config import configure_logfire, instrument_llm_clients
configure_logfire()
instrument_llm_clients()
""")

    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "installed" in line] == [
        "DEBUG SDK not installed: openai; its calls can't be traced",
        "DEBUG SDK not installed: anthropic; its calls can't be traced",
    ]


def test_the_packages_are_not_imported_before_somebody_needs_them(python: Python) -> None:
    done = python("""
import sys
from mlx_manager.mlx_server.observability.logfire_config import configure_logfire, instrument_llm_clients
configure_logfire()
instrument_llm_clients()
print({"openai", "anthropic"} & set(sys.modules))
""")

    assert (done.stdout, done.stderr) == ("set()\n", "")
