"""A response's stream is read whole, however slow its reader is."""

from __future__ import annotations

from mlx_manager.mlx_server.responses.tape import Tape


async def test_what_comes_while_a_reader_is_busy_is_read_next() -> None:
    tape = Tape()
    tape.add(b"0\n\n1\n\n")
    reader = tape.after(-1)
    assert await anext(reader) == b"0\n\n1\n\n"
    tape.add(b"2\n\n")
    tape.complete()
    assert [piece async for piece in reader] == [b"2\n\n"]
