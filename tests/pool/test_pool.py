"""Which models are in memory, with engines that cost nothing: the pool is given what starts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mlx_manager.errors import (
    InsufficientMemory,
    ModelInUse,
    ModelLoadFailed,
    Overloaded,
    ShuttingDown,
)
from mlx_manager.mlx_server.engine.messages import KvCost, Loading, Ready, StepTimes, Vitals
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.fit import Need
from mlx_manager.mlx_server.pool.ledger import Ledger
from mlx_manager.mlx_server.pool.pool import MAX_BACKOFF_S, ModelPool, Survival, _backoff_s
from mlx_manager.mlx_server.workers.process import EngineProcess
from tests.support.running import eventually

A, B, C = (ModelFiles(name, Path(name), "folder", 0) for name in "abc")


class FakeEngine:
    """What the pool uses of an engine process, without the process."""

    pid = 1

    def __init__(self) -> None:
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_stalled = False
        self.has_worked = False
        self.lived_s = 0.0
        self.ready: Ready | None = None
        self.vitals: Vitals | None = None
        self.rooms_gib: list[tuple[float, float]] = []

    @property
    def is_alive(self) -> bool:
        return not self._gone.done()

    async def gone(self) -> str:
        return await asyncio.shield(self._gone)

    def set_room(self, prefix_cache_bytes: int, shared_bytes: int) -> None:
        self.rooms_gib.append((prefix_cache_bytes / GIB, shared_bytes / GIB))

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
        self.ready: Ready | None = None
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
        self.engines[-1].ready = self.ready
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


@pytest.mark.parametrize("cost", [None, KvCost(1, (), 0)])
async def test_a_model_whose_requests_can_not_be_counted_in_bytes_is_said(
    pool: ModelPool, starter: Starter, cost: KvCost | None, caplog: pytest.LogCaptureFixture
) -> None:
    starter.ready = Ready(1, "float32", "cpu", True, kv_cost=cost)
    await use(pool, A)
    assert ("memory not predicted: a" in caplog.text) is (cost is None)


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

    def resumed(self, model_id: str) -> None:
        raise AssertionError("nobody asks these engines for anything")

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


GIB = 2**30
# Each takes as many GiB as its name says.
ONE, TWO, FOUR = (ModelFiles(name, Path(name), "folder", 0) for name in ("1", "2", "4"))
HUGE = ModelFiles("9", Path("9"), "folder", 0)
EMBEDDER = ModelFiles("3", Path("3"), "folder", 0, "embeddings")


def appraise(files: ModelFiles) -> Need:
    """A quarter of it is for keys and values of 1,024 tokens."""
    size = int(files.id[0]) * GIB
    return Need(size // 2, size // 4, size // 4, 1024)


def pool_of(starter: Starter, gib: float, prefix_mib: int = 0, **more: Any) -> ModelPool:
    ledger = Ledger(int(gib * GIB), appraise, prefix_mib * 2**20)
    return ModelPool(Catalog({}, (), None), starter, 9, None, ledger, **more)


def prompts_gib(pool: ModelPool) -> list[float]:
    return [one.reservation.prefix_cache_bytes / GIB for one in pool.residents]


def shared_gib(pool: ModelPool) -> list[float]:
    return [
        one.reservation.shared_bytes / GIB for one in pool.residents if one.files.kind == "chat"
    ]


def promised_gib(pool: ModelPool) -> float:
    """What all models may come to: their weights, their head room, and what keys and values may have."""
    needs = [one.reservation.need for one in pool.residents]
    fixed = sum(need.weights_bytes + need.head_room_bytes for need in needs) / GIB
    return fixed + sum(shared_gib(pool))


def committed_gib(pool: ModelPool) -> float:
    return pool.committed_bytes / GIB


async def test_models_share_a_budget_and_the_longest_unused_make_room(starter: Starter) -> None:
    pool = pool_of(starter, 7.5)
    for files in (ONE, TWO, FOUR):
        await use(pool, files)
    assert committed_gib(pool) == 7
    await use(pool, ONE)

    await use(pool, EMBEDDER)

    assert in_memory(pool) == ["1", "3"], "the one of 2 GiB would not have been enough"
    assert starter.living == 2
    assert committed_gib(pool) == 4
    [newest] = [one for one in pool.residents if one.files is EMBEDDER]
    assert newest.evicted == ("2", "4")
    await pool.close()


async def test_what_would_not_help_is_not_unloaded(starter: Starter) -> None:
    pool = pool_of(starter, 5)
    await use(pool, ONE)
    async with pool.lease(TWO):
        with pytest.raises(InsufficientMemory) as refused:
            await use(pool, FOUR)
        assert in_memory(pool) == ["1", "2"]
    assert refused.value.message == (
        "4 does not fit: it needs 4.00 GiB (2.00 GiB of weights, 1.00 GiB of keys and values for 1024 tokens, 1.00 GiB "
        "of head room); 2.00 GiB of 5.00 GiB for all models are free, and 2 (2.00 GiB, in use by 1) can't be "
        "unloaded. Send the request again later, unpin or unload one of them (POST /admin/models/unload), or raise "
        "MLX_SERVER_MEMORY_BUDGET_MIB. Choose a smaller or more quantised model."
    )
    assert refused.value.retry_after_s
    assert await use(pool, FOUR), "when the other is idle"
    assert in_memory(pool) == ["4"]
    await pool.close()


async def test_a_model_that_never_fits_is_refused_with_what_would(starter: Starter) -> None:
    pool = pool_of(starter, 8)
    await use(pool, ONE)
    with pytest.raises(InsufficientMemory) as refused:
        await use(pool, HUGE)
    # 1 GiB too much of 2.25 GiB for 1,024 tokens: 568 would do, and caches grow by 256.
    assert "Set its context_tokens to 512" in refused.value.message
    assert refused.value.retry_after_s is None
    assert in_memory(pool) == ["1"]
    await pool.close()


async def test_a_prefix_cache_gets_what_is_left_and_no_more(starter: Starter) -> None:
    pool = pool_of(starter, 6.25, prefix_mib=1024)
    small = ModelFiles("1b", Path("1b"), "folder", 0, settings=ModelSettings(prefix_cache_mib=512))
    for files in (FOUR, small):
        await use(pool, files)
    granted = [one.reservation.prefix_cache_bytes / GIB for one in pool.residents]
    assert granted == [1.0, 0.25]
    # Keys and values have what is theirs, and stored prompts give way to them. What was left is the other model's now.
    assert shared_gib(pool) == [1 + 1, 0.25 + 0.25]
    assert starter.engines[0].rooms_gib == [(1.0, 2.0)]
    assert committed_gib(pool) == promised_gib(pool) == 6.25

    await pool.unload("1b")
    assert starter.engines[0].rooms_gib == [(1.0, 2.0), (1.0, 3.25)]
    assert promised_gib(pool) == 6.25
    await pool.close()

    pool = pool_of(starter, 9, prefix_mib=1024)
    await use(pool, EMBEDDER)
    assert pool.residents[0].reservation.prefix_cache_bytes == 0, "it has nothing to keep there"
    await pool.close()


async def test_models_share_what_is_left_and_are_never_promised_more_than_there_is(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 10)
    await use(pool, FOUR)
    assert shared_gib(pool) == [1 + 6]
    await use(pool, TWO)
    assert shared_gib(pool) == [1 + 2, 0.5 + 2]
    assert promised_gib(pool) == 10
    async with pool.lease(FOUR):
        # Its requests were let in with what was left, and may come to that, whoever is loaded beside them.
        report(starter.engines[0], 1, 0, promised_gib=3)
        await use(pool, EMBEDDER)
        assert in_memory(pool) == ["4", "3"]
        assert shared_gib(pool) == [3 + 1]
        assert committed_gib(pool) == 6 + 3
    await pool.unload("3")
    assert shared_gib(pool) == [3 + 4]
    assert starter.engines[0].rooms_gib == [(0.0, 3.0), (0.0, 4.0), (0.0, 7.0)]
    await pool.close()


async def test_stored_prompts_of_an_idle_model_make_room_and_come_back(starter: Starter) -> None:
    pool = pool_of(starter, 5.5, prefix_mib=1024)
    await use(pool, FOUR)
    await use(pool, ONE)
    assert in_memory(pool) == ["4", "1"]
    assert pool.residents[1].evicted == ()
    # It had 1 GiB, and with what was left 2.5 for keys and values, too. Half of it was missing; the other half is of
    # more use to the model that was asked for.
    assert starter.engines[0].rooms_gib == [(0.0, 1.0)]
    assert prompts_gib(pool) == [0.0, 0.5]

    await pool.unload("1")
    assert starter.engines[0].rooms_gib == [(0.0, 1.0), (1.0, 2.5)]
    assert committed_gib(pool) == 5
    await pool.close()


async def test_stored_prompts_of_a_model_in_use_go_before_another_is_refused(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 6.5, prefix_mib=1024)
    async with pool.lease(FOUR):
        await use(pool, ONE)
        assert prompts_gib(pool) == [1.0, 0.5]
        # Of 2 GiB, 1.5 come from who is idle; the last half from who is in use.
        await use(pool, TWO)
        assert in_memory(pool) == ["4", "2"]
        assert starter.engines[0].rooms_gib == [(1.0, 2.0), (0.5, 1.5)]
        # Nothing is taken where all of it would not do.
        with pytest.raises(InsufficientMemory):
            await use(pool, ModelFiles("3 of them", Path("3"), "folder", 0))
        assert in_memory(pool) == ["4", "2"]
        assert starter.engines[0].rooms_gib == [(1.0, 2.0), (0.5, 1.5)]
    await pool.close()


def report(
    engine: FakeEngine, kv_gib: float, prompts_gib: float, promised_gib: float = 0
) -> None:  # fmt: skip
    """Have an engine of a model of 2 GiB say that it holds so much."""
    kv, prompts = int(kv_gib * GIB), int(prompts_gib * GIB)
    engine.ready = Ready(2 * GIB, "float32", "cpu", True)
    engine.vitals = Vitals(
        *(0, 0, kv, 2 * GIB + kv + prompts, 0),
        prefix_cache_bytes=prompts,
        promised_kv_bytes=int(promised_gib * GIB),
    )


async def test_room_is_waited_for_until_engines_have_given_it_back(starter: Starter) -> None:
    pool = pool_of(starter, 5, prefix_mib=1024)
    await use(pool, FOUR)
    [engine] = starter.engines
    report(engine, 1, 1)
    loading = asyncio.create_task(use(pool, ONE))
    await eventually(lambda: engine.rooms_gib == [(0.0, 1.0)])
    await asyncio.sleep(0.2)
    assert starter.loads == ["4"]
    report(engine, 1, 0)
    await loading
    assert in_memory(pool) == ["4", "1"]
    await pool.close()


async def test_prompts_that_long_requests_have_displaced_are_not_taken_for_room(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 6, prefix_mib=1024)
    async with pool.lease(FOUR):
        [engine] = starter.engines
        report(engine, 3, 0)
        # It counts for 6, however little is set aside for prompts that it hasn't got.
        with pytest.raises(InsufficientMemory):
            await use(pool, ONE)
        assert engine.rooms_gib == []
        # Of what it has got, so much is taken that it counts for less.
        report(engine, 2, 0.5)
        loading = asyncio.create_task(use(pool, ONE))
        await eventually(lambda: engine.rooms_gib == [(0.0, 2.0)])
        report(engine, 2, 0)
        await loading
    await pool.close()


async def test_an_engine_that_gives_nothing_back_is_asked_once(starter: Starter) -> None:
    pool = pool_of(starter, 5, prefix_mib=1024, patience_s=0.1)
    async with pool.lease(FOUR):
        [engine] = starter.engines
        report(engine, 1, 1)
        with pytest.raises(InsufficientMemory):
            await use(pool, ONE)
        assert engine.rooms_gib == [(0.0, 1.0)]
        report(engine, 1, 0)
    await pool.unload("4")
    await pool.close()


async def test_an_engine_that_a_request_had_started_and_that_ended_too_counts_as_well(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 5, survival=Survival(2, crash_pause_s=0.01))
    await use(pool, ONE)
    resident = pool.residents[0]
    starter.engines[0].die()
    # After the second that does nothing, the next one is started in half a second; whoever asks doesn't wait so long.
    await eventually(lambda: len(starter.engines) == 2)
    for number in range(2, 5):
        starter.engines[-1].die()
        await use(pool, ONE)
        assert len(starter.engines) == number + 1
    assert resident.breaker.fruitless_lives == 4
    await pool.close()


async def test_a_model_that_could_not_be_loaded_keeps_nobody_busy_when_it_would_be_idle(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 5, idle_unload_s=0.01)
    starter.failures = 1
    with pytest.raises(ModelLoadFailed):
        await use(pool, ONE)
    await asyncio.sleep(0.05)
    before_s = time.process_time()
    await asyncio.sleep(1)
    assert time.process_time() - before_s < 0.5
    await pool.close()


async def test_no_room_is_kept_for_a_model_whose_client_left_while_it_was_made(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 5, prefix_mib=1024)
    async with pool.lease(FOUR):
        [engine] = starter.engines
        report(engine, 1, 1)
        asking = asyncio.create_task(use(pool, ONE))
        await eventually(lambda: bool(engine.rooms_gib))
        asking.cancel()
        report(engine, 1, 0)
        await eventually(lambda: engine.rooms_gib == [(0.0, 1.0), (1.0, 2.0)])
        assert in_memory(pool) == ["4"]
        # Another who asks meanwhile has it.
        report(engine, 1, 1)
        first, second = (asyncio.create_task(use(pool, ONE)) for _ in range(2))
        await eventually(lambda: len(engine.rooms_gib) == 3)
        first.cancel()
        report(engine, 1, 0)
        assert await second
        assert in_memory(pool) == ["4", "1"]
    await pool.close()


async def test_what_was_taken_comes_back_when_the_load_fails(starter: Starter) -> None:
    pool = pool_of(starter, 5, prefix_mib=1024)
    await use(pool, FOUR)
    starter.failures = 1
    with pytest.raises(ModelLoadFailed):
        await use(pool, ONE)
    [engine] = starter.engines
    await eventually(lambda: engine.rooms_gib == [(0.0, 1.0), (1.0, 2.0)])
    await pool.close()


async def test_a_model_whose_room_changes_while_it_is_loaded_is_told(starter: Starter) -> None:
    pool = pool_of(starter, 5, prefix_mib=1024)
    starter.gate.clear()
    loads = [asyncio.create_task(use(pool, files)) for files in (FOUR, ONE)]
    await eventually(lambda: starter.loads == ["4", "1"])
    starter.gate.set()
    await asyncio.gather(*loads)
    assert starter.engines[0].rooms_gib == [(0.0, 1.0)]
    await pool.close()


async def test_what_an_engine_really_holds_counts(starter: Starter) -> None:
    pool = pool_of(starter, 5)
    await use(pool, TWO)
    [engine] = starter.engines
    assert committed_gib(pool) == 2
    engine.ready = Ready(GIB, "float32", "cpu", True)
    engine.vitals = Vitals(0, 0, 2 * GIB, 3 * GIB, GIB // 2)
    assert committed_gib(pool) == 3.5
    await use(pool, FOUR)
    assert in_memory(pool) == ["4"]
    await pool.close()


async def test_weights_that_are_larger_than_predicted_are_booked_as_they_are(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 9)

    async def start(files: ModelFiles) -> EngineProcess:
        engine = await starter(files)
        engine.ready = Ready(3 * GIB, "float32", "cpu", True)
        return engine

    pool._start_engine = start
    await use(pool, TWO)
    assert committed_gib(pool) == 3 + 2 / 2
    await pool.close()


async def test_what_requests_cost_is_booked_as_it_is_measured_and_told_to_the_engine(
    starter: Starter,
) -> None:
    """A state that nobody could tell from the config: without it, a request of the whole context would be refused."""
    starter.ready = Ready(GIB, "float32", "cpu", True, kv_cost=KvCost(GIB // 1024, (), GIB // 2))
    pool = pool_of(starter, 4)
    await use(pool, TWO)
    [resident], [engine] = pool.residents, starter.engines
    # 1,024 tokens, up to 255 to grow by, and the state.
    kv_gib = 1 + 255 / 1024 + 0.5
    assert resident.reservation.need.kv_bytes == kv_gib * GIB
    await eventually(lambda: engine.rooms_gib != [] and engine.rooms_gib[-1][1] >= kv_gib)
    assert promised_gib(pool) <= 4
    await pool.close()


async def test_a_shorter_context_that_a_refusal_names_is_one_that_fits(starter: Starter) -> None:
    """Columns to spare are in it: what is proportional to the tokens would be 256 too many."""
    cost = KvCost(GIB // 1024)

    def need_of(files: ModelFiles) -> Need:
        tokens = files.settings.context_tokens or 4096
        return Need(GIB, 0, GIB, tokens, 512).at(cost)

    ledger = Ledger(int(3.24 * GIB), need_of)
    pool = ModelPool(Catalog({}, (), None), starter, 9, None, ledger)
    with pytest.raises(InsufficientMemory, match="Set its context_tokens to 768 ") as refused:
        await use(pool, ONE)
    assert refused.value.param == "model"

    shorter, longer = (
        replace(ONE, settings=ModelSettings(context_tokens=tokens)) for tokens in (768, 1024)
    )
    with pytest.raises(InsufficientMemory):
        await use(pool, longer)
    await use(pool, shorter)
    await pool.close()


async def test_loads_at_the_same_time_do_not_share_the_same_room(starter: Starter) -> None:
    pool = pool_of(starter, 5)
    starter.gate.clear()
    both = [asyncio.create_task(hold(pool, files)) for files in (TWO, FOUR)]
    await eventually(lambda: any(task.done() for task in both))
    starter.gate.set()
    errors = [error for error in await asyncio.gather(*both, return_exceptions=True) if error]
    assert [type(error) for error in errors] == [InsufficientMemory]
    assert len(starter.engines) == 1
    await pool.close()


async def hold(pool: ModelPool, files: ModelFiles) -> None:
    async with pool.lease(files):
        await asyncio.sleep(0.05)


async def test_a_pinned_model_makes_no_room_until_it_is_unpinned(starter: Starter) -> None:
    pool = pool_of(starter, 5)
    await use(pool, TWO)
    pool.pin(TWO)
    with pytest.raises(
        InsufficientMemory, match=r"2 \(2.00 GiB, pinned\) can't be unloaded"
    ) as full:
        await use(pool, FOUR)
    assert full.value.retry_after_s is None, "waiting doesn't help"
    pool.pin(TWO, is_pinned=False)
    assert await use(pool, FOUR)
    await pool.close()


async def test_settings_pin_a_model_and_a_hand_unpins_it(starter: Starter) -> None:
    pool = ModelPool(Catalog({}, (), None), starter, 1)
    pinned = ModelFiles("p", Path("p"), "folder", 0, settings=ModelSettings(pinned=True))
    await use(pool, pinned)
    with pytest.raises(Overloaded, match="p are in memory and in use or pinned"):
        await use(pool, A)
    pool.pin(pinned, is_pinned=False)
    assert await use(pool, A)
    await pool.close()


async def test_an_idle_model_leaves_in_time_and_a_used_or_pinned_one_stays(
    starter: Starter,
) -> None:
    pool = pool_of(starter, 100, idle_unload_s=0.2)
    pinned = ModelFiles("1p", Path("p"), "folder", 0, settings=ModelSettings(pinned=True))
    patient = ModelFiles("1q", Path("q"), "folder", 0, settings=ModelSettings(idle_unload_s=60))
    async with pool.lease(ONE):
        for files in (TWO, pinned, patient):
            await use(pool, files)
        await eventually(lambda: in_memory(pool) == ["1", "1p", "1q"])
        await asyncio.sleep(0.3)
        assert in_memory(pool) == ["1", "1p", "1q"]
    released_s = asyncio.get_running_loop().time()
    await eventually(lambda: in_memory(pool) == ["1p", "1q"])
    assert asyncio.get_running_loop().time() - released_s >= 0.19
    pool.pin(pinned, is_pinned=False)
    await eventually(lambda: in_memory(pool) == ["1q"])
    await eventually(lambda: starter.living == 1)
    await pool.close()


async def test_unloading_by_hand_waits_for_the_end_and_spares_models_in_use(
    pool: ModelPool, starter: Starter
) -> None:
    async with pool.lease(A):
        with pytest.raises(ModelInUse, match="a works on 1 requests"):
            await pool.unload("a")
        assert starter.living == 1
    pool.pin(A)
    assert await pool.unload("a"), "a pin is no lock"
    assert starter.living == 0
    assert not await pool.unload("a")
    assert await use(pool, A)


async def test_how_far_a_load_has_come_can_be_seen(pool: ModelPool, starter: Starter) -> None:
    starter.gate.clear()
    request = asyncio.create_task(use(pool, A))
    await eventually(lambda: starter.loads == ["a"])
    pool.note_loading("a", Loading(1, 4))
    pool.note_loading("gone", Loading(1, 4))
    [resident] = pool.residents
    assert (resident.state, resident.loading) == ("loading", Loading(1, 4))
    starter.gate.set()
    await request
