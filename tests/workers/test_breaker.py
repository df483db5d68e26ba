"""When a model is left alone and when it is tried again, by a clock that the test winds."""

from __future__ import annotations

import pytest

from mlx_manager.errors import ModelUnavailable
from mlx_manager.mlx_server.workers.breaker import (
    FRUITLESS_LIVES,
    LONGEST_PAUSE_S,
    TRIAL_S,
    Breaker,
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("test/model", 30.0, clock)


def end(breaker: Breaker, times: int = FRUITLESS_LIVES, *, has_worked: bool = False) -> None:
    for _ in range(times):
        breaker.engine_ended("was killed by signal 6", has_worked=has_worked)


def refusal(breaker: Breaker) -> ModelUnavailable:
    with pytest.raises(ModelUnavailable) as refused:
        breaker.admit()
    return refused.value


def test_it_opens_after_so_many_fruitless_lives_in_a_row(breaker: Breaker) -> None:
    end(breaker, FRUITLESS_LIVES - 1)
    breaker.admit()
    end(breaker, 1)
    error = refusal(breaker)
    assert breaker.state == "open"
    assert error.retry_after_s == 30
    assert "its last 5 engine processes" in error.message
    assert "was killed by signal 6" in error.message


def test_one_that_has_worked_begins_the_count_anew(breaker: Breaker) -> None:
    end(breaker, FRUITLESS_LIVES - 1)
    end(breaker, 1, has_worked=True)
    end(breaker, FRUITLESS_LIVES - 1)
    breaker.admit()


def test_lives_that_worked_never_open_it(breaker: Breaker) -> None:
    end(breaker, 100, has_worked=True)
    breaker.admit()


def test_half_open_one_request_at_a_time_may_try(breaker: Breaker, clock: Clock) -> None:
    end(breaker)
    clock.now_s += 29.5
    assert refusal(breaker).retry_after_s == 1
    clock.now_s += 0.5
    assert breaker.state == "half_open"
    breaker.admit()
    assert refusal(breaker).retry_after_s == TRIAL_S
    clock.now_s += TRIAL_S
    breaker.admit()  # the other one has told nothing


def test_work_closes_it(breaker: Breaker, clock: Clock) -> None:
    end(breaker)
    clock.now_s += 30
    breaker.admit()
    breaker.close()
    breaker.admit()
    breaker.admit()
    assert breaker.state == "closed"


def test_each_failed_trial_doubles_the_pause(breaker: Breaker, clock: Clock) -> None:
    end(breaker)
    for pause_s in (30, 60, 120, 240, 480, LONGEST_PAUSE_S, LONGEST_PAUSE_S):
        assert refusal(breaker).retry_after_s == pause_s
        clock.now_s += pause_s
        breaker.admit()
        end(breaker, 1)
