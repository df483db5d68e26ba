"""The engine's end of the channel never waits for a reader, loses nothing, and notices that the reader has gone."""

from __future__ import annotations

import fcntl
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_manager.mlx_server.engine.channel import HELD_S, Channel
from mlx_manager.mlx_server.engine.framing import encode, reports_reader
from mlx_manager.mlx_server.engine.messages import Cancel, FromEngine, Heartbeat, Step, Vitals

FAR_AWAY_S = 60.0
VITALS = Vitals(0, 0, 0, 0, 0)


@pytest.fixture
def peers() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel, and the socket at its other end."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.settimeout(FAR_AWAY_S)
        yield Channel(theirs), ours


def step(number: int) -> Step:
    return Step(number, list(range(1000)))


def read_reports(channel: Channel, ours: socket.socket, count: int) -> list[FromEngine]:
    """Read like an API process that has come back, while the engine goes on looking at its inbox."""
    reader, received = reports_reader(), list[FromEngine]()
    while len(received) < count:
        channel.receive(0.0)
        received.extend(reader.feed(ours.recv(1 << 20)))
    return received


def test_sending_does_not_wait_for_a_reader_and_loses_nothing(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    sent = [step(number) for number in range(2000)]
    size = sum(len(encode(message)) for message in sent)
    assert size > 8 * ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), "it would all fit"
    for message in sent:
        channel.send(message)
    assert read_reports(channel, ours, len(sent)) == sent


def test_what_was_kept_goes_out_while_the_engine_waits_for_commands(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    sent = [step(number) for number in range(500)]
    for message in sent:
        channel.send(message)
    reader, received = reports_reader(), list[FromEngine]()
    ours.setblocking(False)
    while len(received) < len(sent):
        try:
            received.extend(reader.feed(ours.recv(1 << 20)))
        except BlockingIOError:
            assert channel.receive(FAR_AWAY_S) == []  # woken by room for more, not by the clock
    assert received == sent


def test_commands_arrive_together_and_in_order(peers: tuple[Channel, socket.socket]) -> None:
    channel, ours = peers
    ours.sendall(b"".join(encode(Cancel(number)) for number in range(100)))
    assert channel.receive(FAR_AWAY_S) == [Cancel(number) for number in range(100)]


def test_a_command_that_has_half_arrived_comes_with_its_rest(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    frame = encode(Cancel(1))
    ours.sendall(frame[:3])
    assert channel.receive(FAR_AWAY_S) == []
    ours.sendall(frame[3:])
    assert channel.receive(FAR_AWAY_S) == [Cancel(1)]


def test_waiting_ends_by_itself_when_nothing_comes(peers: tuple[Channel, socket.socket]) -> None:
    channel, _ = peers
    assert channel.receive(0.01) == []
    assert not channel.is_closed


def test_the_end_of_the_peer_is_noticed_while_waiting(peers: tuple[Channel, socket.socket]) -> None:
    channel, ours = peers
    ours.sendall(encode(Cancel(1)))
    ours.close()
    assert channel.receive(FAR_AWAY_S) == [Cancel(1)]
    assert channel.is_closed


def test_the_end_of_the_peer_is_noticed_while_sending(peers: tuple[Channel, socket.socket]) -> None:
    channel, ours = peers
    ours.close()
    channel.send(Heartbeat(1, VITALS))
    assert channel.is_closed
    channel.drain(FAR_AWAY_S)  # doesn't wait for somebody who has gone


def test_the_last_words_get_out_before_the_process_ends(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    channel.send(Heartbeat(1, VITALS))
    channel.drain(FAR_AWAY_S)
    assert list(reports_reader().feed(ours.recv(1 << 16))) == [Heartbeat(1, VITALS)]


def test_a_channel_works_whatever_the_number_of_its_file_descriptor() -> None:
    """A busy server hands descriptors above 1,024 to its engines, which `select` can't take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    theirs, ours = socket.socketpair()
    with theirs, ours, socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD, 2000)) as high:
        channel = Channel(high)
        ours.sendall(encode(Cancel(1)))
        assert channel.receive(FAR_AWAY_S) == [Cancel(1)]
        for number in range(300):
            channel.send(step(number))
        started_s = time.monotonic()
        channel.drain(0.01)
        assert time.monotonic() - started_s < FAR_AWAY_S
        assert len(read_reports(channel, ours, 300)) == 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_another_thread_can_wake_it_and_nothing_is_lost_by_that(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    waker = threading.Timer(0.05, channel.wake)
    waker.start()
    assert channel.receive(FAR_AWAY_S) == []
    waker.join()
    began_s = time.monotonic()
    assert channel.receive(0.05) == [], "it was woken once"
    assert time.monotonic() - began_s >= 0.05
    channel.wake()
    ours.sendall(encode(Cancel(7)))
    assert channel.receive(FAR_AWAY_S) == [Cancel(7)]


def test_what_can_wait_goes_out_with_what_can_not(peers: tuple[Channel, socket.socket]) -> None:
    channel, ours = peers
    ours.setblocking(False)
    channel.send(step(1))
    assert ours.recv(1 << 20) == encode(step(1))
    channel.send(step(2), can_wait=True)
    with pytest.raises(BlockingIOError):
        ours.recv(1 << 20)
    channel.send(step(3))
    assert ours.recv(1 << 20) == encode(step(2)) + encode(step(3))


def test_what_can_wait_waits_for_no_longer_than_it_may(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    channel.send(step(1))
    time.sleep(2 * HELD_S)
    channel.send(step(2), can_wait=True)
    assert read_reports(channel, ours, 2) == [step(1), step(2)]


def test_what_waits_goes_out_before_a_message_is_handled(
    peers: tuple[Channel, socket.socket],
) -> None:
    channel, ours = peers
    channel.send(step(1))
    channel.send(step(2), can_wait=True)
    ours.sendall(encode(Cancel(7)))
    assert channel.receive(FAR_AWAY_S) == [Cancel(7)]
    assert list(reports_reader().feed(ours.recv(1 << 20))) == [step(1), step(2)]
