"""What FastAPI's own server span needs from us: paths left out, and a client that leaves is no failure."""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping
from typing import Any

import logfire
from opentelemetry import trace
from opentelemetry.trace import Span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.observability.attributes import CANCELLED
from mlx_manager.observability.paths import route_path

# What watches, live and by the second.
EXCLUDED_PATHS = frozenset(
    {
        *("/health", "/api/health", "/api/events", "/api/requests", "/metrics", "/"),
        *("/admin/models", "/admin/requests"),
    }
)
# What looks at traces or brings some must not make more of them: the pages, too.
EXCLUDED_PREFIXES = (
    *("/static/", "/api/traces/", "/otlp/"),
    *("/traces/", "/requests/", "/dashboard/", "/settings/"),
)
# What a page reads; who changes it leaves a trace.
EXCLUDED_READS = frozenset({"/api/settings/timeouts"})
# nginx's number for a request whose client closed the connection before there was an answer.
CLIENT_CLOSED_REQUEST = 499


def is_excluded(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is too frequent and too dull for a trace."""
    path = route_path(scope)
    if path in EXCLUDED_READS:
        return scope["method"] in ("GET", "HEAD")
    return path in EXCLUDED_PATHS or f"{path}/".startswith(EXCLUDED_PREFIXES)


class ServerSpanMiddleware:
    """Keeps excluded requests silent to the bottom, and closes the answer of a client that left.

    FastAPI ends the server span at the last byte; an answer that has none, because nobody is there to take it, it
    calls an ERROR. So the last byte is sent anyway (the server drops it) and the span says `mlx.cancelled` instead.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif is_excluded(scope):
            # Else its queries and calls would each begin a trace of their own.
            with logfire.suppress_instrumentation():
                await self._app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(receive, send, trace.get_current_span())
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            await exchange.close()


class _Exchange:
    """One request's two channels; `send` is called for each streamed piece and adds no coroutine of its own."""

    def __init__(self, receive: Receive, send: Send, span: Span) -> None:
        self._receive = receive
        self._send = send
        self._span = span
        self._has_started = False
        self._is_abandoned = False

    async def receive(self) -> Message:
        message = await self._receive()
        # After the last byte the span has ended, and a disconnect is how every connection ends.
        if message["type"] == "http.disconnect" and self._span.is_recording():
            self._is_abandoned = True
            self._span.set_attribute(CANCELLED, True)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        self._has_started = True
        return self._send(message)

    async def close(self) -> None:
        if not self._is_abandoned or not self._span.is_recording():
            return
        if not self._has_started:
            await self._send(
                {"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []}
            )
        await self._send({"type": "http.response.body", "body": b""})
