"""Which models are in memory. A model is loaded when it is first asked for, and stays while it is leased.

It leaves to make room for another, after a time without requests, or when it is told to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mlx_manager.errors import (
    MlxManagerError,
    ModelInUse,
    ModelLoadFailed,
    ShuttingDown,
    WrongModelKind,
)
from mlx_manager.mlx_server.engine.messages import Loading
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.kind import PRODUCTS, ModelKind
from mlx_manager.mlx_server.pool.ledger import Ledger
from mlx_manager.mlx_server.pool.report import report_loaded
from mlx_manager.mlx_server.pool.resident import Resident as Resident
from mlx_manager.mlx_server.pool.room import Room
from mlx_manager.mlx_server.pool.stored_prompts import tell_room
from mlx_manager.mlx_server.workers.breaker import Breaker
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.mlx_server.workers.recovery import Recovery
from mlx_manager.mlx_server.workers.watch import EngineWatch, NoWatch

logger = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0
# An engine says every second what it holds, and looks for orders between two steps.
PATIENCE_S = 5.0
# An engine that has spoken for so long can't be why the next one should wait, even if it had nothing to do.
LONG_LIFE_S = 60.0


@dataclass(frozen=True, slots=True)
class Survival:
    """What is done when an engine process ends by itself; see the settings of the same names."""

    max_resumes: int = 2
    crash_pause_s: float = 30.0


StartEngine = Callable[[ModelFiles], Awaitable[EngineProcess]]


@dataclass(frozen=True, slots=True)
class Lease:
    """A model that stays in memory as long as this is held; its engine was replaced `restarts` times since it came.

    `engine` was alive when the lease was taken; `living_engine` is, or waits for the one that replaces it.
    `reserved_bytes` are set aside for it, and `evicted` made room for it.
    """

    files: ModelFiles
    engine: EngineProcess
    was_loaded: bool
    living_engine: Callable[[], Awaitable[EngineProcess]]
    restarts: int = 0
    reserved_bytes: int = 0
    evicted: tuple[str, ...] = ()


class ModelPool:
    """Keeps up to `max_loaded` models, each in an engine process, within the budget of `ledger`.

    Those idle longest make room for another. One without a request for `idle_unload_s` leaves by itself, unless its own
    settings say another time. `pinned` ones, and those whose settings say so, do neither. Engines have `patience_s` to
    give back memory of stored prompts that another model needs.
    """

    def __init__(
        self,
        catalog: Catalog,
        start_engine: StartEngine,
        max_loaded: int,
        watch: EngineWatch | None = None,
        ledger: Ledger | None = None,
        idle_unload_s: float | None = None,
        survival: Survival | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.catalog = catalog
        self.ledger = ledger or Ledger()
        # Where somebody has said otherwise than the settings: by hand, and until the server ends.
        self._pins: dict[str, bool] = {}
        self._idle_unload_s = idle_unload_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._adding: dict[str, asyncio.Task[None]] = {}
        # How many wait for room for a model.
        self._wanted = Counter[str]()
        self._start_engine = start_engine
        self._watch = watch or NoWatch()
        self._survival = survival or Survival()
        # In the order of last use, the longest unused first.
        self._residents: dict[str, Resident] = {}
        self._room = Room(
            self.ledger,
            max_loaded,
            self._residents,
            self.is_pinned,
            partial(self._drop, reason="room"),
            patience_s,
        )
        self._changing = asyncio.Lock()
        self._is_closed = False

    @property
    def residents(self) -> list[Resident]:
        """The models in memory, the longest unused first."""
        return list(self._residents.values())

    @property
    def committed_bytes(self) -> int:
        """What all models in memory count for in the budget."""
        return self._room.committed_bytes

    def resident(self, model_id: str) -> Resident | None:
        """Return a model by its id if it is in memory, or on its way."""
        return self._residents.get(model_id)

    async def find(self, model_id: str, kind: ModelKind | None = None) -> ModelFiles:
        """Return a model by its id or alias, at once when it is in memory. Raises ModelNotFound, and WrongModelKind."""
        model_id = self.catalog.real_id(model_id)
        if model_id in self._residents:
            files = self._residents[model_id].files
        else:
            files = await asyncio.to_thread(self.catalog.find, model_id)
        if kind is None or files.kind == kind:
            return files
        models = await asyncio.to_thread(self.catalog.list)
        fitting = ", ".join(model.id for model in models if model.kind == kind) or "none"
        raise WrongModelKind(
            f"{model_id} makes {PRODUCTS[files.kind]}, not {PRODUCTS[kind]}. "
            f"Models on this machine that make {PRODUCTS[kind]}: {fitting}.",
            param="model",
        )

    @asynccontextmanager
    async def lease(self, files: ModelFiles) -> AsyncIterator[Lease]:
        """Hold a model in memory, loading it when it isn't there.

        Raises ModelLoadFailed, InsufficientMemory when it doesn't fit beside those that have to stay, and Overloaded
        when there are as many of those as there may be.
        """
        resident = await self._resident(files)
        resident.leases += 1
        try:
            engine, was_loaded = await self._ready_engine(resident)
            yield Lease(
                resident.files,
                engine,
                was_loaded,
                partial(self._living_engine, resident),
                resident.restarts,
                resident.reservation.total_bytes,
                resident.evicted,
            )
        finally:
            resident.leases -= 1
            resident.used_s = time.monotonic()
            self._watch_idling(resident)

    async def unload(self, model_id: str) -> bool:
        """End a model's engine process, pinned or not; False when it isn't in memory. Raises ModelInUse."""
        async with self._changing:
            resident = self._residents.get(model_id)
            if resident is None:
                return False
            if resident.leases:
                raise ModelInUse(
                    f"{model_id} works on {resident.leases} requests. Wait for their end, or cancel them first "
                    "(GET /admin/models lists them, DELETE /admin/requests/ID cancels one)."
                )
            await self._drop(resident, "asked")
            self._room.share_out()
        return True

    def is_pinned(self, files: ModelFiles) -> bool:
        """Whether a model stays in memory once it is there."""
        return self._pins.get(files.id, files.settings.pinned)

    def is_pin_by_hand(self, files: ModelFiles) -> bool:
        """Whether that was said while the server ran, and so holds until it ends; else the settings say it."""
        return files.id in self._pins

    def pin(self, files: ModelFiles, is_pinned: bool = True) -> None:
        """Say whether a model is to stay in memory once it is there, until the server ends."""
        self._pins[files.id] = is_pinned
        if resident := self._residents.get(files.id):
            self._watch_idling(resident)

    def note_loading(self, model_id: str, loading: Loading) -> None:
        """Note how far a model's weights have come."""
        if resident := self._residents.get(model_id):
            resident.loading = loading

    def end_requests(self) -> None:
        """Take no new request, and fail those that run, because the server is stopping."""
        self._is_closed = True
        for resident in self._residents.values():
            resident.recovery.end(shutting_down())
            if resident.engine is not None:
                resident.engine.end_requests(shutting_down())

    async def close(self) -> None:
        """End every engine process."""
        self._is_closed = True
        async with self._changing:  # one that is being unloaded for another is awaited too
            residents = self.residents
            self._residents.clear()
        await asyncio.gather(*map(self._unload, residents))
        await asyncio.gather(*self._tasks)

    async def _resident(self, files: ModelFiles) -> Resident:
        if self._is_closed:
            raise shutting_down()
        while files.id not in self._residents:
            await self._wait_until_added(files)
        resident = self._residents[files.id] = self._residents.pop(files.id)
        return resident

    async def _wait_until_added(self, files: ModelFiles) -> None:
        self._wanted[files.id] += 1
        try:
            await asyncio.shield(self._added(files))
        except asyncio.CancelledError:
            # It may be there already, and nobody else may have asked for it.
            resident = self._residents.get(files.id)
            if resident is not None and self._wanted[files.id] == 1 and resident.is_untouched:
                del self._residents[files.id]
                self._share_out_soon()
            raise
        finally:
            self._wanted[files.id] -= 1

    def _added(self, files: ModelFiles) -> asyncio.Task[None]:
        """Return the task that makes room for a model: one for all who ask, whose patience it doesn't depend on."""
        task = self._adding.get(files.id)
        if task is None:
            task = self._adding[files.id] = asyncio.create_task(self._add(files))
            task.add_done_callback(lambda done: self._forget_added(files.id, done))
        return task

    def _forget_added(self, model_id: str, done: asyncio.Task[None]) -> None:
        del self._adding[model_id]
        if not done.cancelled():
            done.exception()  # retrieved: nobody may be waiting any more

    async def _add(self, files: ModelFiles) -> None:
        async with self._changing:
            try:
                await self._add_alone(files)
            finally:
                self._room.share_out()

    async def _add_alone(self, files: ModelFiles) -> None:
        need = await asyncio.to_thread(self.ledger.appraise, files)
        evicted = await self._room.make(files, need)
        if self._is_closed:
            raise shutting_down()
        if not self._wanted[files.id]:
            return
        recovery = Recovery(files.id, self._survival.max_resumes, self._watch)
        breaker = Breaker(files.id, self._survival.crash_pause_s)
        reservation = self._room.reserve(files, need)
        self._residents[files.id] = Resident(files, recovery, breaker, reservation, evicted)

    async def _share_out(self) -> None:
        async with self._changing:
            self._room.share_out()

    def _share_out_soon(self) -> None:
        """Have it done behind what holds the lock now. An empty context: it is part of no request's trace."""
        task = asyncio.create_task(self._share_out(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _watch_idling(self, resident: Resident) -> None:
        """Let an idle model leave in time. It has one alarm, which looks when it was last used."""
        is_here = self._residents.get(resident.files.id) is resident
        limit_s = self._idle_limit_s(resident)
        if limit_s is None or resident.alarm or resident.leases or not is_here:
            return
        left_s = max(resident.used_s + limit_s - time.monotonic(), 0.0)
        loop = asyncio.get_running_loop()
        resident.alarm = loop.call_later(left_s, self._look_at_idle, resident, context=Context())

    def _look_at_idle(self, resident: Resident) -> None:
        resident.alarm = None
        if self._is_overdue(resident):
            task = asyncio.create_task(self._drop_overdue(resident))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._watch_idling(resident)

    async def _drop_overdue(self, resident: Resident) -> None:
        async with self._changing:
            if self._is_overdue(resident):
                await self._drop(resident, "idle")
                self._room.share_out()

    def _is_overdue(self, resident: Resident) -> bool:
        limit_s = self._idle_limit_s(resident)
        is_here = self._residents.get(resident.files.id) is resident
        if not is_here or resident.leases or limit_s is None:
            return False
        return time.monotonic() - resident.used_s >= limit_s

    def _idle_limit_s(self, resident: Resident) -> float | None:
        if self.is_pinned(resident.files):
            return None
        return resident.files.settings.idle_unload_s or self._idle_unload_s

    async def _drop(self, resident: Resident, reason: Literal["room", "idle", "asked"]) -> None:
        """Unload a model; returns when its process has gone. `_changing` must be held."""
        del self._residents[resident.files.id]
        logger.info(
            "model unloaded %(model)s reason=%(reason)s",
            {"model": resident.files.id, "reason": reason},
        )
        await self._unload(resident)

    async def _living_engine(self, resident: Resident) -> EngineProcess:
        if resident.engine is not None and resident.engine.is_alive:
            return resident.engine
        return (await self._ready_engine(resident))[0]

    async def _ready_engine(self, resident: Resident) -> tuple[EngineProcess, bool]:
        """Return the model's living engine, and whether this had to wait for a load.

        Raises ModelLoadFailed, and ModelUnavailable when its engines end one after another.
        """
        while True:
            if resident.engine is not None and resident.engine.is_alive:
                resident.admit()
                return resident.engine, False
            if self._is_closed:
                raise shutting_down()
            resident.breaker.admit()
            try:
                return await self._loaded(resident), True
            except ModelLoadFailed:
                # One that could be loaded before is tried again, until its breaker says that it is enough.
                if resident.supervisor is None:
                    raise

    async def _loaded(self, resident: Resident) -> EngineProcess:
        """Wait for a fresh engine, together with all others who do."""
        if resident.load is None or resident.load.done():
            # A task of its own: a client that loses patience must not make the next one start over.
            resident.load = asyncio.create_task(self._load(resident))
            resident.load.add_done_callback(lambda done: done.cancelled() or done.exception())
        load = resident.load
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if load.cancelled():
                raise shutting_down() from None
            raise

    async def _load(self, resident: Resident) -> EngineProcess:
        if resident.engine is not None:
            await self._count_end(resident, resident.engine)
        resident.engine, started_s, model_id = None, time.monotonic(), resident.files.id
        resident.loading, reserved = None, resident.reservation
        try:
            engine = await self._start_engine(resident.files)
        except Exception as error:
            self._watch.load_failed(model_id, time.monotonic() - started_s, _kind(error))
            if resident.supervisor is None:
                self._residents.pop(model_id, None)
            else:
                resident.breaker.engine_ended("could not be started", has_worked=False)
            self._share_out_soon()
            raise
        resident.engine, load_s = engine, time.monotonic() - started_s
        if engine.ready is not None:
            resident.reservation = resident.reservation.corrected(engine.ready)
        if resident.reservation != reserved:
            tell_room(resident)
        self._share_out_soon()
        if engine.is_alive:
            engine.recovery = resident.recovery
            resident.recovery.go_on(engine)
        self._watch.loaded(model_id, load_s)
        report_loaded(resident.files, engine, load_s)
        if resident.supervisor is None:
            # An empty context: what it does later is part of no request's trace.
            resident.supervisor = asyncio.create_task(self._supervise(resident), context=Context())
        return engine

    async def _supervise(self, resident: Resident) -> None:
        """Replace the model's engine whenever it dies, until that succeeds; a request may get there first."""
        while self._residents.get(resident.files.id) is resident:
            if (engine := resident.engine) is not None:
                await self._count_end(resident, engine)
            else:
                self._count_restart(resident)
            try:
                await self._pause(resident)
                if not resident.is_running:
                    await self._loaded(resident)
            except Exception as error:  # noqa: BLE001 - logged; without a supervisor nothing would try again
                logger.error(
                    "engine not replaced: %(model)s error=%(error)s",
                    {"model": resident.files.id, "error": _kind(error)},
                )
        resident.supervisor = None

    async def _count_end(self, resident: Resident, engine: EngineProcess) -> None:
        """Wait for the end of an engine; whoever is there first says what follows from it."""
        how = await engine.gone()
        if resident.ended_engine is engine:
            return
        resident.ended_engine = engine
        is_fine = engine.has_worked or engine.lived_s > LONG_LIFE_S
        resident.breaker.engine_ended(how, has_worked=is_fine)
        logger.error(
            "engine died: %(model)s %(how)s; starting a fresh one",
            {"model": resident.files.id, "how": how},
        )
        self._count_restart(resident)

    def _count_restart(self, resident: Resident) -> None:
        resident.restarts += 1
        self._watch.restarted(resident.files.id)

    @staticmethod
    async def _pause(resident: Resident) -> None:
        """Wait before the next attempt: the longer, the more engines have ended without having done anything."""
        breaker = resident.breaker
        if breaker.state == "open":
            logger.error(
                "model unavailable %(model)s engines=%(engines)d pause_s=%(pause_s).0f",
                {
                    "model": resident.files.id,
                    "engines": breaker.fruitless_lives,
                    "pause_s": breaker.remaining_s,
                },
            )
            resident.recovery.end(breaker.error())
            await asyncio.sleep(breaker.remaining_s)
        elif breaker.fruitless_lives:
            await asyncio.sleep(_backoff_s(breaker.fruitless_lives))

    async def _unload(self, resident: Resident) -> None:
        if resident.alarm is not None:
            resident.alarm.cancel()
        tasks = [task for task in (resident.supervisor, resident.load) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        resident.recovery.end(shutting_down())
        if resident.engine is not None:
            await resident.engine.stop()


def _kind(error: Exception) -> str:
    return error.code if isinstance(error, MlxManagerError) else type(error).__name__


def _backoff_s(failures: int) -> float:
    """Return how long to wait before the next attempt: half a second, then twice as long each time."""
    return min(2.0 ** min(failures, 16) / 4, MAX_BACKOFF_S)


def shutting_down() -> ShuttingDown:
    """Return what a request meets that can't be answered any more."""
    return ShuttingDown(
        "The server is shutting down. Send the request again when it is back.", retry_after_s=5
    )
