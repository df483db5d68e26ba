"""The metrics of the engine processes: what happens to them, and how they are when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

from mlx_manager.mlx_server.engine.messages import StepTimes
from mlx_manager.mlx_server.pool.ledger import held_bytes
from mlx_manager.mlx_server.pool.pool import ModelPool, Resident
from mlx_manager.mlx_server.workers.process import EngineProcess
from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import counter, histogram, own_meter
from mlx_manager.observability.observed import Figure

# What an engine does for its whole batch belongs to no trace; ambient is that of whoever had it started. An empty
# context won't do: OpenTelemetry takes it for none that was given.
_NO_TRACE = set_span_in_context(INVALID_SPAN, Context())

FILE_OUTCOMES = ("written", "read", "corrupt", "failed", "skipped")


class EngineMetrics:
    """An `EngineWatch` that measures."""

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or own_meter()
        self._load_duration = histogram(meter, names.MODEL_LOAD_DURATION)
        self._step_duration = histogram(meter, names.ENGINE_STEP_DURATION)
        self._restarts = counter(meter, names.WORKER_RESTARTS)
        self._resumed = counter(meter, names.REQUESTS_RESUMED)

    def loaded(self, model_id: str, seconds: float) -> None:
        """See `EngineWatch`."""
        self._load_duration.record(seconds, _of(model_id))
        # A counter that begins with its first restart hides it: there is no zero to see it rise from.
        self._restarts.add(0, _of(model_id), _NO_TRACE)
        self._resumed.add(0, _of(model_id), _NO_TRACE)

    def load_failed(self, model_id: str, seconds: float, error_type: str) -> None:
        """See `EngineWatch`."""
        self._load_duration.record(seconds, {**_of(model_id), names.ERROR_TYPE: error_type})

    def restarted(self, model_id: str) -> None:
        """See `EngineWatch`."""
        self._restarts.add(1, _of(model_id), _NO_TRACE)

    def resumed(self, model_id: str) -> None:
        """See `EngineWatch`."""
        self._resumed.add(1, _of(model_id), _NO_TRACE)

    def stepped(self, model_id: str, steps: list[StepTimes]) -> None:
        """Record each step, as long as the mean of its group: count, sum and buckets are those of the engine."""
        dimensions = _of(model_id)
        for group in steps:
            mean_s = group.total_ns / group.count / 1e9
            for _ in range(group.count):
                self._step_duration.record(mean_s, dimensions, _NO_TRACE)


def engine_figures(pool: ModelPool) -> Iterator[Figure]:
    """How the models in memory are, by what their engines said within the last second; a dead one says nothing."""
    yield Figure(names.MEMORY_BUDGET, pool.ledger.budget_bytes)
    for resident in pool.residents:
        yield Figure(names.REQUESTS_ACTIVE, resident.leases, _of(resident.files.id))
        is_open = resident.circuit != "closed"
        yield Figure(names.CIRCUIT_OPEN, int(is_open), _of(resident.files.id))
        engine = resident.engine
        if engine is not None and engine.is_alive:
            yield from _load(resident, engine)
            yield from _prefix_files(resident, engine)
            for kind, count in engine.row_difference.counts.items():
                yield Figure(
                    names.ROW_DIFFERENCE, count, {**_of(resident.files.id), names.KIND: kind}
                )
        yield from _memory(resident)


def _load(resident: Resident, engine: EngineProcess) -> Iterator[Figure]:
    if (vitals := engine.vitals) is not None:
        yield Figure(names.QUEUE_DEPTH, vitals.waiting, _of(resident.files.id))
        yield Figure(names.BATCH_WIDTH, vitals.running, _of(resident.files.id))


def _memory(resident: Resident) -> Iterator[Figure]:
    """What the engine holds, and what is set aside for it."""
    model = _of(resident.files.id)
    for kind, held in held_bytes(resident.engine).items():
        yield Figure(names.MEMORY, held, {**model, names.KIND: kind})
    for kind, reserved in resident.reservation.entries.items():
        yield Figure(names.MEMORY_RESERVED, reserved, {**model, names.KIND: kind})


def _prefix_files(resident: Resident, engine: EngineProcess) -> Iterator[Figure]:
    files = engine.vitals.prefix_files if engine.vitals is not None else None
    if files is None:
        return
    yield Figure(names.PREFIX_FILES_SIZE, files.nbytes, _of(resident.files.id))
    for outcome in FILE_OUTCOMES:
        count = getattr(files, outcome)
        yield Figure(names.PREFIX_FILES, count, {**_of(resident.files.id), names.OUTCOME: outcome})


def _of(model_id: str) -> dict[str, str]:
    return {names.REQUEST_MODEL: model_id}
