"""A model whose engine processes end before they have done any work is left alone for a while."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from mlx_manager.errors import ModelUnavailable

FRUITLESS_LIVES = 5
LONGEST_PAUSE_S = 600.0
# As long one request is waited for that shows whether the model works again.
TRIAL_S = 30.0
CircuitState = Literal["closed", "open", "half_open"]


class Breaker:
    """Opens after `FRUITLESS_LIVES` engine processes in a row that ended without a token, for `pause_s`.

    Then one request at a time may try (half open): work closes the circuit, another such end opens it for twice as
    long. A process that has worked doesn't count, however it ended: then it was this request or that, or somebody's
    kill.
    """

    def __init__(
        self, model_id: str, pause_s: float, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._model_id = model_id
        self._first_pause_s = pause_s
        self._clock_s = clock_s
        self._how = ""
        self.close()

    @property
    def fruitless_lives(self) -> int:
        """Engine processes in a row that ended without having worked."""
        return self._fruitless_lives

    @property
    def state(self) -> CircuitState:
        """`open`: nothing is tried; `half_open`: one request may."""
        if self._open_until_s is None:
            return "closed"
        return "open" if self._clock_s() < self._open_until_s else "half_open"

    @property
    def remaining_s(self) -> float:
        """How long it stays open."""
        return max((self._open_until_s or 0.0) - self._clock_s(), 0.0)

    def close(self) -> None:
        """The model works."""
        self._fruitless_lives = 0
        self._open_until_s: float | None = None
        self._trial_until_s = 0.0
        self._pause_s = self._first_pause_s

    def engine_ended(self, how: str, *, has_worked: bool) -> None:
        """An engine process has ended, or could not be started."""
        self._how = how
        if has_worked:
            self.close()
            return
        self._fruitless_lives += 1
        if self._fruitless_lives >= FRUITLESS_LIVES:
            self._open_until_s = self._clock_s() + self._pause_s
            self._trial_until_s = 0.0
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def admit(self) -> None:
        """Let a request try. Raises ModelUnavailable while it is open, and half open for all but the first."""
        if self.state == "closed":
            return
        now_s = self._clock_s()
        if self.state == "open" or now_s < self._trial_until_s:
            raise self.error()
        self._trial_until_s = now_s + TRIAL_S

    def error(self) -> ModelUnavailable:
        """Return what a request is told that isn't let through."""
        until_s = self._open_until_s or 0.0
        wait_s = max(until_s, self._trial_until_s) - self._clock_s()
        return ModelUnavailable(
            f"{self._model_id} is not tried for now: its last {self._fruitless_lives} engine processes ended before "
            f"they had done any work (the last one {self._how}). The server's log has what they said.",
            retry_after_s=max(math.ceil(wait_s), 1),
        )
