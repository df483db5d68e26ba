"""Find a model and hold both of its sides: the engine in its process, and the text side in this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Generic, Protocol, TypeVar

from mlx_manager.chat.events import Interval, Load, Route, Timeline
from mlx_manager.mlx_server.pool.catalog import ModelFiles
from mlx_manager.mlx_server.pool.kind import ModelKind
from mlx_manager.mlx_server.pool.pool import Lease, ModelPool, Resident

BACKEND = "local"


class TextSide(Protocol):
    """A model's tokenizer and settings. Reading them took `load_s`; `quantization` is how most weights are stored."""

    @property
    def load_s(self) -> float:
        """Seconds."""
        ...

    @property
    def quantization(self) -> str | None:
        """`4bit`, say; None when they are whole."""
        ...


Text = TypeVar("Text", bound=TextSide)


class Leasing(Generic[Text]):
    """Leases of a pool's models of one kind, whose text sides `load_text` reads, in a thread."""

    def __init__(
        self, pool: ModelPool, kind: ModelKind, load_text: Callable[[ModelFiles], Text]
    ) -> None:
        self._pool = pool
        self._kind = kind
        self._read_text = load_text
        self._texts: dict[ModelFiles, asyncio.Task[Text]] = {}

    async def load(self, model_id: str, timeline: Timeline | None = None) -> None:
        """Bring a model into memory before anybody asks for it. Raises what a request for it would raise."""
        timeline = timeline or Timeline()
        files = await self.find(model_id, timeline)
        async with AsyncExitStack() as held:
            await self.hold(files, timeline, held)

    async def text(self, model_id: str) -> Text:
        """Return a model's text side, without its weights. Raises ModelNotFound, WrongModelKind, ModelLoadFailed."""
        files = await self._pool.find(model_id, self._kind)
        return await asyncio.shield(self._load_text(files))

    async def find(self, model_id: str, timeline: Timeline) -> ModelFiles:
        """Return the model that a request asks for. Raises ModelNotFound and WrongModelKind."""
        timeline.routing = Interval.begin()
        files = await self._pool.find(model_id, self._kind)
        adapter = files.adapter.name if files.adapter else None
        timeline.route = Route(BACKEND, files.id, files.source, files.revision, adapter)
        timeline.routing.end()
        return files

    async def hold(
        self, files: ModelFiles, timeline: Timeline, held: AsyncExitStack
    ) -> tuple[Lease, Text]:
        """Hold both sides of a model as long as `held`; a load takes as long as the slower one."""
        # Begun before it is known whether there is anything to load: when it fails, nobody comes back to say so.
        timeline.model_load = Interval.begin()
        loading_text = self._load_text(files)
        was_read = loading_text.done()
        try:
            lease = await held.enter_async_context(self._pool.lease(files))
            text = await asyncio.shield(loading_text)
        except BaseException:
            timeline.load = _unfinished(self._pool.resident(files.id))
            raise
        timeline.model_load.end()
        if was_read and not lease.was_loaded:
            timeline.model_load = None
        else:
            timeline.load = _load(lease, None if was_read else text.load_s)
        timeline.quantization, timeline.engine_restarts = text.quantization, lease.restarts
        return lease, text

    def _load_text(self, files: ModelFiles) -> asyncio.Task[Text]:
        """Return the load of the model's text side, which goes on beside the engine's; one for all who ask."""
        task = self._texts.get(files)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            self._forget_unloaded()
            task = self._texts[files] = asyncio.create_task(
                asyncio.to_thread(self._read_text, files)
            )
            # Retrieved here too: when the engine fails to load, nobody may come to await it.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _forget_unloaded(self) -> None:
        resident = {resident.files for resident in self._pool.residents}
        self._texts = {files: task for files, task in self._texts.items() if files in resident}


def _load(lease: Lease, tokenizer_s: float | None) -> Load:
    engine = lease.engine
    if not lease.was_loaded or engine.ready is None:
        return Load(tokenizer_s=tokenizer_s)
    return Load(
        weights_bytes=engine.ready.weights_bytes,
        reserved_bytes=lease.reserved_bytes,
        evicted=lease.evicted,
        share=1.0,
        process_s=engine.process_s,
        weights_s=engine.ready.load_s,
        tokenizer_s=tokenizer_s,
    )


def _unfinished(resident: Resident | None) -> Load | None:
    """Return what is known of a load that its request doesn't see the end of; None when there is none any more."""
    if resident is None or resident.state != "loading":
        return None
    share = resident.loading.share if resident.loading else 0.0
    return Load(
        reserved_bytes=resident.reservation.total_bytes, evicted=resident.evicted, share=share
    )
