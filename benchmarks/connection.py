"""As much of HTTP/1.1 as it takes to post a body and keep what comes back, with the time of each piece."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import cast

HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_KEEPS_OPEN = re.compile(rb"HTTP/1\.1 (?!.*\r\nconnection: *close)", re.IGNORECASE | re.DOTALL)


@dataclass(slots=True)
class Reply:
    """The raw bytes of one answer. `marks` says when how many of them were there (`time.perf_counter`)."""

    sent_s: float
    data: bytearray = field(default_factory=bytearray)
    marks: list[tuple[int, float]] = field(default_factory=list)
    body_start: int | None = None
    body_bytes: int | None = None
    is_chunked: bool = False
    is_whole: bool = False

    @property
    def head(self) -> bytes:
        """Status line and headers; empty when they did not all arrive."""
        return bytes(self.data[: self.body_start]) if self.body_start is not None else b""

    def take(self, data: bytes) -> bool:
        """Keep the next piece and return whether the answer is complete."""
        self.data += data
        self.marks.append((len(self.data), time.perf_counter()))
        if self.body_start is None:
            self._look_for_head()
        self.is_whole = self.body_start is not None and self._is_complete(self.body_start)
        return self.is_whole

    def end(self) -> None:
        """The server closed the connection, which is how an answer without a length ends."""
        self.is_whole = self.body_start is not None and not (self.is_chunked or self.body_bytes)

    def _look_for_head(self) -> None:
        at = self.data.find(HEAD_END)
        if at < 0:
            return
        self.body_start = at + len(HEAD_END)
        self.is_chunked = _CHUNKED.search(self.head) is not None
        length = _LENGTH.search(self.head)
        self.body_bytes = int(length.group(1)) if length else None

    def _is_complete(self, body_start: int) -> bool:
        if self.is_chunked:
            # JSON escapes line breaks, so no text inside can look like this.
            return self.data.endswith(LAST_CHUNK)
        return self.body_bytes is not None and len(self.data) - body_start >= self.body_bytes


class Connection:
    """One client's connection; opened when it is needed, kept open when the server does."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._open: _Exchange | None = None

    async def ask(self, request: bytes) -> Reply:
        """Send `request` and return what came back, whole or not."""
        started_s = time.perf_counter()
        exchange = self._open
        if exchange is None or exchange.is_closed:
            try:
                exchange = await self._connect()
            except OSError:
                return Reply(started_s)
        reply = await exchange.ask(request, Reply(started_s))
        if reply.is_whole and _KEEPS_OPEN.match(reply.head):
            self._open = exchange
        else:
            self._open = None
            exchange.close()
        return reply

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._open.close()

    async def _connect(self) -> _Exchange:
        _, exchange = await asyncio.get_running_loop().create_connection(
            _Exchange, self._host, self._port
        )
        return exchange


class _Exchange(asyncio.Protocol):
    """A connected socket with at most one answer under way."""

    def __init__(self) -> None:
        self.is_closed = False
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, reply: Reply) -> Reply:
        assert self._transport is not None
        self._reply, self._done = reply, asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        self._reply = None
        return reply

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reply is not None and self._reply.take(data):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._reply is not None:
            if not self._reply.is_whole:
                self._reply.end()
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
