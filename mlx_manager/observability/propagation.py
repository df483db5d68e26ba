"""Which trace a request belongs to: `traceparent` and a short `tracestate`, from its headers and into those we send."""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import CarrierT, Getter, default_getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mlx_manager.observability.known_secrets import holds_secret

# Every implementation has to pass on 512 characters: https://www.w3.org/TR/trace-context/#tracestate-limits
HEADER_LENGTH = 512


class BoundedTraceContext(TraceContextTextMapPropagator):
    """W3C's trace context, of which headers that are too long are not read.

    OpenTelemetry parses `tracestate` in quadratic time, on the event loop: 60,000 blanks took 13 s. Baggage is left
    out on purpose: it would carry whatever a caller writes into a header on to the clouds that we call. Its one use,
    the conversation's id, is read by `mlx_server.middleware.session`.
    """

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """The context with the caller's trace in it, if the headers name one."""
        return super().extract(carrier, context, _ShortHeaders(getter))


class _ShortHeaders(Getter[CarrierT]):
    def __init__(self, headers: Getter[CarrierT]) -> None:
        self._headers = headers

    def get(self, carrier: CarrierT, key: str) -> list[str] | None:
        values = self._headers.get(carrier, key)
        if values is None or sum(map(len, values)) > HEADER_LENGTH:
            return None
        # A key of 32 hex digits would be the trace's id everywhere, one in `tracestate` in each exported span.
        if any(map(holds_secret, values)):
            return None
        # Empty ones count, too: they are joined and taken apart again.
        return values[:32]

    def keys(self, carrier: CarrierT) -> list[str]:
        return self._headers.keys(carrier)
