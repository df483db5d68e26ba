"""The engine's loop: one look at the inbox before each step, however busy the rows are."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from mlx_manager.mlx_server.engine.channel import Channel
from mlx_manager.mlx_server.engine.framing import encode
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Pass,
    SamplingParameters,
    Step,
    Submit,
    ToEngine,
    Vitals,
)
from mlx_manager.mlx_server.engine.worker import Stepping, serve
from tests.engine.driving import Driver
from tests.engine.models import WatchedModel

LOOK, STEP = "look", "step"
ENOUGH_STEPS = 200


class NotedChannel(Channel):
    """A channel that notes each look at the inbox."""

    def __init__(self, sock: socket.socket, notes: list[str]) -> None:
        super().__init__(sock)
        self._notes = notes

    def receive(self, wait_s: float) -> list[ToEngine]:
        self._notes.append(LOOK)
        return super().receive(wait_s)


class NotedEngine:
    """An engine that notes its steps and keeps what they say; `after` is called with the number of each, behind it."""

    def __init__(self, engine: Stepping, notes: list[str], after: Callable[[int], None]) -> None:
        self._engine = engine
        self._notes = notes
        self._after = after
        self.steps: list[Step] = []

    @property
    def has_work(self) -> bool:
        return self._engine.has_work

    def handle(self, message: ToEngine) -> None:
        self._engine.handle(message)

    def step(self) -> Step | Pass:
        self._notes.append(STEP)
        step = self._engine.step()
        assert isinstance(step, Step)
        self.steps.append(step)
        assert len(self.steps) < ENOUGH_STEPS, "nobody ends it"
        self._after(len(self.steps))
        return step

    def vitals(self) -> Vitals:
        return self._engine.vitals()

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        yield theirs, ours


def submit(sequence_id: int, prompt: list[int], max_tokens: int) -> bytes:
    return encode(Submit(sequence_id, prompt, max_tokens, [], SamplingParameters()))


def test_each_step_has_one_look_at_the_inbox_before_it_also_while_rows_decode(
    model: WatchedModel, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """What arrives during a step is done before the next one, be it of prompts or of rows."""
    (theirs, ours), notes = sockets, list[str]()

    def others(number: int) -> None:
        if number == 20:
            ours.sendall(submit(2, list(range(100)), 100) + submit(3, [4, 5, 6], 100))
        if number == 40:
            ours.sendall(encode(Cancel(1)))
        if number == 60:
            ours.close()

    ours.sendall(submit(1, [1, 2, 3], 1000))
    engine = NotedEngine(Driver(model).engine, notes, others)
    serve(NotedChannel(theirs, notes), engine)
    assert notes == [LOOK, STEP] * 60 + [LOOK]
    said = dict(enumerate(engine.steps, 1))
    assert all(1 in step.tokens[::2] for number, step in said.items() if 5 < number <= 40)
    assert [number for number, step in said.items() if step.admitted] == [1, 21]
    assert said[21].admitted == [2, 3]
    [number] = [number for number, step in said.items() if step.ended]
    assert number == 41
    assert said[41].ended[0].reason == "cancelled"
