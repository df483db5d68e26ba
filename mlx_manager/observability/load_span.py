"""Spans of a load that no chat has asked for: like those below a chat, below the span of whoever asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace

from mlx_manager.chat.events import Timeline
from mlx_manager.errors import MlxManagerError
from mlx_manager.observability.phases import phases_until_admitted
from mlx_manager.observability.setup import span_writer


@contextmanager
def load_traced(timeline: Timeline) -> Iterator[None]:
    """When the block ends, write the phases that `timeline` knows of; the last one failed if the block did."""
    error_type = None
    try:
        yield
    except MlxManagerError as error:
        error_type = error.code
        raise
    except BaseException as error:
        error_type = type(error).__name__
        raise
    finally:
        _write(timeline, error_type)


def _write(timeline: Timeline, error_type: str | None) -> None:
    parent = trace.get_current_span()
    if not parent.is_recording():
        return
    spans = list(phases_until_admitted(timeline, time.time_ns()))
    if spans and error_type is not None:
        # They follow each other, so it is the last one that failed.
        spans[-1] = spans[-1]._replace(error_type=error_type)
    for span in spans:
        span_writer().write(parent, span)
