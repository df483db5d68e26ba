"""One log line per request, without query strings: they may hold keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.observability.captions import without_long_segments
from mlx_manager.observability.redaction import CUT
from mlx_manager.observability.server_spans import is_excluded

logger = logging.getLogger("mlx_manager.access")

# Who was told so tried something, on whatever path.
REFUSALS = (401, 403)


class AccessLogMiddleware:
    """Logs method, path, status, seconds and request id when the last byte is out, or the client has left.

    Of paths that are asked for all the time only those who are refused.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 500

        # Not a coroutine of its own: it is called for every piece of a stream.
        def send_and_see(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            if status in REFUSALS or not is_excluded(scope):
                _log(scope, status, time.perf_counter() - start_s)


def _log(scope: Scope, status: int, duration_s: float) -> None:
    logger.info(
        "%(method)s %(path)s %(status)d %(duration_s).3f s",
        {
            "method": scope["method"],
            "path": _shown_path(scope, status),
            "status": status,
            "duration_s": duration_s,
        },
        extra={"event": "request answered", "request_id": scope["state"]["request_id"]},
    )


def _shown_path(scope: Scope, status: int) -> str:
    """The path, as spans have it: what was refused, or met no route, may hold anything."""
    template: str | None = getattr(scope.get("route"), "path_format", None)
    if template is not None and status >= 400:
        return template
    path = scope["path"] if template else without_long_segments(scope["path"])
    # Encoded again: a decoded path can hold line breaks and escape sequences.
    return quote(path).replace(quote(CUT), CUT)


class WithoutQuery(logging.Filter):
    """Cuts query strings out of uvicorn's own access lines, for those who start uvicorn themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, its path shortened."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, *rest = record.args
            record.args = (client, method, str(path).split("?")[0], *rest)
        return True


def strip_queries_from_uvicorn() -> None:
    """Keep query strings out of uvicorn's access log in this process."""
    access = logging.getLogger("uvicorn.access")
    if not any(isinstance(known, WithoutQuery) for known in access.filters):
        access.addFilter(WithoutQuery())
