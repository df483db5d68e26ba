"""Where pages get traces from: the trace store, asked in a thread."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from mlx_manager.traces.reader import TraceReader


async def _reader(request: Request) -> TraceReader | None:
    reader: TraceReader | None = request.app.state.server.traces
    return reader


# None where the administrator has switched the store off.
CurrentTraces = Annotated[TraceReader | None, Depends(_reader)]
