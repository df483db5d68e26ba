"""Which models are in memory, with engines that cost nothing: the pool is given what starts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from mlx_manager.errors import ModelLoadFailed, Overloaded, ShuttingDown
from mlx_manager.mlx_server.engine.messages import Ready, StepTimes
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.pool import MAX_BACKOFF_S, ModelPool, _backoff_s
from mlx_manager.mlx_server.workers.process import EngineProcess
from tests.support.running import eventually

A, B, C = (ModelFiles(name, Path(name), "folder", 0) for name in "abc")


class FakeEngine:
    """What the pool uses of an engine process, without the process."""

    def __init__(self) -> None:
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_stalled = False
        self.ready: Ready | None = None

    @property
    def is_alive(self) -> bool:
        return not self._gone.done()

    async def gone(self) -> str:
        return await asyncio.shield(self._gone)

    def die(self) -> None:
        self._gone.set_result("was killed by signal 9")

    async def stop(self) -> None:
        await asyncio.sleep(0.02)
        if self.is_alive:
            self._gone.set_result("was stopped")


class Starter:
    """Starts engines when it is let, and remembers them."""

    def __init__(self) -> None:
        self.engines: list[FakeEngine] = []
        self.loads: list[str] = []
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, files: ModelFiles) -> EngineProcess:
        self.loads.append(files.id)
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise ModelLoadFailed(f"{files.id} is broken")
        self.engines.append(FakeEngine())
        return cast(EngineProcess, self.engines[-1])

    @property
    def living(self) -> int:
        return sum(engine.is_alive for engine in self.engines)


@pytest.fixture
async def starter() -> Starter:
    return Starter()


@pytest.fixture
async def pool(starter: Starter) -> AsyncIterator[ModelPool]:
    pool = ModelPool(Catalog({}, (), None), starter, max_loaded=2)
    yield pool
    await pool.close()


def in_memory(pool: ModelPool) -> list[str]:
    return [resident.files.id for resident in pool.residents]


async def use(pool: ModelPool, files: ModelFiles) -> bool:
    async with pool.lease(files) as lease:
        return lease.was_loaded


async def test_a_model_is_loaded_once_for_all_who_ask_together(
    pool: ModelPool, starter: Starter
) -> None:
    loaded = await asyncio.gather(*(use(pool, A) for _ in range(10)))
    assert starter.loads == ["a"]
    assert all(loaded), "each of them waited for the load"
    assert not await use(pool, A)


async def test_models_live_side_by_side(pool: ModelPool, starter: Starter) -> None:
    async with pool.lease(A) as a, pool.lease(B) as b:
        assert a.engine is not b.engine
    assert starter.living == 2
    assert in_memory(pool) == ["a", "b"]


async def test_the_model_idle_longest_makes_room(pool: ModelPool, starter: Starter) -> None:
    for files in (A, B, A, C):
        await use(pool, files)
    assert in_memory(pool) == ["a", "c"]
    assert not starter.engines[1].is_alive
    assert starter.living == 2


async def test_a_leased_model_is_never_evicted(pool: ModelPool) -> None:
    async with pool.lease(A):
        await use(pool, B)
        await use(pool, C)
        assert in_memory(pool) == ["a", "c"]
        async with pool.lease(C):
            with pytest.raises(Overloaded, match="a, c are in memory and in use") as refused:
                await use(pool, B)
    assert refused.value.retry_after_s
    assert await use(pool, B)


async def test_a_dead_engine_is_replaced_by_itself_and_counts_as_dead_until_then(
    pool: ModelPool, starter: Starter
) -> None:
    await use(pool, A)
    [resident] = pool.residents
    assert (resident.state, resident.is_healthy) == ("ready", True)
    starter.gate.clear()
    starter.engines[0].die()
    assert (resident.state, resident.is_healthy) == ("dead", False)
    await eventually(lambda: starter.loads == ["a", "a"])
    assert (resident.state, resident.is_healthy) == ("dead", False)
    starter.gate.set()
    await eventually(lambda: resident.state == "ready")
    assert resident.restarts == 1


async def test_a_request_need_not_wait_for_the_replacement(
    pool: ModelPool, starter: Starter
) -> None:
    await use(pool, A)
    starter.engines[0].die()
    assert await use(pool, A)
    await asyncio.sleep(1)  # the pool's own attempt finds it replaced
    assert starter.loads == ["a", "a"]


async def test_replacing_is_tried_again_when_it_fails(pool: ModelPool, starter: Starter) -> None:
    await use(pool, A)
    starter.failures = 1
    starter.engines[0].die()
    await eventually(lambda: pool.residents[0].state == "ready")
    assert starter.loads == ["a", "a", "a"]


async def test_a_stalled_engine_is_unhealthy(pool: ModelPool, starter: Starter) -> None:
    await use(pool, A)
    starter.engines[0].is_stalled = True
    assert (pool.residents[0].state, pool.residents[0].is_healthy) == ("stalled", False)


async def test_a_failing_load_is_told_to_all_who_wait_and_tried_again_by_the_next(
    pool: ModelPool, starter: Starter
) -> None:
    starter.failures = 1
    errors = await asyncio.gather(*(use(pool, A) for _ in range(5)), return_exceptions=True)
    assert [str(error) for error in errors] == ["a is broken"] * 5
    assert starter.loads == ["a"]
    assert in_memory(pool) == []
    assert await use(pool, A)


async def test_closing_ends_every_engine_and_takes_no_more(
    pool: ModelPool, starter: Starter
) -> None:
    await asyncio.gather(use(pool, A), use(pool, B))
    await pool.close()
    assert starter.living == 0
    with pytest.raises(ShuttingDown):
        await use(pool, A)


async def test_closing_while_a_model_loads_leaves_no_engine(
    pool: ModelPool, starter: Starter
) -> None:
    starter.gate.clear()
    request = asyncio.create_task(use(pool, A))
    await eventually(lambda: starter.loads == ["a"])
    await pool.close()
    starter.gate.set()
    with pytest.raises(ShuttingDown):
        await request
    assert starter.living == 0


async def test_closing_while_a_model_makes_room_loads_no_other(
    pool: ModelPool, starter: Starter
) -> None:
    await use(pool, A)
    await use(pool, B)
    request = asyncio.create_task(use(pool, C))
    await eventually(lambda: in_memory(pool) == ["b"])
    await pool.close()
    assert starter.living == 0
    with pytest.raises(ShuttingDown):
        await request
    assert starter.living == 0
    assert starter.loads == ["a", "b"]


def test_a_crash_loop_is_slowed_down_however_long_it_lasts() -> None:
    assert [_backoff_s(restarts) for restarts in (1, 2, 3)] == [0.5, 1, 2]
    assert _backoff_s(100_000) == MAX_BACKOFF_S


class Witness:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def loaded(self, model_id: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("loaded", model_id))

    def load_failed(self, model_id: str, seconds: float, error_type: str) -> None:
        assert seconds >= 0
        self.told.append(("load failed", model_id, error_type))

    def restarted(self, model_id: str) -> None:
        self.told.append(("restarted", model_id))

    def stepped(self, model_id: str, steps: list[StepTimes]) -> None:
        raise AssertionError("a pool makes no steps")


async def test_who_watches_is_told_of_loads_failures_and_restarts(starter: Starter) -> None:
    witness = Witness()
    pool = ModelPool(Catalog({}, (), None), starter, 2, witness)
    starter.failures = 1
    with pytest.raises(ModelLoadFailed):
        await use(pool, A)
    await use(pool, A)
    starter.engines[0].die()
    await eventually(lambda: len(witness.told) == 4)
    await pool.close()
    assert witness.told == [
        ("load failed", "a", "model_load_failed"),
        ("loaded", "a"),
        ("restarted", "a"),
        ("loaded", "a"),
    ]
