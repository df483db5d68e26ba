"""From series to the figures that are printed and written: medians, ratios, percentiles."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.compare import BARE, Comparison
from benchmarks.contenders import Measured
from benchmarks.memory import Growth
from benchmarks.rounds import Series, extra_cpu_s_per_token, throughput_ratio
from benchmarks.telemetry import COMPARED, TelemetryCost
from benchmarks.work import Answers, ModelName, WorkName


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the extremes around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Figures:
    """One contender with one kind of work and number of clients.

    Times to the first token and gaps are over all rounds together; they are None where answers come whole. CPU is the
    server's own; its client's stands beside it.
    """

    model: ModelName
    work: WorkName
    clients: int
    contender: str
    requests: int
    failures: int
    tokens_per_s: Spread
    ratio: Spread
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    gap_p50_s: float | None
    gap_p99_s: float | None
    cpu_us_per_token: Spread
    api_cpu_us_per_token: float
    engine_cpu_us_per_token: float
    extra_cpu_us_per_token: Spread
    client_cpu_us_per_token: float | None


@dataclass(frozen=True, slots=True)
class TelemetryFigures:
    """One server as a share of another with less telemetry: throughput, and CPU time per token of all processes.

    The steadiest figure is what the API process spends more on a request: the engine has no telemetry, only noise.
    """

    telemetry: str
    against: str
    tokens_per_s: Spread
    throughput_ratio: Spread
    cpu_ratio: Spread
    api_cpu_us_per_request: float
    extra_api_cpu_us_per_request: Spread


@dataclass(frozen=True, slots=True)
class TelemetryPart:
    """All comparisons of servers that differ in their telemetry, and how much was asked of them together."""

    model: ModelName
    requests: int
    failures: int
    rows: list[TelemetryFigures]


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Resident memory of a process over many requests."""

    process: str
    requests: int
    first_mib: float
    last_mib: float
    growth_mib: float
    bytes_per_request: float
    series_mib: list[tuple[int, float]]


def comparison_figures(comparison: Comparison) -> list[Figures]:
    """Return the figures of every contender, by number of clients."""
    return [
        _figures(comparison, clients, series, by_name[BARE])
        for clients, by_name in comparison.series.items()
        for series in by_name.values()
    ]


def telemetry_figures(cost: TelemetryCost) -> TelemetryPart:
    """Return what each kind of telemetry costs."""
    return TelemetryPart(
        model=cost.model,
        requests=sum(map(_requests, cost.series.values())),
        failures=len(cost.failures),
        rows=[
            _telemetry_row(cost.series[name], cost.series[against]) for name, against in COMPARED
        ],
    )


def memory_figures(growth: Growth) -> MemoryFigures:
    """Return how a process grew."""
    mib = [rss / 2**20 for rss in growth.rss_bytes]
    return MemoryFigures(
        process=growth.process,
        requests=growth.requests[-1],
        first_mib=mib[0],
        last_mib=mib[-1],
        growth_mib=growth.growth_bytes / 2**20,
        bytes_per_request=growth.bytes_per_request,
        series_mib=list(zip(growth.requests, mib, strict=True)),
    )


def _telemetry_row(series: Series, base: Series) -> TelemetryFigures:
    return TelemetryFigures(
        telemetry=series.name,
        against=base.name,
        tokens_per_s=_spread(series, lambda measured: measured.tokens_per_s),
        throughput_ratio=Spread.of(series.compared(base, throughput_ratio)),
        cpu_ratio=Spread.of(
            series.compared(base, lambda own, other: own.cpu_s_per_token / other.cpu_s_per_token)
        ),
        api_cpu_us_per_request=series.median(_api_us_per_request),
        extra_api_cpu_us_per_request=Spread.of(
            series.compared(
                base, lambda own, other: _api_us_per_request(own) - _api_us_per_request(other)
            )
        ),
    )


def _figures(comparison: Comparison, clients: int, series: Series, bare: Series) -> Figures:
    first_token_s = _pooled(series, lambda answers: answers.first_token_s)
    gaps_s = _pooled(series, lambda answers: answers.gaps_s)
    has_client = all(measured.client_cpu_s is not None for measured in series.rounds)
    extra = [value * 1e6 for value in series.compared(bare, extra_cpu_s_per_token)]
    return Figures(
        model=comparison.model,
        work=comparison.work,
        clients=clients,
        contender=series.name,
        requests=_requests(series),
        failures=len(series.failures),
        tokens_per_s=_spread(series, lambda measured: measured.tokens_per_s),
        ratio=Spread.of(series.compared(bare, throughput_ratio)),
        first_token_p50_s=percentile(first_token_s, 0.5),
        first_token_p99_s=percentile(first_token_s, 0.99),
        gap_p50_s=percentile(gaps_s, 0.5),
        gap_p99_s=percentile(gaps_s, 0.99),
        cpu_us_per_token=_spread(series, lambda measured: measured.cpu_s_per_token * 1e6),
        api_cpu_us_per_token=series.median(lambda one: _per_token_us(one, one.cpu.api_s)),
        engine_cpu_us_per_token=series.median(lambda one: _per_token_us(one, one.cpu.engine_s)),
        extra_cpu_us_per_token=Spread.of(extra),
        client_cpu_us_per_token=(
            series.median(lambda one: _per_token_us(one, one.client_cpu_s or 0.0))
            if has_client
            else None
        ),
    )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that this share of `values` does not exceed; None when there are none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None


def _pooled(series: Series, values: Callable[[Answers], Iterable[float]]) -> list[float]:
    return [value for measured in series.rounds for value in values(measured.answers)]


def _spread(series: Series, figure: Callable[[Measured], float]) -> Spread:
    return Spread.of([figure(measured) for measured in series.rounds])


def _requests(series: Series) -> int:
    return sum(measured.answers.requests for measured in series.rounds)


def _per_token_us(measured: Measured, cpu_s: float) -> float:
    return cpu_s / max(measured.answers.tokens, 1) * 1e6


def _api_us_per_request(measured: Measured) -> float:
    return measured.cpu.api_s / max(measured.answers.requests, 1) * 1e6
