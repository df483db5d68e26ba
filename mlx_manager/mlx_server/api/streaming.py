"""Write answers as they come, and notice at once when the client has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_manager.chat.events import Answer, ChatEvent, Timeline, collect
from mlx_manager.errors import MlxManagerError
from mlx_manager.wire import sse

logger = logging.getLogger(__name__)
T = TypeVar("T")

ADJUSTED_HEADER = "X-Adjusted-Parameters"
# Time to read the error of a backend that has met its limit.
LAST_WORDS_S = 5.0


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


async def until_disconnect(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Await `work`, or cancel it as soon as the client leaves and raise ClientLeft.

    A client that has gone is told by `http.disconnect`, long before a write would fail; the request's body must have
    been read already. The work has a task of its own because each of its wake-ups would otherwise pass through every
    middleware above: 3 µs a token. The caller's task watches meanwhile, and is interrupted when the work is done.
    """
    watching = asyncio.current_task()
    assert watching is not None
    working = asyncio.create_task(work)
    interrupt = _Interrupt(watching)
    working.add_done_callback(interrupt)
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not working.done():
            raise ClientLeft
    except asyncio.CancelledError:
        if not interrupt.take_back():
            raise
    finally:
        interrupt.disarm()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    return working.result()


class _Interrupt:
    """Cancels a task, and knows whether a cancellation was its own."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self._is_armed = True
        self._is_sent = False

    def __call__(self, _done: object) -> None:
        if self._is_armed:
            self._is_sent = True
            self._task.cancel()

    def disarm(self) -> None:
        """Do nothing any more; a callback that is due can't be taken back from the event loop."""
        self._is_armed = False

    def take_back(self) -> bool:
        """Undo the cancellation; False when it was somebody else's, or theirs as well."""
        return self._is_sent and self._task.uncancel() == 0


@dataclass(frozen=True, slots=True)
class Ping:
    """What is sent when a stream has said nothing for `every_s` seconds: a long prompt is read, thoughts are hidden."""

    every_s: float
    event: bytes = sse.KEEP_ALIVE


async def begin(
    receive: Receive,
    chunks: AsyncGenerator[bytes, None],
    patience_s: float,
    default: bytes | None = None,
) -> asyncio.Task[bytes]:
    """Begin a stream: return the task that makes its first chunk when it is done, or after `patience_s`.

    What goes wrong by then is raised, and still becomes a proper error answer. A stream that may be empty has a
    `default`. Raises ClientLeft.
    """
    first = asyncio.create_task(_first_of(chunks, default))
    try:
        await until_disconnect(receive, asyncio.wait({first}, timeout=patience_s))
        if first.done():
            first.result()
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await chunks.aclose()
        raise
    return first


async def _first_of(chunks: AsyncGenerator[bytes, None], default: bytes | None) -> bytes:
    return await (anext(chunks) if default is None else anext(chunks, default))


class EventStream(Response):
    """A stream of server-sent events that has been begun, so that its headers tell the truth as far as it is known.

    `end` is what the last piece of a complete stream ends with, () when that is nothing fixed. A client that hasn't
    taken all of it after `limit_s` is cut off. What there is `told` goes into its headers when it is known by then, and
    else into a comment before the first chunk that comes when it is.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Task[bytes],
        rest: AsyncGenerator[bytes, None],
        end: bytes | tuple[bytes, ...],
        to_event: Callable[[MlxManagerError], bytes],
        limit_s: float,
        ping: Ping,
        told: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        known = told()
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **known},
        )
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._end = end
        self._to_event = to_event
        self._limit_s = limit_s
        self._ping = ping
        self._told = told
        self._has_told = bool(known)
        self._pieces = 0
        self._is_sending = False

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
            logger.warning(
                "client cut off: it did not read its stream within %(limit_s)g s",
                {"limit_s": self._limit_s},
            )

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        if not self._first.done():
            # Some proxies hold the headers back until something follows them.
            await _send_body(send, sse.KEEP_ALIVE)
        pinging = asyncio.create_task(self._keep_alive(send))
        try:
            await self._write_pieces(send)
        except MlxManagerError as error:
            # The headers are out, so the error comes in the stream's own words.
            self._is_sending = True
            await _send_body(send, self._to_event(error), is_last=True)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    async def _write_pieces(self, send: Send) -> None:
        first = await self._first
        self._is_sending = True
        await _send_body(send, self._told_late() + first)
        self._pieces += 1
        self._is_sending = False
        async for piece in self._rest:
            chunk = self._told_late() + piece
            self._pieces += 1
            self._is_sending = True
            if chunk.endswith(self._end):
                # The end of the answer and the end of the body in one write.
                await _send_body(send, chunk, is_last=True)
                return
            await _send_body(send, chunk)
            self._is_sending = False
        self._is_sending = True
        await _send_body(send, b"", is_last=True)

    def _told_late(self) -> bytes:
        """Return comments that tell what wasn't known yet, once; nothing while it isn't."""
        late = {} if self._has_told else self._told()
        self._has_told = self._has_told or bool(late)
        return b"".join(sse.comment(f"{name}: {text}") for name, text in late.items())

    async def _keep_alive(self, send: Send) -> None:
        """Send a ping whenever no piece has come for a while; never while one is being sent, which may be the last."""
        while True:
            pieces = self._pieces
            await asyncio.sleep(self._ping.every_s)
            if self._pieces == pieces and not self._is_sending:
                # A client may expect its stream to begin with another event than a ping.
                await _send_body(send, self._ping.event if pieces else sse.KEEP_ALIVE)


def _send_body(send: Send, chunk: bytes, *, is_last: bool = False) -> Awaitable[None]:
    return send({"type": "http.response.body", "body": chunk, "more_body": not is_last})


def adjusted_headers(timeline: Timeline) -> dict[str, str]:
    """Return the header that tells which parameters another value was taken for; none when there are none.

    It is known when the engine has taken the request: with the first event of a stream, but for those in the
    background.
    """
    return adjusted_header(map(str, timeline.adjusted))


def adjusted_header(told: Iterable[str]) -> dict[str, str]:
    """Return the header that tells these adjustments; none when there are none."""
    text = ", ".join(told)
    return {ADJUSTED_HEADER: text} if text else {}


async def collected(events: AsyncGenerator[ChatEvent, None]) -> Answer:
    """Return a whole answer, and leave nothing running when nobody waits for it any more."""
    async with aclosing(events):
        return await collect(events)
