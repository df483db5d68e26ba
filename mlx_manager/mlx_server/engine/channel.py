"""The engine process's end of the channel. Never waits for a reader: what doesn't fit is kept and sent later."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time

from mlx_manager.mlx_server.engine.framing import commands_reader, encode
from mlx_manager.mlx_server.engine.messages import FromEngine, ToEngine

READ_BYTES = 1 << 18
# What can wait is sent this long after what was sent last: readers are woken no more often than that anyway, and each
# wake-up of their process costs it, and the engine, with which it shares cores, a tenth of a small model's step.
HELD_S = 0.016


class Channel:
    """Framed messages over a connected stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = commands_reader()
        self._unsent = bytearray()
        self._is_held = False
        self._sent_s = 0.0
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._waker, False)
        self.is_closed = False

    def send(self, message: FromEngine, *, can_wait: bool = False) -> None:
        """Send, or keep for the next `send` or `receive` when the reader is behind.

        What can wait may stay here until the next `send`, which has to be soon, or until something arrives.
        """
        self._unsent += encode(message)
        self._is_held = can_wait and time.monotonic() - self._sent_s < HELD_S
        if not self._is_held:
            self._flush()

    def receive(self, wait_s: float) -> list[ToEngine]:
        """Return what has arrived, waiting up to `wait_s` for the first or for `wake`.

        `is_closed` says when the peer has gone.
        """
        wanted = select.POLLIN | (select.POLLOUT if self._unsent and not self._is_held else 0)
        events = self._wait(wanted, wait_s)
        if events:
            self._flush()
        return self._read() if events & ~select.POLLOUT else []

    def wake(self) -> None:
        """Have `receive` return: the only method for other threads."""
        # A full pipe wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"\0")

    def drain(self, wait_s: float) -> None:
        """Try for `wait_s` to get the last messages out before the process ends."""
        if self._unsent and not self.is_closed:
            self._wait(select.POLLOUT, wait_s)
            self._flush()

    def _wait(self, wanted: int, wait_s: float) -> int:
        """Wait for one of the events; return those that are there, the peer's end among them."""
        # Not `select.select`: it takes no descriptor above 1,023, and the number is the one it had in a busy server.
        poll = select.poll()
        poll.register(self._sock, wanted)
        poll.register(self._woken, select.POLLIN)
        events = dict(poll.poll(math.ceil(wait_s * 1000)))
        if self._woken in events:
            os.read(self._woken, READ_BYTES)
        return events.get(self._sock.fileno(), 0)

    def _read(self) -> list[ToEngine]:
        messages: list[ToEngine] = []
        while True:
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                return messages
            except ConnectionError:
                data = b""
            if not data:
                self.is_closed = True
                return messages
            messages.extend(self._reader.feed(data))

    def _flush(self) -> None:
        self._is_held, self._sent_s = False, time.monotonic()
        try:
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except ConnectionError:
            self.is_closed = True
