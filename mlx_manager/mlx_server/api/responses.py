"""OpenAI's Responses API, `/v1/responses`: decode, call the backend, encode; and what is stored of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse

from mlx_manager.chat.events import ChatEvent
from mlx_manager.chat.request import ChatRequest
from mlx_manager.errors import MlxManagerError
from mlx_manager.mlx_server.api.dependencies import CurrentEntry, CurrentKeyId, CurrentState
from mlx_manager.mlx_server.api.streaming import (
    LAST_WORDS_S,
    ClientLeft,
    EventStream,
    Ping,
    adjusted_header,
    adjusted_headers,
    begin,
    until_disconnect,
)
from mlx_manager.mlx_server.audit.entry import Entry
from mlx_manager.mlx_server.responses.background import Job
from mlx_manager.mlx_server.responses.tape import Tape
from mlx_manager.mlx_server.state import ServerState
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire.openai.errors import error_event
from mlx_manager.wire.openai.responses.items import ItemObject, input_items, referred_ids
from mlx_manager.wire.openai.responses.objects import (
    ADJUSTED,
    ResponseObject,
    deleted,
    including,
    items_page,
    new_response,
)
from mlx_manager.wire.openai.responses.parameters import ENCRYPTED, check_included
from mlx_manager.wire.openai.responses.requests import check_body, check_query, response_request
from mlx_manager.wire.openai.responses.schema import ItemsQuery, ResponsesBody, RetrieveQuery
from mlx_manager.wire.openai.responses.streams import ResponseWriter

router = APIRouter(prefix="/v1/responses", tags=["OpenAI"])


@router.post("", response_model=None)
async def create_response(
    body: ResponsesBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Answer in OpenAI's Responses API: streamed, in the background or both, and stored unless `store` is false."""
    entry.asked(body.model, bool(body.stream))
    check_body(body)
    asked = await _asked(body, state, entry)
    if body.background:
        return await _in_background(asked, http)
    # Read here, as the backend does: what changes meanwhile is for the next request.
    limit_s = state.time_limits[asked.request.operation] + LAST_WORDS_S
    ping = Ping(state.settings.stream_keep_alive_s)
    events = state.backend.stream(asked.request)
    try:
        if not body.stream:
            whole = await until_disconnect(http.receive, _whole(asked, events))
            return JSONResponse(whole, headers=adjusted_headers(asked.request.timeline))
        frames = _streamed(asked, events)
        first = await begin(http.receive, frames, ping.every_s)
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    told = partial(adjusted_headers, asked.request.timeline)
    return EventStream(first, frames, (), partial(_last_event, asked.writer), limit_s, ping, told)


