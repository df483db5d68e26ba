"""Messages survive the byte stream, however it is cut."""

from __future__ import annotations

import pytest

from mlx_manager.mlx_server.engine.framing import commands_reader, encode, reports_reader
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Ended,
    FromEngine,
    Heartbeat,
    LoadFailed,
    Ready,
    SamplingParameters,
    Stamps,
    Step,
    StepTimes,
    Submit,
    ToEngine,
    Vitals,
)

VITALS = Vitals(1, 2, None, 3, 2**40, 5, [StepTimes(4, 2**50)])
STAMPS = Stamps(1, 2, 3, 2**62, 5, 6, "diverged", 7, 8, 9, 10)
COMMANDS: list[ToEngine] = [
    Submit(1, [0, 151_935, 7], 5, [2, 3], SamplingParameters(0.7, 0.9, 40, 0.05, -(2**63))),
    Cancel(2**40),
    Submit(
        3,
        [1],
        5,
        [],
        SamplingParameters(1.0, logit_bias=((5, -100.0), (7, 2.5)), min_tokens=3),
        top_logprobs=20,
    ),
    Submit(2, list(range(300)), 1, [], SamplingParameters(seed=2**63 - 1)),
    Cancel(3),
]
REPORTS: list[FromEngine] = [
    Ready(10**12, "bfloat16", "gpu", True),
    Heartbeat(1, VITALS),
    Step(2, [1, 10, 2, 20], [2], [Ended(1, "stop", STAMPS)], [2]),
    Step(3, [], [], [Ended(4, "failed", Stamps(1), "ValueError")]),
    LoadFailed("kein Platz: 12 GiB fehlen – 模型"),
]


@pytest.mark.parametrize("message", COMMANDS)
def test_a_command_arrives_as_it_was_sent(message: ToEngine) -> None:
    assert list(commands_reader().feed(encode(message))) == [message]


@pytest.mark.parametrize("message", REPORTS)
def test_a_report_arrives_as_it_was_sent(message: FromEngine) -> None:
    assert list(reports_reader().feed(encode(message))) == [message]


def test_any_cut_of_the_stream_yields_the_same_messages() -> None:
    stream = b"".join(map(encode, REPORTS))
    for cut in range(len(stream) + 1):
        reader = reports_reader()
        received = [*reader.feed(stream[:cut]), *reader.feed(stream[cut:])]
        assert received == REPORTS, f"cut at {cut}"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_pieces_of_any_size_yield_the_same_messages(size: int) -> None:
    stream, reader = b"".join(map(encode, COMMANDS)), commands_reader()
    received = [
        message
        for at in range(0, len(stream), size)
        for message in reader.feed(stream[at : at + size])
    ]
    assert received == COMMANDS


def test_a_message_is_there_as_soon_as_its_last_byte_is() -> None:
    frame, reader = encode(Cancel(1)), commands_reader()
    assert list(reader.feed(frame[:-1])) == []
    assert list(reader.feed(frame[-1:])) == [Cancel(1)]
