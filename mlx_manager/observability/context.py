"""The trace that the running request belongs to, for response headers, errors and logs."""

from __future__ import annotations

from opentelemetry import trace

from mlx_manager.observability.attributes import REQUEST_ID


def current_trace_id() -> str | None:
    """The 32 hex digits of the current trace, or None outside of one.

    Valid anywhere inside the application: middleware added with `add_middleware`, exception handlers (the one for
    `Exception` too), routes and the `send` of any of them, so also at `http.response.start`. FastAPI opens the server
    span around the whole middleware stack; only an ASGI wrapper *around* the application object is outside of it.
    None for excluded paths. An unsampled trace (`traceparent` with flag 00) still has its id.
    """
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None


def current_ids() -> dict[str, str]:
    """What a log line says of where it was written: `request_id`, `trace_id` and `span_id`, as far as there is one."""
    span = trace.get_current_span()
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    # The SDK's spans can be read, those of its interface can't.
    request_id = (getattr(span, "attributes", None) or {}).get(REQUEST_ID)
    return {
        **({"request_id": str(request_id)} if request_id else {}),
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def tag_request(request_id: str) -> None:
    """Put the request's id on the current server span, so that it and the header lead to each other."""
    trace.get_current_span().set_attribute(REQUEST_ID, request_id)
