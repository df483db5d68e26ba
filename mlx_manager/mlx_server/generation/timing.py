"""Map the engine's monotonic stamps to wall time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_manager.chat.events import Timeline
from mlx_manager.mlx_server.engine.messages import Stamps
from mlx_manager.mlx_server.workers.stream import TokenStream


class Clock:
    """One offset per process from the monotonic clock, which all processes of a machine share, to wall time."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    @contextmanager
    def recording(self, tokens: TokenStream, timeline: Timeline) -> Iterator[None]:
        """Write into `timeline` what is known of a sequence when the block is left, however it is left."""
        try:
            yield
        finally:
            self.record(tokens, timeline)

    def record(self, tokens: TokenStream, timeline: Timeline) -> None:
        """Write into `timeline` what is known of a sequence by now."""
        timeline.admitted_ns = self._wall(tokens.admitted_at_ns)
        timeline.first_token_ns = self._wall(tokens.first_token_at_ns)
        timeline.output_tokens = tokens.received_tokens
        if tokens.ended is not None:
            self._record_stamps(tokens.ended.stamps, timeline)
        elif tokens.admitted_at_ns is not None:
            timeline.finished_ns = time.time_ns()

    def _record_stamps(self, stamps: Stamps, timeline: Timeline) -> None:
        timeline.admitted_ns = self._wall(stamps.admitted_ns)
        timeline.first_token_ns = self._wall(stamps.first_token_ns)
        timeline.finished_ns = self._wall(stamps.last_token_ns)
        timeline.prefill_chunks = stamps.prefill_chunks
        timeline.output_tokens = stamps.output_tokens
        timeline.batch_width_sum = stamps.batch_width_sum
        timeline.batch_width_max = stamps.batch_width_max
        timeline.longest_gap_ns = stamps.longest_gap_ns

    def _wall(self, monotonic_ns: int | None) -> int | None:
        return None if monotonic_ns is None else monotonic_ns + self._offset_ns
