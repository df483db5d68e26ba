"""Server-sent events, as bytes."""

from __future__ import annotations

DONE = b"data: [DONE]\n\n"
# No event: whoever reads server-sent events passes over it.
KEEP_ALIVE = b": keep-alive\n\n"


def data(payload: bytes) -> bytes:
    """Return one event that carries `payload`, which must be a single line."""
    return b"data: " + payload + b"\n\n"


def event(name: bytes, payload: bytes) -> bytes:
    """Return one event that has a name beside its `payload`; both must be a single line."""
    return b"event: " + name + b"\n" + data(payload)


def comment(text: str) -> bytes:
    """Return what is passed over by clients and seen by people: `text`, which must be a single line."""
    return b": " + text.encode() + b"\n\n"
