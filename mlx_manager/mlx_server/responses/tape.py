"""The events of one response's stream: written once, read from any of them on, while they come and afterwards."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator

# What ends an event; the JSON in one has no line break.
END = b"\n\n"


class Tape:
    """Events in order; the number of each is its `sequence_number`. Belongs to one event loop."""

    def __init__(self) -> None:
        self._events: list[bytes] = []
        self._is_complete = False
        self._more = asyncio.Event()

    def add(self, frames: bytes) -> None:
        """Add the events in `frames`, of which there may be none."""
        self._events += (event + END for event in frames.split(END) if event)
        self._wake()

    def complete(self) -> None:
        """Say that there will be no more."""
        self._is_complete = True
        self._wake()

    async def after(self, number: int) -> AsyncGenerator[bytes, None]:
        """Yield the events behind that of a number, those that there are in one piece, and end with the tape."""
        at = number + 1
        while True:
            more = self._more
            if at < len(self._events):
                # Its place moves before it is handed on: more may come while the reader is busy with that.
                begin, at = at, len(self._events)
                yield b"".join(self._events[begin:at])
            elif self._is_complete:
                return
            else:
                await more.wait()

    def packed(self, last: bytes) -> bytes:
        """Return all events with the `last` ones that are still to be added, in a tenth of their room."""
        return zlib.compress(b"".join([*self._events, last]))

    def _wake(self) -> None:
        more, self._more = self._more, asyncio.Event()
        more.set()


def unpacked(stored: bytes) -> Tape:
    """Return the tape that was stored."""
    tape = Tape()
    tape.add(zlib.decompress(stored))
    tape.complete()
    return tape
