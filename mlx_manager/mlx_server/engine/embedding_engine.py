"""The engine of a model that makes vectors: requests in, one report per forward pass out.

Like `Engine` it knows no socket, and no exception of one batch ends it.
"""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable

import mlx.core as mx

from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.embedding_model import EmbeddingModel
from mlx_manager.mlx_server.engine.embedding_scheduler import Batch, EmbeddingScheduler, Request
from mlx_manager.mlx_server.engine.messages import (
    Cancel,
    Embed,
    Embedded,
    EndReason,
    Pass,
    ToEngine,
    Vectors,
    Vitals,
)
from mlx_manager.mlx_server.engine.step_clock import StepClock


class EmbeddingEngine:
    """Computes the inputs of every request to one model."""

    def __init__(
        self,
        model: EmbeddingModel,
        scheduler: EmbeddingScheduler,
        threads: BlasThreads,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._threads = threads
        self._clock_ns = clock_ns
        self._ended: list[Embedded] = []
        self._step_clock = StepClock()
        self._last_began_ns = 0
        self._newest_id = 0
        self._progress = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to report."""
        return len(self._scheduler) > 0 or bool(self._ended)

    def handle(self, message: ToEngine) -> None:
        """Take one message from the inbox; its effect shows in the next step."""
        match message:
            case Embed():
                self._newest_id = message.sequence_id
                self._scheduler.add(Request.received(message, self._clock_ns()))
            case Cancel(sequence_id):
                if (request := self._scheduler.remove(sequence_id)) is not None:
                    self._end(request, "cancelled")

    def step(self) -> Pass:
        """Compute one batch and say what happened."""
        began_ns, batch = self._clock_ns(), self._scheduler.next_batch()
        admitted = [one for one in batch.requests if one.stamps.admitted_ns is None]
        # What was there when the last pass began could have been in it, had there been room.
        waited = [one.id for one in admitted if one.stamps.received_ns < self._last_began_ns]
        for request in admitted:
            request.stamps.admitted_ns = began_ns
        vectors = list[Vectors]()
        if batch.rows:
            self._last_began_ns = began_ns
            vectors = self._made_of(batch)
        ended, self._ended = self._ended, []
        self._progress += len(batch.rows) + len(ended)
        return Pass(began_ns, vectors, [request.id for request in admitted], ended, waited)

    def close(self) -> None:
        """There is no thread beside the engine's own."""

    def vitals(self) -> Vitals:
        """Say how the engine is, and how long the passes since the last such report took."""
        begun = [one.id for one in self._scheduler if one.stamps.admitted_ns is not None]
        return Vitals(
            waiting=len(self._scheduler) - len(begun),
            running=len(begun),
            kv_bytes=0,
            active_bytes=mx.get_active_memory(),
            pooled_bytes=mx.get_cache_memory(),
            steps=self._step_clock.take(),
            sequence_ids=[request.id for request in self._scheduler],
            row_ids=begun,
            newest_id=self._newest_id,
            progress=self._progress,
        )

    def _made_of(self, batch: Batch) -> list[Vectors]:
        """Compute a batch and, where that fails, each of its requests alone: it costs nobody else theirs."""
        try:
            rows = self._computed(batch)
        except Exception as error:  # noqa: BLE001 - reported with the request it comes from; the engine goes on
            traceback.print_exception(error)
            alone = batch.by_request()
            if len(alone) > 1:
                return [vectors for one in alone for vectors in self._made_of(one)]
            self._fail(batch, error)
            return []
        self._settle(batch)
        return _by_request(batch, rows)

    def _computed(self, batch: Batch) -> list[bytes]:
        self._threads.suit(batch.padded_tokens)
        token_ids = [one.token_ids for _, one in batch.rows]
        dimensions = [request.embed.dimensions for request, _ in batch.rows]
        began_ns = self._clock_ns()
        try:
            return self._model.embed(token_ids, dimensions)
        finally:
            self._step_clock.add(self._clock_ns() - began_ns)

    def _fail(self, batch: Batch, error: Exception) -> None:
        for request in batch.requests:
            self._scheduler.remove(request.id)
            self._end(request, "failed", type(error).__name__)

    def _settle(self, batch: Batch) -> None:
        width, now_ns = len(batch.rows), self._clock_ns()
        for request in batch.requests:
            stamps = request.stamps
            stamps.finished_ns = now_ns
            stamps.batches += 1
            stamps.batch_width_sum += width
            stamps.batch_width_max = max(stamps.batch_width_max, width)
            if not request.left and self._scheduler.remove(request.id):
                self._end(request, "stop")

    def _end(self, request: Request, reason: EndReason, detail: str | None = None) -> None:
        self._ended.append(Embedded(request.id, reason, request.stamps, detail))


def _by_request(batch: Batch, rows: list[bytes]) -> list[Vectors]:
    positions, numbers = defaultdict[int, list[int]](list), defaultdict[int, list[bytes]](list)
    for (request, one), row in zip(batch.rows, rows, strict=True):
        positions[request.id].append(one.position)
        numbers[request.id].append(row)
    return [Vectors(key, positions[key], b"".join(numbers[key])) for key in positions]
