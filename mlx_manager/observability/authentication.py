"""The span of looking at a key: below the server span, as a request that is refused gets no further."""

from __future__ import annotations

from opentelemetry import trace

from mlx_manager.errors import InvalidApiKey
from mlx_manager.observability import attributes as names
from mlx_manager.observability.finished_spans import FinishedSpan
from mlx_manager.observability.setup import span_writer


def note_refused(method: str, route: str) -> None:
    """Say on the server span where a request wanted to go that never came to its route."""
    request = trace.get_current_span()
    request.set_attribute(names.HTTP_ROUTE, route)
    request.update_name(f"{method} {route}")


def note_authentication(key_id: str | None, start_ns: int, end_ns: int) -> None:
    """Write down whose key it was, by its id; None when it was nobody's."""
    request = trace.get_current_span()
    if not request.is_recording():
        return
    attributes = {names.KEY_ID: key_id} if key_id else {}
    error_type = None if key_id else InvalidApiKey.code
    found = FinishedSpan(names.SPAN_AUTHENTICATE, start_ns, end_ns, attributes, error_type)
    span_writer().write(request, found)
