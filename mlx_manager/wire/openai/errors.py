"""Errors in OpenAI's shape: `{"error": {message, type, param, code}}`, with our request id beside them."""

from __future__ import annotations

from typing import Any

import msgspec

from mlx_manager.errors import MlxManagerError
from mlx_manager.wire import sse


def error_type(status: int) -> str:
    """Return the error type that OpenAI gives to a status."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(
    message: str, *, status: int, code: str | None, param: str | None, request_id: str
) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    error = {"message": message, "type": error_type(status), "param": param, "code": code}
    return {"error": {**error, "request_id": request_id}}


def error_event(error: MlxManagerError, request_id: str) -> bytes:
    """Return an error that ends a stream whose headers are already sent."""
    body = error_body(
        error.message,
        status=error.status,
        code=error.code,
        param=error.param,
        request_id=request_id,
    )
    return sse.data(msgspec.json.encode(body))
