"""From OpenTelemetry's metrics to Prometheus's families of samples.

Names and labels follow https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from opentelemetry.sdk.metrics import Exemplar as OtelExemplar
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtelMetric
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Labels = dict[str, str]
# The last exemplar of each sample. The SDK hands one out once, and a second scraper is to see it, too.
Exemplars = dict[tuple[str, frozenset[tuple[str, str]]], Exemplar]

_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent"}


def families(found: MetricsData, exemplars: Exemplars) -> list[Metric]:
    """Return all metrics, `target_info` first; `exemplars` is read and kept up to date.

    The first metric of a name decides what kind it is; those of another kind are left out.
    """
    made: dict[str, Metric] = {}
    for resource in found.resource_metrics:
        made.setdefault("target", _target(resource.resource))
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                family = _family(metric)
                if family and made.setdefault(family.name, family).type == family.type:
                    _Samples(made[family.name], exemplars).add(metric, _scope_labels(scope.scope))
    return list(made.values())


def family_name(name: str, unit: str, kind: str) -> tuple[str, str]:
    """Return the name, without the `_total` of a counter's samples, and the unit if the name ends with it."""
    plain = _plain(name)
    if kind == "counter":
        plain = plain.removesuffix("_total")
    word = _unit_word(unit, kind)
    if word and word not in plain.split("_"):
        plain = f"{plain}_{word}"
    return plain, word if word and plain.endswith(f"_{word}") else ""


def labels(attributes: Mapping[str, object]) -> Labels:
    """Return attributes as labels; the values of two that become one label are joined."""
    found = defaultdict[str, list[str]](list)
    for key in sorted(attributes):
        found[_plain(key)].append(_text(attributes[key]))
    return {key: ";".join(values) for key, values in found.items()}


class _Samples:
    """The samples of one family."""

    def __init__(self, family: Metric, exemplars: Exemplars) -> None:
        self._family = family
        self._exemplars = exemplars

    def add(self, metric: OtelMetric, scope: Labels) -> None:
        for point in metric.data.data_points:
            named = scope | labels(point.attributes or {})
            if isinstance(point, HistogramDataPoint):
                self._add_histogram(point, named)
            elif isinstance(point, NumberDataPoint):
                self._add_number(point, named)

    def _add_number(self, point: NumberDataPoint, named: Labels) -> None:
        if self._family.type == "counter":
            # A series is begun with zeros, which are examples of nothing.
            counted = [exemplar for exemplar in point.exemplars if exemplar.value]
            self._add(f"{self._family.name}_total", named, point.value, _exemplar(counted))
        else:
            self._family.add_sample(self._family.name, named, point.value)

    def _add_histogram(self, point: HistogramDataPoint, named: Labels) -> None:
        name = self._family.name
        bounds = [*map(floatToGoString, point.explicit_bounds), "+Inf"]
        within = defaultdict[int, list[OtelExemplar]](list)
        for exemplar in point.exemplars:
            within[bisect_left(point.explicit_bounds, exemplar.value)].append(exemplar)
        for index, (bound, count) in enumerate(
            zip(bounds, accumulate(point.bucket_counts), strict=True)
        ):
            self._add(f"{name}_bucket", {**named, "le": bound}, count, _exemplar(within[index]))
        self._family.add_sample(f"{name}_count", named, point.count)
        self._family.add_sample(f"{name}_sum", named, point.sum)

    def _add(self, name: str, named: Labels, value: float, newest: Exemplar | None) -> None:
        key = name, frozenset(named.items())
        if newest is not None:
            self._exemplars[key] = newest
        self._family.add_sample(name, named, value, exemplar=self._exemplars.get(key))


def _family(metric: OtelMetric) -> Metric | None:
    kind = _kind(metric)
    if kind is None:
        return None
    name, unit = family_name(metric.name, metric.unit or "", kind)
    return Metric(name, metric.description or "", kind, unit)


def _kind(metric: OtelMetric) -> str | None:
    match metric.data:
        case Histogram():
            return "histogram"
        case Sum(is_monotonic=True):
            return "counter"
        case Sum() | Gauge():
            return "gauge"
        case _:  # an exponential histogram, which this text format has no words for
            return None


def _target(resource: Resource) -> Metric:
    family = Metric("target", "What is speaking.", "info")
    family.add_sample("target_info", labels(resource.attributes), 1)
    return family


def _scope_labels(scope: InstrumentationScope) -> Labels:
    found = {"otel_scope_name": scope.name, "otel_scope_version": scope.version}
    return {key: value for key, value in found.items() if value}


def _exemplar(offered: Iterable[OtelExemplar]) -> Exemplar | None:
    """Return the newest that belongs to a trace."""
    traced = sorted(_traced(offered), key=lambda exemplar: exemplar.timestamp or 0.0)
    return traced[-1] if traced else None


def _traced(offered: Iterable[OtelExemplar]) -> Iterator[Exemplar]:
    for one in offered:
        trace_id, span_id = one.trace_id, one.span_id
        if trace_id and span_id:
            ids = {"trace_id": format_trace_id(trace_id), "span_id": format_span_id(span_id)}
            yield Exemplar(ids, one.value, one.time_unix_nano / 1e9)


def _unit_word(unit: str, kind: str) -> str:
    """Return the unit in full; counted things in braces have none, and a bare number only as a gauge."""
    if unit.startswith("{"):
        return ""
    if unit == "1":
        return "ratio" if kind == "gauge" else ""
    return _UNITS.get(unit, _plain(unit))


def _plain(name: str) -> str:
    """Return a name with letters, digits and single underscores only, not beginning with a digit."""
    plain = re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_") if name else ""
    return f"_{plain}" if plain[:1].isdigit() else plain


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # What UTF-8 can't hold would fail the whole scrape.
    return text.encode("utf-8", "replace").decode()
