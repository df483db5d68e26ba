"""What `/api/traces` takes and gives. Times are RFC 3339 or seconds: JSON's numbers don't hold today's nanoseconds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from mlx_manager.observability.span_record import SpanKind, SpanStatus
from mlx_manager.traces.summary import TraceFilter, TraceStatus

NS_PER_S = 1_000_000_000
# SQLite's integers end here, in the year 2262.
LAST_NS = 2**63 - 1


def to_ns(moment: datetime) -> int:
    """Nanoseconds since the Unix epoch, within what SQLite can compare."""
    elapsed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return min(max(elapsed // timedelta(microseconds=1) * 1000, 0), LAST_NS)


def to_time(ns: int) -> datetime:
    """The moment that `ns` nanoseconds after the Unix epoch are, to the microsecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)


def to_seconds(ns: int) -> float:
    """Seconds that `ns` nanoseconds are."""
    return ns / NS_PER_S


def _sayable(value: object) -> object:
    """JSON has no word for a number that is none, or infinite: such an attribute is told as a text."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return [_sayable(item) for item in value] if isinstance(value, tuple) else value


def _attributes(found: Mapping[str, object]) -> dict[str, object]:
    return {name: _sayable(value) for name, value in found.items()}


Moment = Annotated[datetime, BeforeValidator(to_time)]
Elapsed = Annotated[float, BeforeValidator(to_seconds)]
Attributes = Annotated[dict[str, Any], BeforeValidator(_attributes)]
Word = Annotated[str, Field(min_length=1, max_length=500)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=2**40)]


class TraceQuery(BaseModel):
    """The query of `GET /api/traces`. A parameter that doesn't exist is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    model: Word | None = Field(None, description="Model asked for.")
    status: TraceStatus | None = None
    operation: Word | None = Field(None, description="`chat`, `text_completion` …")
    endpoint: Word | None = Field(None, description="Route, as `/v1/chat/completions`.")
    error_type: Word | None = Field(None, description="Code of the error.")
    session: Word | None = Field(None, description="Id of a conversation.")
    key_id: Word | None = Field(None, description="Id of the key or user that asked.")
    min_duration_s: Seconds | None = None
    max_duration_s: Seconds | None = None
    min_tokens: Tokens | None = Field(None, description="Input and output tokens together.")
    max_tokens: Tokens | None = None
    since: AwareDatetime | None = Field(None, description="Begun at this time or later.")
    until: AwareDatetime | None = Field(None, description="Begun before this time.")
    text: Word | None = Field(
        None, description="Part of a name or model, or the beginning of a trace or request id."
    )
    limit: int = Field(50, ge=1, le=500)
    cursor: Word | None = Field(None, description="`next_cursor` of the page above.")

    def to_filter(self) -> TraceFilter:
        """The same in the store's words."""
        values = self.model_dump(exclude={"since", "until", "limit", "cursor"})
        return TraceFilter(
            since_ns=to_ns(self.since) if self.since else None,
            until_ns=to_ns(self.until) if self.until else None,
            **values,
        )


class StatsQuery(BaseModel):
    """The query of `GET /api/traces/stats` and `/api/traces/gauges`."""

    model_config = ConfigDict(extra="forbid")

    since: AwareDatetime | None = Field(None, description="By default a day before `until`.")
    until: AwareDatetime | None = Field(None, description="By default now.")
    model: Word | None = Field(None, description="By default all.")
    buckets: int = Field(60, ge=1, le=1000, description="Columns that the time is cut into.")


class _Told(BaseModel):
    """Filled from the store's values, by their names."""

    model_config = ConfigDict(from_attributes=True)


class TraceLine(_Told):
    """One trace of a list; null where it has no such thing."""

    trace_id: str
    name: str
    service: str
    started_at: Moment = Field(validation_alias="started_ns")
    duration_s: Elapsed = Field(validation_alias="duration_ns")
    status: TraceStatus
    span_count: int
    error_type: str | None
    operation: str | None
    model: str | None
    provider: str | None
    backend: str | None
    endpoint: str | None
    http_status: int | None
    request_id: str | None
    session: str | None
    key_id: str | None
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    queue_s: float | None
    time_to_first_token_s: float | None
    time_per_output_token_s: float | None


class TraceListBody(_Told):
    """Some traces, newest first; `next_cursor` leads to the page below and is null on the last one."""

    traces: list[TraceLine]
    next_cursor: str | None


class EventBody(_Told):
    """Something that happened at one moment of a span."""

    name: str
    at: Moment = Field(validation_alias="at_ns")
    attributes: Attributes


class LinkBody(_Told):
    """Another span that this one has to do with."""

    trace_id: str
    span_id: str
    attributes: Attributes


class SpanBody(_Told):
    """One span; the OTLP export has its times to the nanosecond."""

    span_id: str
    parent_span_id: str | None
    name: str
    kind: SpanKind
    started_at: Moment = Field(validation_alias="start_ns")
    duration_s: Elapsed = Field(validation_alias="duration_ns")
    status: SpanStatus
    service: str
    scope: str
    attributes: Attributes
    resource: Attributes
    events: list[EventBody]
    links: list[LinkBody]


class TraceBody(_Told):
    """A whole trace; spans in the order of their start."""

    summary: TraceLine
    spans: list[SpanBody]


class PercentilesBody(_Told):
    """Seconds that 50, 95 and 99 of a hundred requests don't exceed, and a trace that took just so long."""

    count: int
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    p50_trace_id: str | None
    p95_trace_id: str | None
    p99_trace_id: str | None


class ModelStatsBody(_Told):
    """What one model did; `model` is null for requests that were refused before they reached one."""

    model: str | None
    requests: int
    errors: int
    cancelled: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    duration: PercentilesBody
    time_to_first_token: PercentilesBody
    time_per_output_token: PercentilesBody


class BucketBody(_Told):
    """One column of a chart."""

    start_at: Moment = Field(validation_alias="start_ns")
    requests: int
    errors: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    p50_s: float | None
    p95_s: float | None


class StatsBody(_Told):
    """Figures over a time: by model, the busiest first, and in columns of `bucket_s` seconds."""

    since: Moment = Field(validation_alias="since_ns")
    until: Moment = Field(validation_alias="until_ns")
    bucket_s: Elapsed = Field(validation_alias="bucket_ns")
    models: list[ModelStatsBody]
    buckets: list[BucketBody]


class GaugeBucketBody(_Told):
    """One column of a chart; null where nobody was there to look.

    Means are those of the column's time, the others the most at any time in it; bytes by what they hold, and together.
    """

    start_at: Moment = Field(validation_alias="start_ns")
    waiting_mean: float | None
    waiting_peak: int | None
    running_mean: float | None
    running_peak: int | None
    weights_bytes: int | None
    kv_bytes: int | None
    prefix_cache_bytes: int | None
    buffers_bytes: int | None
    held_bytes: int | None


class GaugesBody(_Told):
    """How busy and how full models were over a time, in columns of `bucket_s` seconds."""

    since: Moment = Field(validation_alias="since_ns")
    until: Moment = Field(validation_alias="until_ns")
    bucket_s: Elapsed = Field(validation_alias="bucket_ns")
    buckets: list[GaugeBucketBody]
