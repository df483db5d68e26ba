"""W3C trace context through a whole application: what comes in goes out with the call of a cloud, flag and all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind

from mlx_manager.mlx_server.observability.logfire_config import instrument_llm_clients
from mlx_manager.observability.logfire_config import instrument_fastapi
from mlx_manager.observability.setup import span_sink
from tests.support.provider import MESSAGE, MESSAGES
from tests.support.running import RunningServer, eventually, running
from tests.support.spans import Spans, ids

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ANSWER: Any = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-real",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
    ],
}


class Ended(SpanProcessor):
    """Keeps every span, sampled or not, as the local store does."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def cloud_and_server() -> FastAPI:
    """The cloud's own endpoint, and one that calls it through the SDK."""
    app = FastAPI()
    app.state.received = []

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Any:
        app.state.received.append(dict(request.headers))
        return ANSWER

    @app.post("/v1/messages")
    async def answer_message(request: Request) -> Any:
        app.state.received.append(dict(request.headers))
        return MESSAGE

    @app.post("/ask/openai")
    async def ask(request: Request) -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{request.base_url}v1", api_key="none", max_retries=0
        ) as client:
            asked = await client.chat.completions.create(
                model="gpt", messages=[{"role": "user", "content": "Hello"}]
            )
        return asked.choices[0].finish_reason

    @app.post("/ask/anthropic")
    async def ask_anthropic(request: Request) -> str | None:
        async with anthropic.AsyncAnthropic(
            base_url=str(request.base_url), api_key="none", max_retries=0
        ) as client:
            message = await client.messages.create(model="claude", max_tokens=9, messages=MESSAGES)
        return message.stop_reason

    instrument_fastapi(app)
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    instrument_llm_clients()
    with running(cloud_and_server()) as server:
        yield server


@pytest.mark.parametrize("cloud", ["openai", "anthropic"])
@pytest.mark.parametrize("flag", ["00", "01"])
async def test_a_callers_trace_goes_on_to_the_cloud_with_its_flag(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans, flag: str, cloud: str
) -> None:
    ended = Ended()
    server.app.state.received.clear()
    with span_sink(ended):
        answer = await untraced.post(
            f"{server.url}/ask/{cloud}",
            headers={
                "traceparent": f"00-{TRACE}-{PARENT}-{flag}",
                "tracestate": "vendor=value",
                "baggage": "session.id=s-1,secret=marked-secret",
            },
        )
        await eventually(lambda: any(span.name == f"POST /ask/{cloud}" for span in ended.spans))

    assert answer.status_code == 200
    (sent,) = server.app.state.received
    found = re.fullmatch(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", sent["traceparent"])
    assert found is not None
    trace_id, span_id, sent_flag = found.groups()
    assert (trace_id, sent_flag) == (TRACE, flag)
    assert sent["tracestate"] == "vendor=value"
    assert "baggage" not in sent
    # The last one in the chain is the HTTP attempt: a span of ours that all sinks in the process were given.
    attempt = next(span for span in ended.spans if ids(span.context)[1] == span_id)
    assert attempt.kind is SpanKind.CLIENT
    request = next(span for span in ended.spans if span.name == f"POST /ask/{cloud}")
    assert ids(request.parent) == (TRACE, PARENT)
    assert all(
        span.context is not None and f"{int(span.context.trace_flags):02x}" == flag
        for span in ended.spans
    )
    # What looks at the flag, as OpenTelemetry's own exporters do, has them only when the caller wanted that.
    assert bool(spans.all) is (flag == "01")


async def test_a_request_that_nobody_traces_begins_a_sampled_trace(
    server: RunningServer, untraced: httpx.AsyncClient, spans: Spans
) -> None:
    server.app.state.received.clear()
    answer = await untraced.post(f"{server.url}/ask/openai")
    request = await spans.wait("POST /ask/openai")

    assert request.parent is None
    (sent,) = server.app.state.received
    version, trace_id, _, flag = sent["traceparent"].split("-")
    assert (version, trace_id, flag) == ("00", ids(request.context)[0], "01")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-0-0-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01x",
        f"00-{TRACE}-{PARENT}",
    ],
)
def test_a_header_that_is_not_valid_names_no_trace(spans: Spans, header: str) -> None:
    """`spans` has telemetry configured, and the propagator with it."""
    context = propagate.extract({"traceparent": header}, Context())

    assert not trace.get_current_span(context).get_span_context().is_valid


def test_a_later_version_of_the_header_is_understood(spans: Spans) -> None:
    context = propagate.extract({"traceparent": f"01-{TRACE}-{PARENT}-01-more"}, Context())

    assert ids(trace.get_current_span(context).get_span_context()) == (TRACE, PARENT)