@router.post("/input_tokens", response_model=None)
async def count_input_tokens(
    body: ResponsesBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Say how many tokens the prompt of a response would have, with its tools and what it goes on from."""
    entry.asked(body.model, False)
    check_body(body)
    request, _ = await _request(body, state, entry)
    try:
        count = await until_disconnect(http.receive, state.token_counter.count_tokens(request))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": count})


@router.get("/{response_id}", response_model=None)
async def get_response(
    response_id: str,
    state: CurrentState,
    key_id: CurrentKeyId,
    http: Request,
    query: Annotated[RetrieveQuery, Query()],
) -> Response:
    """Return a stored response as it is now; or, when `stream` is true, its stream behind event `starting_after`."""
    check_query(query)
    if not query.stream:
        response = await state.background.find(response_id, key_id)
        included = including(response, query.included, state.signer)
        return JSONResponse(included, headers=_told(response))
    kept = await state.responses.find(response_id, key_id)
    frames = await state.background.events(response_id, key_id, query.after)
    return await _followed(state, frames, http, partial(_told, kept.response))


@router.delete("/{response_id}", response_model=None)
async def delete_response(response_id: str, state: CurrentState, key_id: CurrentKeyId) -> Response:
    """Forget a stored response; one in the background is cancelled first."""
    await state.background.delete(response_id, key_id)
    return JSONResponse(deleted(response_id))


@router.post("/{response_id}/cancel", response_model=None)
async def cancel_response(response_id: str, state: CurrentState, key_id: CurrentKeyId) -> Response:
    """Cancel a response that runs in the background, and return it."""
    response = await state.background.cancel(response_id, key_id)
    return JSONResponse(response, headers=_told(response))


@router.get("/{response_id}/input_items", response_model=None)
async def list_input_items(
    response_id: str,
    state: CurrentState,
    key_id: CurrentKeyId,
    query: Annotated[ItemsQuery, Query()],
) -> Response:
    """List the items that a response's own request brought, in pages."""
    check_included(query.included)
    kept = await state.responses.find(response_id, key_id)
    is_ascending = query.order == "asc"
    return JSONResponse(items_page(kept.input, query.limit, query.after, is_ascending))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, its response to be, and the items that it brought."""

    state: ServerState
    entry: Entry
    request: ChatRequest
    writer: ResponseWriter
    items: list[ItemObject]

    async def keep(self) -> None:
        """Store the response as it ended, unless it isn't to be."""
        response, key_id = self.writer.response, self.entry.origin.key_id
        if response["store"]:
            await self.state.responses.add(response, self.items, key_id)


async def _asked(body: ResponsesBody, state: ServerState, entry: Entry) -> _Asked:
    request, items = await _request(body, state, entry)
    if body.is_stored:
        await state.responses.check_new(request.response_id)
    status: Literal["queued", "in_progress"] = "queued" if body.background else "in_progress"
    response = new_response(body, request.response_id, int(time.time()), status)
    sealer = state.signer if ENCRYPTED in (body.include or ()) else None
    return _Asked(state, entry, request, ResponseWriter(request, response, sealer), items)


async def _request(
    body: ResponsesBody, state: ServerState, entry: Entry
) -> tuple[ChatRequest, list[ItemObject]]:
    """What a body asks for, with the conversation that it goes on from; and the items that are its own."""
    origin = entry.origin
    referred = await state.responses.items(referred_ids(body.input), origin.key_id)
    items = input_items(body.input, origin.request_id, state.signer, referred)
    earlier = await state.responses.history(body.previous_response_id, origin.key_id)
    return response_request(body, origin, [*earlier, *items]), items


async def _whole(asked: _Asked, events: AsyncGenerator[ChatEvent, None]) -> ResponseObject:
    async with aclosing(events):
        async for event in events:
            asked.writer.see(event)
    await asked.keep()
    return asked.writer.response


async def _streamed(
    asked: _Asked, events: AsyncGenerator[ChatEvent, None]
) -> AsyncGenerator[bytes, None]:
    """Yield the stream's events, the last of them once the response is stored."""
    writer = asked.writer
    try:
        async with aclosing(events):
            async for event in events:
                frames = writer.see(event)
                if writer.is_over:
                    await asked.keep()
                yield frames
    except MlxManagerError as error:
        asked.entry.fail(error.code, error.status)
        if writer.is_over or not writer.has_begun:
            raise
        frames = writer.fail(error)
        await asked.keep()
        yield frames


def _last_event(writer: ResponseWriter, error: MlxManagerError) -> bytes:
    """Return the event of an error that ended a stream before its first event, or came when all was said."""
    return writer.error(error) if writer.is_over else writer.fail(error)


async def _in_background(asked: _Asked, http: Request) -> Response:
    """Answer at once with the queued response, or with its stream, which nobody needs to read.

    The audit log's entry stays open until the work ends.
    """
    state, entry = asked.state, asked.entry
    # A model that isn't there is known now, and no response that fails later.
    await state.pool.find(asked.request.model, "chat")
    answer = JSONResponse(asked.writer.response)
    tape = Tape() if asked.request.stream else None
    if tape is not None:
        tape.add(asked.writer.queue())
    events = state.backend.stream(asked.request)

    def close_books() -> None:
        state.audit.close(entry)

    # The work may be over before this answer is sent.
    entry.is_held, entry.status = True, 200
    try:
        await state.background.start(
            Job(asked.writer, events, entry.origin.key_id, close_books, tape), asked.items
        )
    except BaseException:
        entry.is_held, entry.status = False, None
        raise
    if tape is None:
        return answer
    told = partial(_told, asked.writer.response)
    return await _followed(state, tape.after(-1), http, told)


def _told(response: ResponseObject) -> dict[str, str]:
    """Return the header of a response that was worked on in the background, as far as that is known."""
    return adjusted_header(response.get(ADJUSTED) or ())


async def _followed(
    state: ServerState,
    frames: AsyncGenerator[bytes, None],
    http: Request,
    told: Callable[[], Mapping[str, str]],
) -> Response:
    """Stream the events of a response that is worked on by somebody else, or that is over."""
    limit_s = state.time_limits["chat"] + LAST_WORDS_S
    ping = Ping(state.settings.stream_keep_alive_s)
    try:
        first = await begin(http.receive, frames, ping.every_s, b"")
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    to_event = partial(error_event, request_id=http.state.request_id)
    return EventStream(first, frames, (), to_event, limit_s, ping, told)
