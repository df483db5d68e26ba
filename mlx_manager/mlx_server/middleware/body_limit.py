"""Refuse request bodies that are too large, in the caller's dialect.

FastAPI's own limit answers in plain text, outside everything that knows the request's id.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TOO_LARGE = 413


class BodyLimitMiddleware:
    """Raises in the route that reads the body: at once when its declared length is too large, else on the way."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        seen = int(declared) if declared.isdecimal() and int(declared) > self._max_bytes else 0

        async def limited_receive() -> Message:
            nonlocal seen
            self._check(seen)
            message = await receive()
            seen += len(message.get("body", b""))
            self._check(seen)
            return message

        await self._app(scope, limited_receive, send)

    def _check(self, seen: int) -> None:
        if seen > self._max_bytes:
            raise HTTPException(
                CONTENT_TOO_LARGE,
                f"The body is larger than {self._max_bytes} bytes. Send less, or have the administrator raise "
                "MLX_SERVER_MAX_BODY_BYTES.",
            )
