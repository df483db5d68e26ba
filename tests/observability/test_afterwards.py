"""What nobody waits for is done a moment later, in order, and never twice."""

from __future__ import annotations

import asyncio
import time

import pytest

from mlx_manager.observability.afterwards import MOST_WAITING, Afterwards
from tests.support.running import eventually


async def test_work_is_done_later_in_the_order_it_came() -> None:
    done = list[int]()
    afterwards = Afterwards(delay_s=0.01)
    for number in range(3):
        afterwards.later(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == []
    await eventually(lambda: done == [0, 1, 2])
    afterwards.later(lambda: done.append(3))
    await eventually(lambda: done == [0, 1, 2, 3])


async def test_a_long_list_leaves_the_loop_to_others_in_between() -> None:
    afterwards, turns, left = Afterwards(delay_s=0), 0, 20

    def work() -> None:
        nonlocal left
        left -= 1
        time.sleep(0.002)

    for _ in range(20):
        afterwards.later(work)
    while left:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 20


async def test_what_waits_is_bounded_however_busy_the_loop_is() -> None:
    afterwards, left = Afterwards(delay_s=0), MOST_WAITING + 100

    def work() -> None:
        nonlocal left
        left -= 1
        time.sleep(0.001)

    for _ in range(left):
        afterwards.later(work)
    await asyncio.sleep(0.01)
    assert left <= MOST_WAITING


async def test_draining_does_all_at_once_and_nothing_again() -> None:
    done = list[int]()
    afterwards = Afterwards(delay_s=0.01)
    afterwards.later(lambda: done.append(1))
    afterwards.drain()
    assert done == [1]
    await asyncio.sleep(0.03)
    assert done == [1]


async def test_a_failure_costs_only_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    done = list[int]()
    afterwards = Afterwards(delay_s=0)
    afterwards.later(lambda: done.append(1 // 0))
    afterwards.later(lambda: done.append(2))
    await eventually(lambda: done == [2])
    assert "ZeroDivisionError" in caplog.text
