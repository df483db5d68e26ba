"""The conventions' two metrics of calling a cloud provider: how long, and how many tokens."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import histogram, own_meter

ANTHROPIC_SCOPE = "com.anthropic.sdk.python"

_DIMENSIONS = (
    names.OPERATION_NAME,
    names.PROVIDER_NAME,
    names.REQUEST_MODEL,
    names.RESPONSE_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
    names.ERROR_TYPE,
)
_TOKENS = {"input": names.INPUT_TOKENS, "output": names.OUTPUT_TOKENS}


class ClientMetrics:
    """Records each call once, at its end, from the attributes of its span."""

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or own_meter()
        self._duration = histogram(meter, names.CLIENT_OPERATION_DURATION)
        self._tokens = histogram(meter, names.CLIENT_TOKEN_USAGE)

    def record(
        self, duration_s: float, call: Mapping[str, AttributeValue], context: Context
    ) -> None:
        """Record a call; the time of one that its reader left says nothing about the provider."""
        dimensions = {name: call[name] for name in _DIMENSIONS if name in call}
        if names.CANCELLED not in call:
            self._duration.record(duration_s, dimensions, context)
        for token_type, name in _TOKENS.items():
            count = call.get(name)
            if isinstance(count, int):
                self._tokens.record(count, {**dimensions, names.TOKEN_TYPE: token_type}, context)


class AnthropicCalls(SpanProcessor):
    """Measures the calls of Anthropic's SDK by the spans that it makes itself.

    So calls in a trace that isn't sampled are not measured: the SDK shows them to nobody.
    """

    def __init__(self, metrics: ClientMetrics) -> None:
        self._metrics = metrics

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing is known yet."""

    def on_end(self, span: ReadableSpan) -> None:
        """Measure the call that has ended."""
        scope, call = span.instrumentation_scope, span.attributes or {}
        if scope is None or scope.name != ANTHROPIC_SCOPE or names.OPERATION_NAME not in call:
            return
        if span.kind is SpanKind.CLIENT and span.context and span.start_time and span.end_time:
            duration_s = max(span.end_time - span.start_time, 0) / 1e9
            context = trace.set_span_in_context(trace.NonRecordingSpan(span.context))
            self._metrics.record(duration_s, call, context)
