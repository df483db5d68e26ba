"""In which order requests are given to a fresh engine process, and which of them no more."""

from __future__ import annotations

import pytest

from mlx_manager.errors import (
    EngineFailed,
    GenerationFailed,
    MlxManagerError,
    RequestBreaksBatch,
    RequestEndsEngine,
    ShuttingDown,
)
from mlx_manager.mlx_server.engine.messages import SamplingParameters, Submit
from mlx_manager.mlx_server.workers.recovery import Recovery
from mlx_manager.mlx_server.workers.resume import MOST_RESUMPTIONS, Request
from mlx_manager.mlx_server.workers.stream import TokenStream
from mlx_manager.mlx_server.workers.watch import NoWatch

HOW = "was killed by signal 6"


class Process:
    """A successor that computes nothing; `given` are the requests that it was given."""

    def __init__(self) -> None:
        self.given: list[TokenStream] = []
        self.work: list[Submit] = []

    def resume(self, request: Request) -> None:
        assert isinstance(request, TokenStream)
        self.given.append(request)
        self.work.append(request.resume(100 + len(self.given), lambda _request: None))


def stream(number: int) -> TokenStream:
    submit = Submit(number, [number], 50, [], SamplingParameters())
    return TokenStream(submit, lambda _request: None)


def streams(count: int) -> list[TokenStream]:
    return [stream(number) for number in range(count)]


def recovery(most_attempts: int = 2) -> Recovery:
    return Recovery("test/model", most_attempts, NoWatch())


def handed_on(recovery: Recovery) -> Process:
    process = Process()
    recovery.go_on(process)
    return process


async def error_of(request: TokenStream) -> Exception:
    with pytest.raises(MlxManagerError) as failed:
        await anext(aiter(request))
    return failed.value


async def test_the_first_time_all_are_given_to_the_next_process_with_what_they_have() -> None:
    recovered, lost = recovery(), streams(3)
    lost[1].feed(7, 1)
    lost[1].feed(8, 2)
    recovered.lose(list(lost), HOW)
    assert recovered.waiting == 3
    process = handed_on(recovered)
    assert process.given == lost
    assert [work.made_token_ids for work in process.work] == [[], [7, 8], []]
    assert [work.max_tokens for work in process.work] == [50] * 3
    assert recovered.waiting == 0


async def test_the_second_time_each_waits_until_the_one_before_has_gone_on() -> None:
    recovered, lost = recovery(), streams(3)
    recovered.lose(list(lost), HOW)
    handed_on(recovered)
    recovered.lose(list(lost), HOW)
    process = handed_on(recovered)
    assert process.given == lost[:1]
    lost[0].feed(7, 1)
    assert process.given == lost[:2]
    lost[1].feed(7, 1)
    lost[2].feed(7, 1)
    assert process.given == lost
    recovered.lose(list(lost), HOW)
    assert handed_on(recovered).given == lost, "all have gone on: it is none of them"


async def test_who_ends_its_process_again_at_the_same_place_is_given_up_and_nobody_else() -> None:
    recovered, lost = recovery(), streams(4)
    guilty = lost[1]
    recovered.lose(list(lost), HOW)
    handed_on(recovered)
    recovered.lose(list(lost), HOW)
    process = handed_on(recovered)
    lost[0].feed(7, 1)
    assert process.given == lost[:2]
    recovered.lose([lost[0], guilty], HOW)
    error = await error_of(guilty)
    assert isinstance(error, RequestEndsEngine)
    assert "each of the 3 times" in str(error)
    process = handed_on(recovered)
    for _ in range(3):
        process.given[-1].feed(8, 2)
    assert {one.work.sequence_id for one in process.given} == {0, 2, 3}


async def test_the_count_begins_anew_with_each_token_but_not_for_ever() -> None:
    recovered, request = recovery(), stream(1)
    for token in range(MOST_RESUMPTIONS):
        recovered.lose([request], HOW)
        handed_on(recovered)
        request.feed(token, token)
    assert not request.is_over
    recovered.lose([request], HOW)
    assert await anext(aiter(request)) == list(range(MOST_RESUMPTIONS))
    assert isinstance(await error_of(request), RequestEndsEngine)


async def test_who_leaves_while_no_process_has_it_is_forgotten() -> None:
    recovered, lost = recovery(), streams(2)
    recovered.lose(list(lost), HOW)
    await lost[0].close_and_wait()
    assert recovered.waiting == 1
    assert handed_on(recovered).given == lost[1:]


async def test_who_had_left_before_is_not_given_on() -> None:
    recovered, request = recovery(), stream(1)
    request.close()
    recovered.lose([request], HOW)
    assert recovered.waiting == 0
    await request.close_and_wait()
    assert request.resumptions == []


async def test_an_error_for_all_who_wait_is_the_one_that_they_meet() -> None:
    recovered, request = recovery(), stream(1)
    recovered.lose([request], HOW)
    recovered.end(ShuttingDown("The server is shutting down."))
    assert isinstance(await error_of(request), ShuttingDown)


async def test_without_attempts_all_fail_at_once() -> None:
    recovered, request = recovery(0), stream(1)
    recovered.lose([request], HOW)
    assert isinstance(await error_of(request), EngineFailed)
    assert recovered.waiting == 0


BROKEN = "lost its batch to RuntimeError"


async def test_those_of_a_lost_batch_go_on_in_the_same_process() -> None:
    recovered, lost, process = recovery(), streams(2), Process()
    lost[1].feed(7, 1)
    recovered.lose_batch(list(lost), BROKEN, process)
    assert process.given == lost
    assert [(work.made_token_ids, work.attempts) for work in process.work] == [([], 1), ([7], 1)]
    lost[1].feed(8, 2)
    recovered.lose_batch(list(lost), BROKEN, process)
    assert [work.attempts for work in process.work[2:]] == [2, 1], "one had gone on"


async def test_one_whose_batch_is_lost_each_time_is_given_up() -> None:
    recovered, request, process = recovery(), stream(1), Process()
    for _ in range(3):
        assert not request.is_over
        recovered.lose_batch([request], BROKEN, process)
    assert len(process.given) == 2
    error = await error_of(request)
    assert isinstance(error, RequestBreaksBatch)
    assert "each of the 3 times" in str(error)


async def test_nobody_waits_for_one_that_was_given_up_with_its_batch() -> None:
    recovered, lost = recovery(), streams(2)
    recovered.lose(list(lost), HOW)
    handed_on(recovered)
    recovered.lose(list(lost), HOW)
    process = handed_on(recovered)
    assert process.given == lost[:1]
    recovered.lose_batch([lost[0]], BROKEN, process)
    assert isinstance(await error_of(lost[0]), RequestBreaksBatch)
    assert process.given == lost


async def test_without_attempts_all_of_a_lost_batch_fail() -> None:
    recovered, request, process = recovery(0), stream(1), Process()
    recovered.lose_batch([request], BROKEN, process)
    assert isinstance(await error_of(request), GenerationFailed)
    assert process.given == []
