"""Metrics that are read when somebody asks: whoever has figures now is asked for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from mlx_manager.observability import attributes as names
from mlx_manager.observability.attributes import Metric
from mlx_manager.observability.instruments import own_meter


@dataclass(frozen=True, slots=True)
class Figure:
    """What one metric of `attributes.OBSERVED` is now, for one set of dimensions."""

    metric: Metric
    value: float
    dimensions: Mapping[str, str] = field(default_factory=dict)


# Called on a reader's thread, once for each observed metric, so it only looks and never waits.
Source = Callable[[], Iterable[Figure]]


def dropped(counts: Mapping[str, Callable[[], int]]) -> Source:
    """Return the source of what sinks of telemetry have left out, by the sink's name, since each began."""
    return lambda: [
        Figure(names.TELEMETRY_DROPPED, count(), {names.SINK: sink})
        for sink, count in counts.items()
    ]


class Observed:
    """The observable instruments of the process. OpenTelemetry can't take one back, so sources come and go here."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._lock = threading.Lock()
        self._sources: tuple[Source, ...] = ()
        meter = meter or own_meter()
        make = {"gauge": meter.create_observable_gauge, "counter": meter.create_observable_counter}
        for metric in names.OBSERVED:
            make[metric.kind](
                metric.name, [partial(self._observe, metric)], metric.unit, metric.description
            )

    @contextmanager
    def attached(self, source: Source) -> Iterator[None]:
        """Ask `source`, too, until the block ends."""
        with self._lock:
            self._sources = (*self._sources, source)
        try:
            yield
        finally:
            with self._lock:
                self._sources = tuple(kept for kept in self._sources if kept is not source)

    def _observe(self, metric: Metric, options: CallbackOptions) -> Iterable[Observation]:
        for source in self._sources:
            for figure in source():
                if figure.metric is metric:
                    yield Observation(figure.value, figure.dimensions)
