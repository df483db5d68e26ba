"""Keep the spans of this process in a store for as long as an application lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from mlx_manager.errors import TracesUnavailable
from mlx_manager.observability.setup import is_configured, span_sink
from mlx_manager.observability.span_records import SpanRecorder
from mlx_manager.traces.store import StoreOptions, TraceStore

logger = logging.getLogger(__name__)

CLOSE_S = 2.0


@asynccontextmanager
async def recording(path: Path, options: StoreOptions) -> AsyncIterator[TraceStore | None]:
    """Open the store at `path` and give it every span until the block ends, then write what waits, for two seconds.

    None, and a line in the log, when it can't be opened: that is no reason to answer no requests.
    """
    store = await asyncio.to_thread(_open, path, options)
    if store is None:
        yield None
        return
    try:
        # Whoever composes the application without telemetry has no spans; those of others can still come in.
        with span_sink(SpanRecorder(store.put), "store") if is_configured() else nullcontext():
            yield store
    finally:
        await asyncio.to_thread(store.close, CLOSE_S)


def _open(path: Path, options: StoreOptions) -> TraceStore | None:
    try:
        return TraceStore(path, options)
    except TracesUnavailable as error:
        logger.error("trace store is off: %(reason)s", {"reason": error.message})
        return None
