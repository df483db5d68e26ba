"""Errors in Anthropic's shape: `{"type": "error", "error": {type, message}, "request_id"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mlx_manager.errors import (
    MlxManagerError,
    ModelUnavailable,
    Overloaded,
    ShuttingDown,
    ThreadsUnsupported,
)
from mlx_manager.wire import sse

# All are worth another try a little later, which is what Anthropic's own status 529 says with this type.
OVERLOADED_CODES = frozenset({Overloaded.code, ShuttingDown.code, ModelUnavailable.code})
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int, code: str) -> str:
    """Return the error type that Anthropic gives to a status, and to our `code` where the status leaves it open."""
    if code in OVERLOADED_CODES:
        return "overloaded_error"
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def error_body(message: str, *, status: int, code: str, request_id: str) -> dict[str, Any]:
    """Return an error as Anthropic's clients read it; one that their tool runner answers says so in its `details`."""
    error: dict[str, Any] = {"type": error_type(status, code), "message": message}
    if code == ThreadsUnsupported.code:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": request_id}


def error_event(error: MlxManagerError, request_id: str) -> bytes:
    """Return an error that ends a stream whose headers are already sent."""
    body = error_body(error.message, status=error.status, code=error.code, request_id=request_id)
    return sse.event(b"error", msgspec.json.encode(body))
