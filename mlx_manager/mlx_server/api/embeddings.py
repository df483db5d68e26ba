"""`POST /v1/embeddings`: decode, call the backend, encode."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from mlx_manager.chat.embeddings import Embeddings
from mlx_manager.mlx_server.api.dependencies import CurrentEntry, CurrentState
from mlx_manager.mlx_server.api.streaming import ClientLeft, until_disconnect
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire.openai.embeddings import (
    EmbeddingsBody,
    EncodingFormat,
    embedding_request,
    embeddings_object,
)

# Numbers up to which an answer is written on the event loop: a millisecond or two.
INLINE_NUMBERS = 20_000

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.post("/embeddings", response_model=None)
async def create_embeddings(
    body: EmbeddingsBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Turn each input into a vector."""
    entry.asked(body.model, False)
    request = embedding_request(body, entry.origin)
    try:
        answer = await until_disconnect(http.receive, state.embeddings.embed(request))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(await _written(answer, body.encoding_format), media_type="application/json")


async def _written(answer: Embeddings, encoding_format: EncodingFormat | None) -> bytes:
    if len(answer.vectors) * answer.dimensions < INLINE_NUMBERS:
        return embeddings_object(answer, encoding_format)
    return await asyncio.to_thread(embeddings_object, answer, encoding_format)
