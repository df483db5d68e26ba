"""`TraceReader`: what a trace store can be asked. Every call blocks: an async caller uses `asyncio.to_thread`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from mlx_manager.database import explain
from mlx_manager.errors import TracesUnavailable
from mlx_manager.traces import figures, listing, samples
from mlx_manager.traces.connections import Connections
from mlx_manager.traces.samples import Gauges
from mlx_manager.traces.summary import Stats, Trace, TraceFilter, TracePage


class TraceReader:
    """Answers from any thread, also while this or another process writes. Raises TracesUnavailable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections = Connections(path)

    def list_traces(
        self, wanted: TraceFilter, limit: int = 50, cursor: str | None = None
    ) -> TracePage:
        """The newest traces that fit, at most `limit`; `cursor` is an earlier page's `next_cursor`.

        Raises InvalidQuery with `param="cursor"` for a cursor that no page gave out.
        """
        with self._reading() as connection:
            return listing.list_traces(connection, wanted, limit, cursor)

    def get_trace(self, trace_id: str) -> Trace | None:
        """One trace with all its spans; None for an id that isn't kept. `trace_id` is 32 hex digits."""
        with self._reading() as connection:
            return listing.get_trace(connection, trace_id)

    def find_ids(self, prefix: str, limit: int = 10) -> tuple[str, ...]:
        """Ids of kept traces that begin with `prefix`, in order, at most `limit`."""
        with self._reading() as connection:
            return listing.find_ids(connection, prefix, limit)

    def stats(
        self, since_ns: int, until_ns: int, model: str | None = None, buckets: int = 60
    ) -> Stats:
        """Requests, tokens and percentiles in `[since_ns, until_ns)`, of one model or of all."""
        with self._reading() as connection:
            return figures.stats(connection, since_ns, until_ns, model, buckets)

    def gauges(
        self, since_ns: int, until_ns: int, model: str | None = None, buckets: int = 60
    ) -> Gauges:
        """How busy and how full models were in `[since_ns, until_ns)`, one of them or all together."""
        with self._reading() as connection:
            return samples.gauges(connection, since_ns, until_ns, model, buckets)

    def models(self) -> tuple[str, ...]:
        """Names of the models that kept traces speak of, in order."""
        with self._reading() as connection:
            return listing.models(connection)

    def close_connections(self) -> None:
        """Close what no query is using."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_connections()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection within one snapshot: what several statements see belongs together."""
        with self._connections.lease() as connection:
            try:
                connection.execute("BEGIN")
                yield connection
            except sqlite3.Error as error:
                raise TracesUnavailable(
                    f"The trace store {self.path} can't be read: {explain(error)}. The server's log may say more."
                ) from error
            finally:
                connection.rollback()
