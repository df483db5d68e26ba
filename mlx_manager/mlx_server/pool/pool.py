"""Which models are in memory. A model is loaded when it is first asked for, and stays while it is leased."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Literal

from mlx_manager.errors import MlxManagerError, Overloaded, ShuttingDown, WrongModelKind
from mlx_manager.mlx_server.pool.catalog import Catalog, ModelFiles
from mlx_manager.mlx_server.pool.kind import PRODUCTS, ModelKind
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.mlx_server.workers.watch import EngineWatch, NoWatch

logger = logging.getLogger(__name__)

SHORT_LIFE_S = 10.0
MAX_BACKOFF_S = 60.0

StartEngine = Callable[[ModelFiles], Awaitable[EngineProcess]]


@dataclass(slots=True, eq=False)
class Resident:
    """A model that is in memory, being brought there, or whose engine has died and is being replaced."""

    files: ModelFiles
    engine: EngineProcess | None = None
    leases: int = 0
    restarts: int = 0
    load: asyncio.Task[EngineProcess] | None = None
    supervisor: asyncio.Task[None] | None = None

    @property
    def state(self) -> Literal["loading", "ready", "stalled", "dead"]:
        """What its engine is doing; one that died stays `dead` until a fresh one is ready."""
        if self.engine is None:
            return "loading" if self.restarts == 0 else "dead"
        if not self.engine.is_alive:
            return "dead"
        return "stalled" if self.engine.is_stalled else "ready"

    @property
    def is_healthy(self) -> bool:
        """Whether its engine speaks, or is on its first way in."""
        return self.state in ("loading", "ready")


@dataclass(frozen=True, slots=True)
class Lease:
    """A model that stays in memory as long as this is held; its engine was replaced `restarts` times since it came."""

    files: ModelFiles
    engine: EngineProcess
    was_loaded: bool
    restarts: int = 0


class ModelPool:
    """Keeps up to `max_loaded` models, each in an engine process; the one idle longest makes room for another."""

    def __init__(
        self,
        catalog: Catalog,
        start_engine: StartEngine,
        max_loaded: int,
        watch: EngineWatch | None = None,
    ) -> None:
        self.catalog = catalog
        self._start_engine = start_engine
        self._max_loaded = max_loaded
        self._watch = watch or NoWatch()
        # In the order of last use, the longest unused first.
        self._residents: dict[str, Resident] = {}
        self._changing = asyncio.Lock()
        self._is_closed = False

    @property
    def residents(self) -> list[Resident]:
        """The models in memory, the longest unused first."""
        return list(self._residents.values())

    async def find(self, model_id: str, kind: ModelKind | None = None) -> ModelFiles:
        """Return a model by its id, at once when it is in memory. Raises ModelNotFound, and WrongModelKind."""
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

        Raises ModelLoadFailed, and Overloaded when every model in memory is in use and there is room for no other.
        """
        resident = await self._resident(files)
        resident.leases += 1
        try:
            engine, was_loaded = await self._ready_engine(resident)
            yield Lease(resident.files, engine, was_loaded, resident.restarts)
        finally:
            resident.leases -= 1

    def end_requests(self) -> None:
        """Take no new request, and fail those that run, because the server is stopping."""
        self._is_closed = True
        for resident in self._residents.values():
            if resident.engine is not None:
                resident.engine.end_requests(_shutting_down())

    async def close(self) -> None:
        """End every engine process."""
        self._is_closed = True
        async with self._changing:  # one that is being unloaded for another is awaited too
            residents, self._residents = self._residents, {}
        await asyncio.gather(*(self._unload(resident) for resident in residents.values()))

    async def _resident(self, files: ModelFiles) -> Resident:
        if self._is_closed:
            raise _shutting_down()
        if files.id not in self._residents:
            async with self._changing:
                await self._add(files)
        resident = self._residents[files.id] = self._residents.pop(files.id)
        return resident

    async def _add(self, files: ModelFiles) -> None:
        if files.id in self._residents:
            return
        if len(self._residents) >= self._max_loaded:
            await self._make_room_for(files.id)
        if self._is_closed:
            raise _shutting_down()
        self._residents[files.id] = Resident(files)

    async def _make_room_for(self, model_id: str) -> None:
        for name, resident in self._residents.items():
            if resident.leases == 0:
                del self._residents[name]
                logger.info(
                    "model unloaded %(model)s to make room for %(other)s",
                    {"model": name, "other": model_id},
                )
                await self._unload(resident)
                return
        raise Overloaded(
            f"{model_id} can't be loaded: {', '.join(self._residents)} are in memory and in use, and "
            f"MLX_SERVER_MAX_LOADED_MODELS is {self._max_loaded}. Send the request again later, or raise it.",
            retry_after_s=5,
        )

    async def _ready_engine(self, resident: Resident) -> tuple[EngineProcess, bool]:
        """Return the model's living engine, and whether this had to wait for a load."""
        if resident.engine is not None and resident.engine.is_alive:
            return resident.engine, False
        if resident.load is None or resident.load.done():
            # A task of its own: a client that loses patience must not make the next one start over.
            resident.load = asyncio.create_task(self._load(resident))
            resident.load.add_done_callback(lambda done: done.cancelled() or done.exception())
        load = resident.load
        try:
            return await asyncio.shield(load), True
        except asyncio.CancelledError:
            if load.cancelled():
                raise _shutting_down() from None
            raise

    async def _load(self, resident: Resident) -> EngineProcess:
        resident.engine, started_s, model_id = None, time.monotonic(), resident.files.id
        try:
            engine = await self._start_engine(resident.files)
        except Exception as error:
            self._watch.load_failed(model_id, time.monotonic() - started_s, _kind(error))
            if resident.restarts == 0:
                self._residents.pop(model_id, None)
            raise
        resident.engine, load_s = engine, time.monotonic() - started_s
        self._watch.loaded(model_id, load_s)
        self._report(model_id, engine, load_s)
        if resident.supervisor is None:
            # An empty context: what it does later is part of no request's trace.
            resident.supervisor = asyncio.create_task(self._supervise(resident), context=Context())
        return engine

    @staticmethod
    def _report(model_id: str, engine: EngineProcess, seconds: float) -> None:
        if (ready := engine.ready) is None:
            return
        logger.info(
            "model loaded %(model)s weights_bytes=%(weights_bytes)d dtype=%(dtype)s device=%(device)s "
            "load_s=%(load_s).2f pid=%(pid)s",
            {
                "model": model_id,
                "weights_bytes": ready.weights_bytes,
                "dtype": ready.dtype,
                "device": ready.device,
                "load_s": seconds,
                "pid": engine.pid,
            },
        )
        if not ready.has_fast_blas:
            logger.warning(
                "OpenBLAS is not installed: prompts are read about 20 times slower than they could be. "
                "On Debian and Ubuntu: apt install libopenblas0-pthread"
            )

    async def _supervise(self, resident: Resident) -> None:
        """Replace the model's engine whenever it dies, until that succeeds; a request may get there first."""
        while self._residents.get(resident.files.id) is resident:
            started_s = time.monotonic()
            if resident.engine is not None:
                how = await resident.engine.gone()
                logger.error(
                    "engine died: %(model)s %(how)s; starting a fresh one",
                    {"model": resident.files.id, "how": how},
                )
            resident.restarts += 1
            self._watch.restarted(resident.files.id)
            try:
                if time.monotonic() - started_s < SHORT_LIFE_S:
                    await asyncio.sleep(_backoff_s(resident.restarts))
                await self._ready_engine(resident)
            except Exception as error:  # noqa: BLE001 - logged; without a supervisor nothing would try again
                logger.error(
                    "engine not replaced: %(model)s error=%(error)s",
                    {"model": resident.files.id, "error": _kind(error)},
                )
        resident.supervisor = None

    async def _unload(self, resident: Resident) -> None:
        tasks = [task for task in (resident.supervisor, resident.load) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if resident.engine is not None:
            await resident.engine.stop()


def _kind(error: Exception) -> str:
    return error.code if isinstance(error, MlxManagerError) else type(error).__name__


def _backoff_s(restarts: int) -> float:
    """Return how long to wait before the next attempt: half a second, then twice as long each time."""
    return min(2.0 ** min(restarts, 16) / 4, MAX_BACKOFF_S)


def _shutting_down() -> ShuttingDown:
    return ShuttingDown(
        "The server is shutting down. Send the request again when it is back.", retry_after_s=5
    )
