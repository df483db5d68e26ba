"""Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`: decode, call the backend, encode."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

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
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire.anthropic.errors import error_event
from mlx_manager.wire.anthropic.requests import count_request, message_request
from mlx_manager.wire.anthropic.schema import CountTokensBody, MessagesBody
from mlx_manager.wire.anthropic.streams import (
    MESSAGE_STOP,
    PING,
    to_events,
    to_message,
)

router = APIRouter(prefix="/v1/messages", tags=["Anthropic"])


@router.post("", response_model=None)
async def create_message(
    body: MessagesBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Answer a conversation in Anthropic's words, streamed when `stream` is true."""
    entry.asked(body.model, bool(body.stream))
    request = message_request(body, entry.origin, state.signer)
    # Read here, as the backend does: what changes meanwhile is for the next request.
    limit_s = state.time_limits[request.operation] + LAST_WORDS_S
    ping = Ping(state.settings.stream_keep_alive_s, PING)
    events = state.backend.stream(request)
    try:
        if not request.stream:
            answer = await until_disconnect(http.receive, collected(events))
            message = to_message(answer, request, state.signer, body.shows_thinking)
            return JSONResponse(message, headers=adjusted_headers(request.timeline))
        chunks = to_events(events, request, state.signer, body.shows_thinking)
        first = await begin(http.receive, chunks, ping.every_s)
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return EventStream(
        first,
        chunks,
        MESSAGE_STOP,
        partial(error_event, request_id=request.origin.request_id),
        limit_s,
        ping,
        partial(adjusted_headers, request.timeline),
    )


@router.post("/count_tokens", response_model=None)
async def count_tokens(
    body: CountTokensBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Say how many tokens the prompt of a message would have, with its tools and all."""
    entry.asked(body.model, False)
    request = count_request(body, entry.origin, state.signer)
    try:
        count = await until_disconnect(http.receive, state.token_counter.count_tokens(request))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse({"input_tokens": count})
