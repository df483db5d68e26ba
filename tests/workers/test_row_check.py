"""What an engine works on and the requests that wait for it are compared, and what stays different is said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_manager.errors import RequestBreaksBatch
from mlx_manager.mlx_server.engine.messages import Cancel, Vitals
from mlx_manager.mlx_server.workers.recovery import Recovery
from mlx_manager.mlx_server.workers.row_check import LOOKS_UNTIL_REPORTED, RowCheck, difference
from mlx_manager.mlx_server.workers.watch import NoWatch
from tests.support.running import eventually
from tests.workers.processes import ask, read, started


def vitals(sequences: list[int], rows: list[int] | None = None, newest: int = 9) -> Vitals:
    return Vitals(
        *(0, 0, 0, 0, 0),
        sequence_ids=sequences,
        row_ids=sequences if rows is None else rows,
        newest_id=newest,
    )


def test_each_kind_of_difference_is_told() -> None:
    found = difference([1, 2], vitals([2, 3], [2, 3, 4]))
    assert found.counts == {"orphaned": 1, "missing": 1, "unbooked": 1}
    assert [*found.orphaned, *found.missing, *found.unbooked] == [3, 1, 4]


def test_what_is_on_its_way_is_not_missing() -> None:
    assert not difference([1, 2, 3], vitals([1, 2], newest=2))


def test_what_does_not_last_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    check = RowCheck("test/model")
    for look in range(4 * LOOKS_UNTIL_REPORTED):
        assert not check.look([], vitals([look]))
        assert len(check.difference) == 1
    assert "engine rows differ" not in caplog.text


def test_what_lasts_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    check = RowCheck("test/model")
    lasting = [check.look([1], vitals([1, 7])) for _ in range(LOOKS_UNTIL_REPORTED + 2)]
    assert [len(one) for one in lasting] == [0, 0, 1, 1, 1]
    assert caplog.text.count("engine rows differ test/model orphaned=1 missing=0 unbooked=0") == 1
    assert not check.look([1], vitals([1]))
    assert not check.difference


async def test_a_row_that_nobody_waits_for_is_removed(tiny: Path) -> None:
    async with started(tiny) as engine:
        lost = ask(engine)
        await lost.admitted()
        del engine._streams[lost.sequence_id]  # the fault that is looked for
        await eventually(lambda: len(engine.row_difference) == 1)
        await eventually(lambda: engine.vitals is not None and engine.vitals.running == 0)
        await eventually(lambda: not engine.row_difference)
        assert len(await read(ask(engine, 5))) == 5


async def test_a_request_that_lost_its_row_is_computed_all_the_same(tiny: Path) -> None:
    async with started(tiny) as engine:
        engine.recovery = Recovery("test/model", 2, NoWatch())
        whole = await read(ask(engine, 600))
        async with ask(engine, 600) as stream:
            await stream.admitted()
            engine._send(Cancel(stream.sequence_id))
            held, engine._dispatch = engine._dispatch, lambda step: None  # type: ignore[method-assign]
            await eventually(lambda: engine.vitals is not None and not engine.vitals.sequence_ids)
            engine._dispatch = held  # type: ignore[method-assign]
            rest = [token_id async for token_ids in stream for token_id in token_ids]
        assert rest == whole
        assert [one.how for one in stream.resumptions] == ["lost its row"]


async def test_a_request_that_loses_its_row_each_time_is_given_up(tiny: Path) -> None:
    async with started(tiny) as engine:
        engine.recovery = Recovery("test/model", 2, NoWatch())
        stream = ask(engine, 600)
        engine._dispatch = lambda step: None  # type: ignore[method-assign]
        reading = asyncio.create_task(read(stream))
        while not reading.done():
            engine._send(Cancel(stream.sequence_id))
            await asyncio.sleep(0.1)
        with pytest.raises(RequestBreaksBatch, match=r"each of the 3 times .* lost its row"):
            await reading
        assert [one.attempts for one in stream.resumptions] == [2]
