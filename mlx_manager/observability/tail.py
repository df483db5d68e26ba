"""Keep a trace that the ratio left out when it failed or was slow: known only at its end, so its spans wait here."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode

from mlx_manager.observability.losses import Losses
from mlx_manager.observability.sampling import Sampling

# What the sampler held back on purpose, in `Losses`.
SINK = "sampler"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, and how long; beyond it the oldest are decided on with what is known of them."""

    traces: int = 1000
    spans: int = 20_000
    spans_per_trace: int = 1000
    age_s: float = 900.0


@dataclass(slots=True, eq=False)
class _Segment:
    """This process's part of a trace: a local root and all below it."""

    began_s: float
    open_spans: int = 0
    spans: list[ReadableSpan] = field(default_factory=list)
    is_striking: bool = False
    is_kept: bool | None = None


class TailSampler(SpanProcessor):
    """Hands on the spans of traces that are sampled, and of those that turn out to matter.

    What is sampled passes at once. Of what is not, a caller's own "no" is final (the trace store has it all the same);
    the rest waits until the last span below its local root has ended. Stands behind the `Redactor`.
    """

    def __init__(
        self,
        sampling: Sampling,
        emit: Callable[[ReadableSpan], None],
        losses: Losses,
        *,
        limits: Limits | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sampling = sampling
        self._emit = emit
        self._losses = losses
        self._limits = limits or Limits()
        self._clock_s = clock_s
        self._slowness = Slowness(sampling.slow_s)
        self._lock = threading.Lock()
        self._by_open_span: dict[int, _Segment] = {}
        self._waiting = OrderedDict[_Segment, None]()
        self._waiting_spans = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Find out which waiting trace `span` belongs to, or begin one."""
        context = span.get_span_context()
        if context.trace_flags.sampled or not self._sampling.keeps_striking:
            return
        with self._lock:
            segment = self._segment_for(span)
            if segment is not None:
                segment.open_spans += 1
                self._by_open_span[context.span_id] = segment
            kept = self._settle_overdue()
        self._hand_on(kept)

    def on_end(self, span: ReadableSpan) -> None:
        """Hand it on, let it wait or leave it."""
        is_slow = _is_local_root(span) and self._slowness.observe(span.name, _duration_s(span))
        if span.context is None or span.context.trace_flags.sampled:
            self._emit(span)
            return
        with self._lock:
            segment = self._segment_of_ended(span, span.context.span_id)
            kept = self._add(segment, span, is_slow) if segment else None
        if kept is None:
            self._losses.add(SINK)
        else:
            self._hand_on(kept)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Decide on what has waited too long."""
        with self._lock:
            kept = self._settle_overdue()
        self._hand_on(kept)
        return True

    def shutdown(self) -> None:
        """Decide on all that waits."""
        with self._lock:
            kept = [span for segment in list(self._waiting) for span in self._settle(segment)]
        self._hand_on(kept)

    def _segment_for(self, span: Span) -> _Segment | None:
        if not _is_local_root(span):
            return self._by_open_span.get(span.parent.span_id) if span.parent else None
        if span.parent is not None and self._sampling.honours_caller:
            return None
        segment = _Segment(self._clock_s())
        self._waiting[segment] = None
        return segment

    def _segment_of_ended(self, span: ReadableSpan, span_id: int) -> _Segment | None:
        segment = self._by_open_span.pop(span_id, None)
        if segment is None and span.parent is not None:
            # One that was over when it was made, and so never began here.
            segment = self._by_open_span.get(span.parent.span_id)
            if segment is not None:
                segment.open_spans += 1
        return segment

    def _add(self, segment: _Segment, span: ReadableSpan, is_slow: bool) -> list[ReadableSpan]:
        """Take the span in and return those that can go on now."""
        is_striking = is_slow or span.status.status_code is StatusCode.ERROR
        segment.open_spans -= 1
        if segment.is_kept is not None:
            if segment.is_kept or is_striking:
                return [span]
            self._losses.add(SINK)
            return []
        segment.is_striking = segment.is_striking or is_striking
        segment.spans.append(span)
        self._waiting_spans += 1
        if segment.open_spans == 0 or len(segment.spans) >= self._limits.spans_per_trace:
            return self._settle(segment)
        return self._settle_overdue()

    def _settle_overdue(self) -> list[ReadableSpan]:
        kept: list[ReadableSpan] = []
        oldest_s = self._clock_s() - self._limits.age_s
        while self._waiting and self._is_overdue(segment := next(iter(self._waiting)), oldest_s):
            kept += self._settle(segment)
        return kept

    def _is_overdue(self, oldest: _Segment, oldest_s: float) -> bool:
        return (
            oldest.began_s < oldest_s
            or len(self._waiting) > self._limits.traces
            or self._waiting_spans > self._limits.spans
        )

    def _settle(self, segment: _Segment) -> list[ReadableSpan]:
        del self._waiting[segment]
        spans, segment.spans = segment.spans, []
        self._waiting_spans -= len(spans)
        segment.is_kept = segment.is_striking
        if segment.is_kept:
            return spans
        self._losses.add(SINK, len(spans))
        return []

    def _hand_on(self, spans: list[ReadableSpan]) -> None:
        for span in spans:
            self._emit(span)


class Slowness:
    """Knows how long the latest requests of each name took, and so which are slow: longer than 99 % of them.

    Slow is also what takes longer than each of the 100 before it. So of any stretch of requests, the `FIRST` apart, the
    slowest is among the slow ones, unless one of the 100 that came just before the stretch was slower still.
    """

    WINDOW = 500
    # Fewer say nothing about a hundredth of them.
    LEAST = 100
    RENEW_EVERY = 50
    MOST_NAMES = 200
    # Of the first ones each second would be slower than those before it.
    FIRST = 5

    def __init__(self, slow_s: float | None) -> None:
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._by_name = OrderedDict[str, _Durations]()

    def observe(self, name: str, duration_s: float) -> bool:
        """Take one in and say whether it is slow."""
        with self._lock:
            durations = self._by_name.setdefault(name, _Durations())
            self._by_name.move_to_end(name)
            if len(self._by_name) > self.MOST_NAMES:
                self._by_name.popitem(last=False)
            is_slow = durations.is_slow(duration_s)
            durations.add(duration_s)
        return is_slow or (self._slow_s is not None and duration_s > self._slow_s)


class _Durations:
    def __init__(self) -> None:
        self._limit_s: float | None = None
        self._latest = deque[float](maxlen=Slowness.WINDOW)
        self._last_few = deque[float](maxlen=Slowness.LEAST)
        self._since_renewal = 0

    def is_slow(self, duration_s: float) -> bool:
        if self._limit_s is not None and duration_s > self._limit_s:
            return True
        return len(self._last_few) >= Slowness.FIRST and duration_s > max(self._last_few)

    def add(self, duration_s: float) -> None:
        self._latest.append(duration_s)
        self._last_few.append(duration_s)
        self._since_renewal += 1
        if self._since_renewal >= Slowness.RENEW_EVERY and len(self._latest) >= Slowness.LEAST:
            self._since_renewal = 0
            self._limit_s = sorted(self._latest)[int(len(self._latest) * 0.99) - 1]


def _is_local_root(span: ReadableSpan) -> bool:
    return span.parent is None or span.parent.is_remote


def _duration_s(span: ReadableSpan) -> float:
    return ((span.end_time or 0) - (span.start_time or 0)) / 1e9
