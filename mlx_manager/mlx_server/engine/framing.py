"""Messages on a byte stream: four bytes of length (big endian), then msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from mlx_manager.mlx_server.engine.messages import FromEngine, ToEngine

LENGTH_BYTES = 4
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToEngine | FromEngine) -> bytes:
    """Return one framed message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class FrameReader(Generic[T]):
    """Cuts what arrives, in whatever pieces, into messages of the given type."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """Take `data` and yield every message that is now complete."""
        self._buffer += data
        position, size = 0, len(self._buffer)
        while size - position >= LENGTH_BYTES:
            start = position + LENGTH_BYTES
            end = start + int.from_bytes(self._buffer[position:start], "big")
            if end > size:
                break
            yield self._decoder.decode(self._buffer[start:end])
            position = end
        del self._buffer[:position]


def commands_reader() -> FrameReader[ToEngine]:
    """Return the engine process's side."""
    return FrameReader(msgspec.msgpack.Decoder(ToEngine))


def reports_reader() -> FrameReader[FromEngine]:
    """Return the API process's side."""
    return FrameReader(msgspec.msgpack.Decoder(FromEngine))
