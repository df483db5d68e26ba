"""What nobody expected: say where it happened in the log, and that it happened to the client.

Without this the web server logs the exception's text, which may quote the request, and not the request's id.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_manager.log import frames_of

logger = logging.getLogger(__name__)


class FailureMiddleware:
    """Logs type, place and request id of an exception, and answers with `to_response` if there is no answer yet.

    When there is one already it ends in the middle, and the server closes the connection.
    """

    def __init__(self, app: ASGIApp, to_response: Callable[[Request], Response]) -> None:
        self._app = app
        self._to_response = to_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        # Not a coroutine of its own: it is called for every piece of a stream.
        def send_and_see(message: Message) -> Awaitable[None]:
            nonlocal has_started
            has_started = True
            return send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except Exception as error:  # noqa: BLE001 - the last place that could answer it
            request = Request(scope)
            logger.error(
                "request failed: %(error)s request_id=%(request_id)s\n%(stack)s",
                {
                    "error": type(error).__name__,
                    "request_id": request.state.request_id,
                    "stack": frames_of(error),
                },
            )
            if not has_started:
                await self._to_response(request)(scope, receive, send)
