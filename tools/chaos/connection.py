"""One connection to the server, as plain as can be: a soak must be held up by the server and not by its client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

TIMEOUT_S = 180.0
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that has come to its end."""

    status: int
    body: bytes


class Connection:
    """Asks one request after another, over a connection that is opened when there is none."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, path: str, body: bytes, request_id: str, patience_s: float = TIMEOUT_S
    ) -> Reply | None:
        """Send a request whole and return its reply, or leave after `patience_s` and return None.

        Raises OSError and IncompleteReadError when the server closes the connection before the end.
        """
        reader, writer = self._streams = self._streams or await self._open()
        # All of it is in the kernel when this returns: also what is left at once has been sent.
        writer.write(_head(path, len(body), request_id) + body)
        await writer.drain()
        try:
            return await asyncio.wait_for(_reply(reader), patience_s)
        except TimeoutError:
            self.close()
            return None

    def close(self) -> None:
        """Leave, whatever is still to come."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port)


def _head(path: str, length: int, request_id: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\n"
        f"X-Request-ID: {request_id}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def _reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(HEAD_END)).lower()
    status = int(head.split(b" ", 2)[1])
    if b"\r\ntransfer-encoding: chunked" in head:
        return Reply(status, await _chunks(reader))
    length = head.split(b"\r\ncontent-length: ", 1)[1].split(b"\r\n", 1)[0]
    return Reply(status, await reader.readexactly(int(length)))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body
