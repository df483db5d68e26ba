"""Whether an engine process is well: that it speaks, and that what it is given moves."""

from __future__ import annotations

import time

from mlx_manager.mlx_server.engine.messages import BEAT_S, Vitals


class Pulse:
    """Hears what an engine says. Silent, or without progress, for `timeout_s`, it counts as stalled."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._progress = 0
        self._idle_beats = 0
        self.made_s = self.heard_s = time.monotonic()

    def hear(self) -> None:
        """Note a sign of life, whatever it says."""
        self.heard_s = time.monotonic()

    def beat(self, vitals: Vitals) -> None:
        """Note a heartbeat: it says how far the work is, so standing still is counted in beats and needs no clock."""
        has_work = bool(vitals.sequence_ids)
        stands_still = has_work and vitals.progress == self._progress
        self._idle_beats = self._idle_beats + 1 if stands_still else 0
        self._progress = vitals.progress

    @property
    def fault(self) -> str | None:
        """What is wrong with it, in words that follow its name."""
        if time.monotonic() - self.heard_s > self._timeout_s:
            return f"stalled for {self._timeout_s:g} s"
        if self._idle_beats * BEAT_S > self._timeout_s:
            return f"got nothing done for {self._timeout_s:g} s"
        return None
