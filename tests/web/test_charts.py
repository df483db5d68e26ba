"""The figures of the dashboard: each curve has its own numbers under its own name, and sums are of what they say."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from mlx_manager.traces.samples import GaugeBucket, Gauges
from mlx_manager.traces.summary import ModelStats, Stats, StatsBucket
from mlx_manager.web.charts import Chart, gauge_charts, request_charts, rows
from mlx_manager.web.dashboard import Totals, totals

S = 10**9
WIDTH_S = 20
TIMES = (1000.0, 1020.0, 1040.0)
# No number stands in two places, so that none can be taken for another; nothing happened in the middle.
STATS = Stats(
    since_ns=1000 * S,
    until_ns=1060 * S,
    bucket_ns=WIDTH_S * S,
    models=(
        ModelStats(
            "org/a",
            requests=41,
            errors=5,
            cancelled=3,
            input_tokens=7000,
            cached_tokens=1100,
            output_tokens=900,
        ),
        ModelStats(
            None,
            requests=12,
            errors=8,
            cancelled=1,
            input_tokens=130,
            cached_tokens=70,
            output_tokens=60,
        ),
    ),
    buckets=(
        StatsBucket(
            1000 * S,
            requests=31,
            errors=6,
            input_tokens=4000,
            cached_tokens=1000,
            output_tokens=600,
            p50_s=0.5,
            p95_s=1.75,
        ),
        StatsBucket(1020 * S),
        StatsBucket(
            1040 * S,
            requests=22,
            errors=7,
            input_tokens=3200,
            cached_tokens=1600,
            output_tokens=300,
            p50_s=0.25,
            p95_s=4.5,
        ),
    ),
)
GAUGES = Gauges(
    since_ns=STATS.since_ns,
    until_ns=STATS.until_ns,
    bucket_ns=STATS.bucket_ns,
    buckets=(
        GaugeBucket(1000 * S),
        GaugeBucket(
            1020 * S,
            waiting_mean=1.5,
            waiting_peak=9,
            running_mean=2.5,
            running_peak=4,
            weights_bytes=10_000,
            kv_bytes=2000,
            prefix_cache_bytes=300,
            buffers_bytes=40,
            held_bytes=12_340,
        ),
        GaugeBucket(1040 * S),
    ),
)


def curves(chart: Chart) -> dict[str, tuple[float | None, ...]]:
    """The values of each curve by its name."""
    times, *values = chart.columns
    assert times == TIMES
    return dict(zip(chart.curves, values, strict=True))


def test_every_curve_of_the_requests_has_its_numbers_under_its_name() -> None:
    found = {chart.title: (chart.unit, curves(chart)) for chart in request_charts(STATS)}

    assert found == {
        "Latency": ("s", {"p50": (0.5, None, 0.25), "p95": (1.75, None, 4.5)}),
        "Tokens per second": ("tokens/s", {"out": (30, 0, 15), "in": (200, 0, 160)}),
        "Requests": ("requests", {"requests": (31, 0, 22), "errors": (6, 0, 7)}),
        "Prompt tokens from the cache": ("%", {"from the cache": (25, None, 50)}),
    }


def test_every_curve_of_the_gauges_has_its_numbers_under_its_name() -> None:
    found = {chart.title: (chart.unit, curves(chart)) for chart in gauge_charts(GAUGES)}

    assert found == {
        "Queue and batch": (
            "requests",
            {"waiting at most": (None, 9, None), "in a batch at most": (None, 4, None)},
        ),
        "Memory": (
            "bytes",
            {
                "weights": (None, 10_000, None),
                "keys and values": (None, 2000, None),
                "prefix cache": (None, 300, None),
                "buffers": (None, 40, None),
            },
        ),
    }


def test_only_counts_of_requests_are_bars() -> None:
    charts = [*request_charts(STATS), *gauge_charts(GAUGES)]

    assert [chart.title for chart in charts if chart.has_bars] == ["Requests"]


def test_the_table_has_what_was_seen_of_each_time_newest_first() -> None:
    busy, idle, quiet = rows(STATS, GAUGES)[::-1]

    first, _, last = STATS.buckets
    assert [one.requests for one in (busy, idle, quiet)] == list(STATS.buckets)
    assert [one.gauges for one in (busy, idle, quiet)] == list(GAUGES.buckets)
    assert [one.output_tokens_per_s for one in (busy, idle, quiet)] == [30, 0, 15]
    assert [one.input_tokens_per_s for one in (busy, idle, quiet)] == [200, 0, 160]
    assert [one.cached_percent for one in (busy, idle, quiet)] == [25, None, 50]
    unseen = replace(GAUGES, buckets=tuple(GaugeBucket(at.start_ns) for at in GAUGES.buckets))
    assert [one.requests for one in rows(STATS, unseen)] == [last, first]


def test_totals_are_sums_over_all_models_and_the_rate_is_a_seconds() -> None:
    assert totals(STATS) == Totals(
        requests=53,
        errors=13,
        cancelled=4,
        input_tokens=7130,
        cached_tokens=1170,
        output_tokens=960,
        output_tokens_per_s=960 / 60,
    )


def test_totals_of_nothing_are_nothing() -> None:
    assert set(astuple(totals(replace(STATS, models=())))) == {0}
    no_time = replace(STATS, since_ns=STATS.until_ns, models=())
    assert totals(no_time).output_tokens_per_s == pytest.approx(0)
