"""How long steps take, counted between fixed bounds: an addition per step, a handful of numbers per second."""

from __future__ import annotations

from bisect import bisect_left

from mlx_manager.mlx_server.engine.messages import STEP_BOUNDS_S, StepTimes


class StepClock:
    """Groups step durations by `STEP_BOUNDS_S`."""

    def __init__(self) -> None:
        self._bounds_ns = [round(bound_s * 1e9) for bound_s in STEP_BOUNDS_S]
        self._forget()

    def add(self, duration_ns: int) -> None:
        """Count one step."""
        group = bisect_left(self._bounds_ns, duration_ns)
        self._counts[group] += 1
        self._totals_ns[group] += duration_ns

    def take(self) -> list[StepTimes]:
        """Return the groups that have steps in them, and begin anew."""
        counted = zip(self._counts, self._totals_ns, strict=True)
        steps = [StepTimes(count, total_ns) for count, total_ns in counted if count]
        self._forget()
        return steps

    def _forget(self) -> None:
        self._counts = [0] * (len(self._bounds_ns) + 1)
        self._totals_ns = [0] * (len(self._bounds_ns) + 1)
