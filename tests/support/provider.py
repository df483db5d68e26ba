"""A stand-in for both clouds, which their SDKs can call: the same short answers whatever they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.responses import Response

SECRET = "marked-secret-4711"
MESSAGES: Any = [{"role": "user", "content": SECRET}]
CHUNK: dict[str, Any] = {
    "id": "c-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "gpt-real",
}
COUNTS: dict[str, Any] = {
    "prompt_tokens": 11,
    "completion_tokens": 3,
    "total_tokens": 14,
    "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
# Anthropic counts apart what it reads from its cache and what it writes there.
READ: dict[str, Any] = {
    "input_tokens": 2,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 4,
}
MESSAGE: dict[str, Any] = {
    "id": "m-1",
    "type": "message",
    "role": "assistant",
    "model": "claude-real",
    "content": [{"type": "text", "text": SECRET}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {**READ, "output_tokens": 3},
}
RESPONSE: dict[str, Any] = {
    "id": "r-1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-real",
    "status": "completed",
    "output": [],
    "usage": {
        "input_tokens": 11,
        "output_tokens": 3,
        "total_tokens": 14,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5},
        "output_tokens_details": {"reasoning_tokens": 2},
    },
}
EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "model": "embed-real",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}],
    "usage": {"prompt_tokens": 11, "total_tokens": 11},
}

app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})
received: list[str | None] = []


@app.post("/v1/chat/completions")
async def openai_chat(request: Request) -> Response:
    received.append(request.headers.get("traceparent"))
    body = await request.json()
    if body["model"] == "unknown":
        return JSONResponse({"error": {"message": SECRET, "type": "x"}}, 404)
    if body.get("stream"):
        return events(openai_chunks())
    choice = {"index": 0, "message": {"role": "assistant", "content": SECRET}}
    return JSONResponse(
        CHUNK
        | {
            "object": "chat.completion",
            "choices": [choice | {"finish_reason": "stop"}],
            "usage": COUNTS,
        }
    )


@app.post("/v1/responses")
async def openai_response(request: Request) -> Response:
    received.append(request.headers.get("traceparent"))
    body = await request.json()
    return events(response_events()) if body.get("stream") else JSONResponse(RESPONSE)


@app.post("/v1/embeddings")
async def openai_embeddings(request: Request) -> Response:
    received.append(request.headers.get("traceparent"))
    return JSONResponse(EMBEDDINGS)


@app.post("/v1/messages")
async def anthropic_messages(request: Request) -> Response:
    received.append(request.headers.get("traceparent"))
    body = await request.json()
    return events(anthropic_events()) if body.get("stream") else JSONResponse(MESSAGE)


def openai_chunks() -> Iterator[str]:
    for text, reason in ((SECRET, None), ("more", None), ("", "stop")):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        yield f"data: {json.dumps(CHUNK | {'choices': [choice]})}\n\n"
    yield f"data: {json.dumps(CHUNK | {'choices': [], 'usage': COUNTS})}\n\n"
    yield "data: [DONE]\n\n"


def response_events() -> Iterator[str]:
    begun = RESPONSE | {"status": "in_progress", "usage": None}
    delta = {"item_id": "i-1", "output_index": 0, "content_index": 0, "logprobs": []}
    told: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": SECRET, **delta},
        {"type": "response.completed", "response": RESPONSE},
    ]
    for number, event in enumerate(told):
        data = json.dumps(event | {"sequence_number": number})
        yield f"event: {event['type']}\ndata: {data}\n\n"


def anthropic_events() -> Iterator[str]:
    start = MESSAGE | {
        "content": [],
        "stop_reason": None,
        "usage": {**READ, "output_tokens": 1},
    }
    block = {"type": "text", "text": ""}
    for event in (
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": SECRET},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def events(lines: Iterator[str]) -> Response:
    return StreamingResponse(lines, media_type="text/event-stream")
