"""How much each sink has lost: what `mlx.telemetry.dropped` says."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping


class Losses:
    """Counts lost spans, and lost exports of metrics, by the name of the sink that lost them. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_sink = Counter[str]()

    def add(self, sink: str, count: int = 1) -> None:
        """Count what `sink` could neither keep nor pass on."""
        if count:
            with self._lock:
                self._by_sink[sink] += count

    def by_sink(self) -> Mapping[str, int]:
        """What each sink has lost since the process began; only sinks that lost something."""
        with self._lock:
            return dict(self._by_sink)
