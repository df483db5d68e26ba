"""One request is one trace, from the socket to the engine and back."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tests.conftest import ENDLESS_TOKENS
from tests.support.running import AuditedRequest, RunningServer, eventually
from tests.support.spans import Spans, UntracedTransport

MODEL = "test/tiny"
MARKED = "marked-secret"


def body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"The {MARKED} is 7."}]
    return {"model": MODEL, "messages": messages, "max_tokens": 20, "temperature": 0} | changes


@pytest.fixture
async def client(server: RunningServer) -> Any:
    """A client that leaves no spans of its own."""
    transport = UntracedTransport()
    async with httpx.AsyncClient(base_url=server.url, transport=transport, timeout=60) as client:
        await client.post("/v1/chat/completions", json=body(max_tokens=1))
        await server.close_books()
        yield client


def duration_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def of_trace(spans: Spans, response: httpx.Response) -> list[ReadableSpan]:
    trace_id = int(response.headers["X-Trace-ID"], 16)
    return [span for span in spans.all if span.context and span.context.trace_id == trace_id]


def is_outer(span: ReadableSpan) -> bool:
    """Whether it is one of the two that end last: the server's and the chat's."""
    return span.kind is SpanKind.SERVER or "gen_ai.operation.name" in (span.attributes or {})


async def whole_trace(spans: Spans, response: httpx.Response) -> dict[str, ReadableSpan]:
    """The spans of a response's trace by name, once the server span has ended, and the chat's if it was answered."""
    expected = 2 if response.status_code == 200 else 1
    await eventually(lambda: sum(map(is_outer, of_trace(spans, response))) == expected)
    return {span.name: span for span in of_trace(spans, response)}


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_chat_is_one_trace_with_a_span_for_each_phase(
    client: httpx.AsyncClient, spans: Spans, is_streamed: bool
) -> None:
    response = await client.post("/v1/chat/completions", json=body(stream=is_streamed))
    trace = await whole_trace(spans, response)
    assert set(trace) == {
        "POST /v1/chat/completions",
        f"chat {MODEL}",
        "route",
        "tokenize",
        "queue",
        "prefill",
        "decode",
    }
    http, chat = trace["POST /v1/chat/completions"], trace[f"chat {MODEL}"]
    assert chat.parent is not None
    assert http.context is not None
    assert chat.context is not None
    assert (http.parent, chat.parent.span_id) == (None, http.context.span_id)
    for phase in ("tokenize", "queue", "prefill", "decode"):
        parent = trace[phase].parent
        assert parent is not None
        assert parent.span_id == chat.context.span_id


async def test_a_long_answer_leaves_no_more_spans_and_events_than_a_short_one(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    left = list[tuple[list[str], list[str]]]()
    for tokens in (4, 400):
        asked = body(stream=True, max_tokens=tokens, ignore_eos=True)
        response = await client.post("/v1/chat/completions", json=asked)
        trace = await whole_trace(spans, response)
        assert (trace["decode"].attributes or {})["mlx.decode.tokens"] == tokens
        of_answer = of_trace(spans, response)
        events = [event.name for span in of_answer for event in span.events]
        # A pause is told of wherever it comes, 16 times at most.
        left.append((sorted(span.name for span in of_answer), [e for e in events if e != "stall"]))
    short, long = left
    assert short == long


async def test_the_phases_follow_each_other_within_the_chat(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    trace = await whole_trace(spans, await client.post("/v1/chat/completions", json=body()))
    names = ("tokenize", "queue", "prefill", "decode")
    times = [time for name in names for time in (trace[name].start_time, trace[name].end_time)]
    chat = trace[f"chat {MODEL}"]
    assert all(time is not None for time in times)
    assert times == sorted(times, key=lambda time: time or 0)
    assert (chat.start_time or 0) <= (times[0] or 0)
    assert (times[-1] or 0) <= (chat.end_time or 0) + 1_000_000
    assert duration_s(trace["decode"]) > 0


async def test_the_chat_span_counts_what_the_engine_did(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    response = await client.post("/v1/chat/completions", json=body(seed=3))
    trace = await whole_trace(spans, response)
    attributes = dict(trace[f"chat {MODEL}"].attributes or {})
    usage = response.json()["usage"]
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.provider.name"] == "mlx"
    assert attributes["server.address"] == client.base_url.host
    assert attributes["server.port"] == client.base_url.port
    assert attributes["gen_ai.request.model"] == MODEL
    assert attributes["gen_ai.request.seed"] == 3
    assert attributes["gen_ai.request.temperature"] == 0
    assert "gen_ai.request.top_p" not in attributes
    assert attributes["gen_ai.response.id"] == response.json()["id"]
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 20
    decode = dict(trace["decode"].attributes or {})
    assert 20 in decode.values()


async def test_the_chat_span_says_how_many_were_computed_beside_it(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    endless = body(max_tokens=ENDLESS_TOKENS, stream=True, ignore_eos=True)
    asked = body(max_tokens=40, ignore_eos=True)
    async with client.stream("POST", "/v1/chat/completions", json=endless) as other:
        # Kept until then: when it goes, the response is closed.
        lines = other.aiter_lines()
        await anext(lines)
        trace = await whole_trace(spans, await client.post("/v1/chat/completions", json=asked))
    for name in (f"chat {MODEL}", "decode"):
        attributes: dict[str, Any] = dict(trace[name].attributes or {})
        assert attributes["mlx.batch.width_max"] == 2
        assert attributes["mlx.batch.width_mean"] == pytest.approx(2, abs=0.1)


async def test_a_traceparent_is_continued(client: httpx.AsyncClient, spans: Spans) -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    response = await client.post("/v1/chat/completions", json=body(), headers=headers)
    assert response.headers["X-Trace-ID"] == trace_id
    http = (await whole_trace(spans, response))["POST /v1/chat/completions"]
    assert http.parent is not None
    assert f"{http.parent.span_id:016x}" == span_id


async def test_nothing_of_a_prompt_an_answer_or_a_key_is_in_any_span(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    secrets = {"Authorization": f"Bearer {MARKED}", "Cookie": f"a={MARKED}", "x-api-key": MARKED}
    url = f"/v1/chat/completions?api_key={MARKED}"
    whole = await client.post(url, json=body(), headers=secrets)
    wrong = await client.post(url, json=body(temperature=MARKED), headers=secrets)
    missing = await client.post(url, json=body(messages=[{"role": MARKED}]), headers=secrets)
    unknown = await client.get(f"/nothing?token={MARKED}", headers=secrets)
    for response in (whole, wrong, missing, unknown):
        await whole_trace(spans, response)
    assert MARKED not in spans.text()


async def test_a_client_that_leaves_is_no_error(
    client: httpx.AsyncClient, spans: Spans, server: RunningServer
) -> None:
    asking = asyncio.create_task(
        client.post("/v1/chat/completions", json=body(max_tokens=ENDLESS_TOKENS, stream=True))
    )
    await eventually(lambda: server.active(MODEL) == 1)
    asking.cancel()
    chat = await spans.wait(f"chat {MODEL}")
    http = await spans.wait("POST /v1/chat/completions")
    assert (chat.attributes or {})["mlx.cancelled"] is True
    assert chat.status.status_code is not StatusCode.ERROR
    assert http.status.status_code is not StatusCode.ERROR


async def test_a_killed_engine_is_a_phase_of_a_chat_that_is_no_error(
    client: httpx.AsyncClient, spans: Spans, server: RunningServer
) -> None:
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body(max_tokens=1500)))
    await eventually(lambda: server.active(MODEL) == 1)
    engine = server.resident(MODEL).engine
    assert engine is not None
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    answer = await asking
    assert answer.status_code == 200
    trace = await whole_trace(spans, answer)
    chat, resume = trace[f"chat {MODEL}"], trace["resume"]
    assert chat.status.status_code is not StatusCode.ERROR
    assert (chat.attributes or {})["gen_ai.usage.output_tokens"] == 1500
    assert (resume.attributes or {})["mlx.resume.attempts"] == 1
    assert 0.01 < duration_s(resume) < duration_s(chat)


async def test_a_model_that_had_to_be_loaded_shows_in_the_trace(
    client: httpx.AsyncClient, spans: Spans
) -> None:
    request = {"model": "test/late", "prompt": "x", "max_tokens": 2}
    trace = await whole_trace(spans, await client.post("/v1/completions", json=request))
    assert duration_s(trace["model.load"]) > 0.05
    again = await whole_trace(spans, await client.post("/v1/completions", json=request))
    assert "model.load" not in again


async def test_each_request_leaves_one_row_that_leads_to_its_trace(
    client: httpx.AsyncClient, server: RunningServer
) -> None:
    response = await client.post("/v1/chat/completions", json=body())
    request_id, trace_id = response.headers["X-Request-ID"], response.headers["X-Trace-ID"]
    await eventually(lambda: bool(server.audited(request_id)))
    usage = response.json()["usage"]
    counts = (usage["prompt_tokens"], usage["completion_tokens"])
    assert server.audited(request_id) == [AuditedRequest(200, "completed", *counts, trace_id)]


async def test_health_leaves_no_span(client: httpx.AsyncClient, spans: Spans) -> None:
    await client.get("/health")
    await client.get("/v1/models")
    await spans.wait("GET /v1/models")
    assert [span.name for span in spans.of_kind(SpanKind.SERVER)] == ["GET /v1/models"]
