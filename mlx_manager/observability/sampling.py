"""Which traces are exported. All of them are recorded: the local store samples by its own rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


@dataclass(frozen=True, slots=True)
class Sampling:
    """What leaves the machine: `ratio` of all traces, and of the rest those that failed or were slow.

    Slow is what takes longer than `slow_s`, or than 99 % of the latest requests to the same route, or than each of the
    100 before it. `honours_caller` false means that a caller's own decision, in its `traceparent`, counts for nothing.
    Without `keeps_striking` failures and slow ones are sampled like all others.
    """

    ratio: float = 1.0
    slow_s: float | None = None
    honours_caller: bool = True
    keeps_striking: bool = True


def sampling_from(
    environ: Mapping[str, str], ratio: float | None = None, slow_s: float | None = None
) -> Sampling:
    """The settings if they say something, else OpenTelemetry's `OTEL_TRACES_SAMPLER` and its argument."""
    if ratio is not None:
        return Sampling(ratio, slow_s)
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    kind = name.removeprefix("parentbased_")
    honours_caller = kind != name or not name
    if kind == "traceidratio":
        return Sampling(_ratio(environ.get("OTEL_TRACES_SAMPLER_ARG", "")), slow_s, honours_caller)
    if kind == "always_off":
        return Sampling(0.0, slow_s, honours_caller, keeps_striking=False)
    return Sampling(1.0, slow_s, honours_caller)


def _ratio(text: str) -> float:
    """The standard's rule: what isn't a ratio is as if it were not there, and all are sampled."""
    try:
        ratio = float(text)
    except ValueError:
        return 1.0
    return ratio if math.isfinite(ratio) and 0.0 <= ratio <= 1.0 else 1.0


class RecordingSampler(Sampler):
    """Records every span, and sets the sampled flag on those that are exported whatever happens.

    The flag is what `traceparent` tells the services that are called: what the caller decided, else the ratio.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._honours_caller = sampling.honours_caller
        self._ratio = sampling.ratio
        self._bound = TraceIdRatioBased.get_bound_for_rate(sampling.ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Record it; sampled as its parent is, or by its trace's id."""
        parent = get_current_span(parent_context).get_span_context()
        if parent.is_valid and (self._honours_caller or not parent.is_remote):
            is_sampled = parent.trace_flags.sampled
        else:
            is_sampled = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        return SamplingResult(
            Decision.RECORD_AND_SAMPLE if is_sampled else Decision.RECORD_ONLY,
            attributes,
            parent.trace_state if parent.is_valid else None,
        )

    def get_description(self) -> str:
        """What the SDK may print."""
        return f"RecordingSampler{{{self._ratio}}}"
