"""`POST /v1/tokenize` and `POST /v1/detokenize`: decode, call the tokenizer, encode."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from mlx_manager.mlx_server.api.dependencies import CurrentEntry, CurrentState
from mlx_manager.mlx_server.api.streaming import ClientLeft, until_disconnect
from mlx_manager.observability.server_spans import CLIENT_CLOSED_REQUEST
from mlx_manager.wire.openai.tokens import (
    DetokenizeBody,
    TokenizeBody,
    detokenize_request,
    text_object,
    tokenize_request,
    tokens_object,
)

router = APIRouter(prefix="/v1", tags=["Tokens"])


@router.post("/tokenize", response_model=None)
async def tokenize(
    body: TokenizeBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Turn a text, or a conversation with its tools, into the token ids that the model reads."""
    entry.asked(body.model, False)
    request = tokenize_request(body, entry.origin)
    try:
        tokens = await until_disconnect(http.receive, state.tokenizing.tokenize(request))
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return _json(tokens_object(tokens, has_pieces=bool(body.return_token_strs)))


@router.post("/detokenize", response_model=None)
async def detokenize(
    body: DetokenizeBody, state: CurrentState, entry: CurrentEntry, http: Request
) -> Response:
    """Turn token ids into text."""
    entry.asked(body.model, False)
    work = state.tokenizing.detokenize(detokenize_request(body))
    try:
        text = await until_disconnect(http.receive, work)
    except ClientLeft:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return _json(text_object(text))


def _json(answer: dict[str, Any]) -> Response:
    # A million ids take 10 ms; Starlette's own JSON takes ten times as long.
    return Response(msgspec.json.encode(answer), media_type="application/json")
