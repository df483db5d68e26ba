"""What a trace store can be asked. Every call blocks: an async caller wraps it in `asyncio.to_thread`."""

from __future__ import annotations

from typing import Protocol

from mlx_manager.traces.summary import Stats, Trace, TraceFilter, TracePage


class TraceReader(Protocol):
    """Answers from any thread, also while spans are being written."""

    def list_traces(
        self, wanted: TraceFilter, limit: int = 50, cursor: str | None = None
    ) -> TracePage:
        """The newest traces that fit, at most `limit`; `cursor` is an earlier page's `next_cursor`.

        Raises InvalidRequest with `param="cursor"` for a cursor that no page gave out.
        """

    def get_trace(self, trace_id: str) -> Trace | None:
        """One trace with all its spans; None for an id that isn't kept. `trace_id` is 32 hex digits."""

    def stats(
        self, since_ns: int, until_ns: int, model: str | None = None, buckets: int = 60
    ) -> Stats:
        """Requests, tokens and percentiles in `[since_ns, until_ns)`, of one model or of all."""

    def models(self) -> tuple[str, ...]:
        """Names of the models that kept traces speak of, in order."""
