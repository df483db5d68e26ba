"""How long an end may still be held up: by what happens at an application's end and, after it, at its process's."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """`length_s` from when it was begun last; all of it where nothing has begun, or where that was another end."""

    def __init__(self, length_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._length_s = length_s
        self._clock_s = clock_s
        self._end_s: float | None = None

    def begin(self) -> None:
        """Count from now on."""
        self._end_s = self._clock_s() + self._length_s

    def left_s(self) -> float:
        """What is left of it, 0 when it is over. A process that lives on for as long again has another end."""
        if self._end_s is None:
            return self._length_s
        left_s = self._end_s - self._clock_s()
        return self._length_s if left_s < -self._length_s else max(left_s, 0.0)
