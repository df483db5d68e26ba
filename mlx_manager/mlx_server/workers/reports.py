"""What an engine process says, taken from its socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mlx_manager.mlx_server.engine.framing import reports_reader
from mlx_manager.mlx_server.engine.messages import FromEngine


class Reports(asyncio.Protocol):
    """Cuts the socket's bytes into messages and hands them on, in the event loop."""

    def __init__(self, receive: Callable[[FromEngine], None], closed: Callable[[], None]) -> None:
        self._reader = reports_reader()
        self._receive = receive
        self._closed = closed

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        for message in self._reader.feed(data):
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._closed()
