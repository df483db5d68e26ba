"""Write answers as they come, and notice at once when the client has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_manager.errors import MlxManagerError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


async def until_disconnect(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Await `work`, or cancel it as soon as the client leaves and raise ClientLeft.

    A client that has gone is told by `http.disconnect`, long before a write would fail; the request's body must have
    been read already.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events whose first one has been made, so that its headers tell the truth.

    A client that hasn't taken all of it after `limit_s` is cut off.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        to_event: Callable[[MlxManagerError], bytes],
        limit_s: float,
    ) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._to_event = to_event
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An error of the work that its reader never came to: it is in the trace, and there is nobody to tell.
        with suppress(MlxManagerError):
            async with aclosing(self._rest):
                await self._write_while_read(receive, send)

    async def _write_while_read(self, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                await until_disconnect(receive, self._write(send))
        except ClientLeft:
            logger.debug("client left a stream")
        except TimeoutError:
            # The backend has long met its own limit; this reader doesn't take even that error. Returning before
            # the last byte makes the server close the connection.
            logger.warning("a client did not read its stream within %g s", self._limit_s)

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        try:
            await _send_body(send, self._first)
            async for chunk in self._rest:
                await _send_body(send, chunk)
        except MlxManagerError as error:
            # The headers are out, so the error comes in the stream's own words.
            await _send_body(send, self._to_event(error))
        await send({"type": "http.response.body", "body": b""})


def _send_body(send: Send, chunk: bytes) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": chunk, "more_body": True})


async def first_of(chunks: AsyncGenerator[bytes, None]) -> bytes:
    """Return a stream's first chunk; what goes wrong before it still becomes a proper error answer."""
    try:
        return await anext(chunks)
    except BaseException:
        await chunks.aclose()
        raise
