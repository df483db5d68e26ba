"""Give every request one id, and tell it to the client together with the trace id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.observability.known_secrets import holds_secret
from mlx_manager.observability.paths import route_path
from mlx_manager.wire.dialects import dialect_of

# Not one that looks like a key: ids are recorded everywhere.
ACCEPTED = re.compile(r"(?!.*\bsk-)[A-Za-z0-9._:-]{1,128}", re.IGNORECASE)
REQUEST_ID_HEADER = "X-Request-ID"
TRACE_ID_HEADER = "X-Trace-ID"
# Where the `anthropic` SDK looks for the request's id.
ANTHROPIC_REQUEST_ID_HEADER = "request-id"


class RequestIdMiddleware:
    """Takes a well-formed `X-Request-ID` from the client or mints one; `request.state.request_id` has it.

    `tag` is told the id, and `trace_id` is asked when the response starts, both inside the request's server span.
    """

    def __init__(
        self, app: ASGIApp, trace_id: Callable[[], str | None], tag: Callable[[str], None]
    ) -> None:
        self._app = app
        self._trace_id = trace_id
        self._tag = tag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        request_id = accepted_or_new(asked.get(REQUEST_ID_HEADER))
        is_anthropic = dialect_of(route_path(scope), asked) == "anthropic"
        scope.setdefault("state", {})["request_id"] = request_id
        self._tag(request_id)

        # Not a coroutine of its own: it is called for every piece of a stream.
        def send_with_ids(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                self._add_ids(headers, request_id)
                if is_anthropic:
                    headers[ANTHROPIC_REQUEST_ID_HEADER] = request_id
            return send(message)

        await self._app(scope, receive, send_with_ids)

    def _add_ids(self, headers: MutableHeaders, request_id: str) -> None:
        headers[REQUEST_ID_HEADER] = request_id
        trace_id = self._trace_id()
        if trace_id is not None:
            headers[TRACE_ID_HEADER] = trace_id


def accepted_or_new(offered: str | None) -> str:
    """Return the client's id when it is short and plain enough to stand in headers, logs and rows; else a new one."""
    if offered is not None and ACCEPTED.fullmatch(offered) and not holds_secret(offered):
        return offered
    return uuid.uuid4().hex
