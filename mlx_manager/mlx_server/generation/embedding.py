"""Make embeddings with a model on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager

from mlx_manager.chat.embeddings import EmbeddingRequest, Embeddings
from mlx_manager.chat.events import Interval, Timeline
from mlx_manager.chat.request import Operation
from mlx_manager.mlx_server.generation.deadline import Deadline
from mlx_manager.mlx_server.generation.embedding_text import EmbeddingText, load_embedding_text
from mlx_manager.mlx_server.generation.leasing import Leasing
from mlx_manager.mlx_server.generation.running import RunningRequest, RunningRequests
from mlx_manager.mlx_server.generation.timing import resumptions
from mlx_manager.mlx_server.pool.pool import ModelPool
from mlx_manager.mlx_server.workers.vectors import VectorStream

# Characters and token ids up to which inputs are encoded on the event loop, where a hop to a thread costs more.
INLINE_SIZE = 2000


class LocalEmbeddings:
    """An `EmbeddingBackend` over the models of a pool."""

    def __init__(
        self,
        pool: ModelPool,
        time_limits_s: Mapping[Operation, float],
        running: RunningRequests | None = None,
    ) -> None:
        self._models = Leasing(pool, "embeddings", load_embedding_text)
        self._time_limits_s = time_limits_s
        self._running = running or RunningRequests()

    async def load(self, model_id: str, timeline: Timeline | None = None) -> None:
        """Bring a model into memory before anybody asks for it. Raises what a request for it would raise."""
        await self._models.load(model_id, timeline)

    async def text(self, model_id: str) -> EmbeddingText:
        """Return a model's text side, without its weights. Raises ModelNotFound, WrongModelKind, ModelLoadFailed."""
        return await self._models.text(model_id)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Answer `request`; see `EmbeddingBackend`."""
        timeline = request.timeline
        deadline = Deadline(self._time_limits_s[request.operation], "Send fewer inputs")
        running = RunningRequest(
            request.origin, request.operation, request.model, timeline, deadline
        )
        async with deadline.kept(), AsyncExitStack() as held:
            held.enter_context(self._running.holding(running))
            files = await self._models.find(request.model, timeline)
            lease, text = await self._models.hold(files, timeline, held)
            token_ids = await self._encode(request, text)
            engine = await lease.living_engine()
            stream = engine.embed(token_ids, request.dimensions, request.trace)
            with _recording(stream, timeline):
                async with stream:
                    vectors = await stream.all()
            return Embeddings(files.id, tuple(vectors), timeline.prompt_tokens)

    async def _encode(self, request: EmbeddingRequest, text: EmbeddingText) -> list[list[int]]:
        timeline = request.timeline
        timeline.tokenize = Interval.begin()
        if request.size < INLINE_SIZE:
            token_ids = text.encode(request)
        else:
            token_ids = await asyncio.to_thread(text.encode, request)
        timeline.prompt_tokens = sum(map(len, token_ids))
        timeline.tokenize.end()
        timeline.queued_ns = timeline.tokenize.end_ns
        return token_ids


@contextmanager
def _recording(stream: VectorStream, timeline: Timeline) -> Iterator[None]:
    """Write into `timeline` what is known of the work when the block is left, however it is left."""
    try:
        yield
    finally:
        offset_ns = time.time_ns() - time.monotonic_ns()
        timeline.resumptions = resumptions(stream, offset_ns)
        timeline.waited_behind = stream.waited_behind
        if stream.admitted_at_ns is not None:
            timeline.admitted_ns = stream.admitted_at_ns + offset_ns
        if stream.ended is not None:
            stamps = stream.ended.stamps
            timeline.batches = stamps.batches
            timeline.batch_width_sum = stamps.batch_width_sum
            timeline.batch_width_max = stamps.batch_width_max
            if stamps.admitted_ns is not None:
                timeline.admitted_ns = stamps.admitted_ns + offset_ns
            if stamps.finished_ns is not None:
                timeline.finished_ns = stamps.finished_ns + offset_ns
