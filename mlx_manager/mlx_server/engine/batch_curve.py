"""How long steps take by how many rows decode in them: does a model get faster in company, and up to how many?"""

from __future__ import annotations

from collections import deque
from statistics import median

from mlx_manager.mlx_server.engine.messages import BatchPoint

# Of so many steps the middle one is told: now and then one is disturbed.
REMEMBERED_STEPS = 64
# Fewer say nothing yet.
LEAST_STEPS = 8


class BatchCurve:
    """Remembers the last steps of each width that have decoded and read nothing."""

    def __init__(self) -> None:
        self._step_ns: dict[int, deque[int]] = {}

    def note(self, step_ns: int, prompt_tokens: int, rows: int) -> None:
        """Take note of a step that has computed so many prompt tokens and one token of each of `rows`."""
        if rows and not prompt_tokens:
            self._step_ns.setdefault(rows, deque(maxlen=REMEMBERED_STEPS)).append(step_ns)

    def points(self) -> list[BatchPoint]:
        """Return what is known, the narrowest batch first."""
        return [
            BatchPoint(rows, int(median(step_ns)))
            for rows, step_ns in sorted(self._step_ns.items())
            if len(step_ns) >= LEAST_STEPS
        ]
