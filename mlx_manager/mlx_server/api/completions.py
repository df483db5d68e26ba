"""`POST /v1/chat/completions` and `POST /v1/completions`: decode, call the backend, encode."""

from __future__ import annotations

import time
from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from mlx_manager.chat.events import without_reasoning
from mlx_manager.chat.request import ChatRequest
from mlx_manager.mlx_server.api.dependencies import CurrentEntry, CurrentState
from mlx_manager.mlx_server.api.streaming import (
    LAST_WORDS_S,
    ClientLeft,
    EventStream,
    Ping,
    adjusted_headers,
    begin,
    collected,
    until_disconnect,
)
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire import sse
from mlx_manager.wire.openai.errors import error_event
from mlx_manager.wire.openai.requests import chat_request, completion_request
from mlx_manager.wire.openai.schema import ChatCompletionBody, CompletionBody
from mlx_manager.wire.openai.streams import to_chunks, to_response

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/chat/completions", response_model=None)
async def create_chat_completion(
    body: ChatCompletionBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Answer a conversation, streamed when `stream` is true."""
    entry.asked(body.model, bool(body.stream))
    return await _answer(
        state,
        chat_request(body, entry.origin),
        http,
        body.includes_usage,
        shows_reasoning=body.shows_reasoning,
    )


@router.post("/completions", response_model=None)
async def create_completion(
    body: CompletionBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Continue a text that no chat template touches."""
    entry.asked(body.model, bool(body.stream))
    return await _answer(state, completion_request(body, entry.origin), http, body.includes_usage)


async def _answer(
    state: ServerState,
    request: ChatRequest,
    http: Request,
    includes_usage: bool,
    *,
    shows_reasoning: bool = True,
) -> Response:
    created_s = int(time.time())
    # Read here, as the backend does: what changes meanwhile is for the next request.
    limit_s = state.time_limits[request.operation] + LAST_WORDS_S
    ping = Ping(state.settings.stream_keep_alive_s)
    events = state.backend.stream(request)
    if not shows_reasoning:
        events = without_reasoning(events)
    try:
        if not request.stream:
            answer = await until_disconnect(http.receive, collected(events))
            return JSONResponse(
                to_response(answer, request, created_s), headers=adjusted_headers(request.timeline)
            )
        chunks = to_chunks(events, request, created_s, includes_usage)
        first = await begin(http.receive, chunks, ping.every_s)
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return EventStream(
        first,
        chunks,
        sse.DONE,
        partial(error_event, request_id=request.origin.request_id),
        limit_s,
        ping,
        partial(adjusted_headers, request.timeline),
    )
