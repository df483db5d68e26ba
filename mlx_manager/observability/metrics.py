"""The instruments of a chat: how long, how soon, how fast, how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.util.types import AttributeValue

from mlx_manager.observability import attributes as names
from mlx_manager.observability.instruments import counter, histogram, own_meter


@dataclass(frozen=True, slots=True)
class Measured:
    """One chat in numbers, in seconds; None for what it didn't reach."""

    duration_s: float
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one chat; `cached` are part of `input`."""

    input: int
    output: int
    cached: int


class ChatMetrics:
    """Records each chat once, at its end.

    `context` carries the chat's span, so that an exemplar leads from a bucket to the trace.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        meter = meter or own_meter()
        self._duration = histogram(meter, names.REQUEST_DURATION)
        self._first_token = histogram(meter, names.TIME_TO_FIRST_TOKEN)
        self._per_token = histogram(meter, names.TIME_PER_OUTPUT_TOKEN)
        self._cancelled = counter(meter, names.REQUESTS_CANCELLED)
        self._tokens = counter(meter, names.TOKENS)
        self._prefix_cache = counter(meter, names.PREFIX_CACHE_TOKENS)

    def completed(
        self, chat: Measured, dimensions: Mapping[str, AttributeValue], context: Context
    ) -> None:
        """Record a chat that came to its end, well or badly."""
        self._duration.record(chat.duration_s, dimensions, context)
        if chat.time_to_first_token_s is not None:
            self._first_token.record(chat.time_to_first_token_s, dimensions, context)
        if chat.time_per_output_token_s is not None:
            self._per_token.record(chat.time_per_output_token_s, dimensions, context)

    def cancelled(self, dimensions: Mapping[str, AttributeValue], context: Context) -> None:
        """Count a chat that its client left; its duration says nothing about the server."""
        self._cancelled.add(1, dimensions, context)

    def used(
        self, tokens: Tokens, dimensions: Mapping[str, AttributeValue], context: Context
    ) -> None:
        """Count the tokens of a chat whose prompt was read, however it ended."""
        by_kind = {"input": tokens.input, "output": tokens.output, "cached": tokens.cached}
        for kind, count in by_kind.items():
            self._tokens.add(count, {**dimensions, names.KIND: kind}, context)

    def prefilled(
        self, tokens: Tokens, dimensions: Mapping[str, AttributeValue], context: Context
    ) -> None:
        """Count what our own engine computed of the prompt, and what it had in its cache."""
        by_outcome = {"computed": tokens.input - tokens.cached, "cached": tokens.cached}
        for outcome, count in by_outcome.items():
            self._prefix_cache.add(count, {**dimensions, names.OUTCOME: outcome}, context)
