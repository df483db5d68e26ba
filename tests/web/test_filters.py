"""Filters as they stand in an address, figures in words, curves as paths."""

from __future__ import annotations

import pytest

from mlx_manager.traces.summary import Stats, StatsBucket, TraceFilter
from mlx_manager.traces.words import bytes_text, duration_text, plural
from mlx_manager.web.filters import PERIODS, Question, TraceQuestion
from mlx_manager.web.sparkline import sparkline


def test_a_question_goes_through_an_address_and_back() -> None:
    question = Question.read({"text": " a&b ", "status": "error", "min_ms": "10", "cursor": "x"})

    assert question.address("/traces") == "/traces?text=a%26b&status=error&min_ms=10"
    assert question.address("/traces", cursor="5-a").endswith("&cursor=5-a")
    assert Question().address("/traces") == "/traces"
    of_traces = TraceQuestion.read({"session": "a/b", "min_tokens": "7", "status": "ok"})
    assert of_traces.query == "status=ok&min_tokens=7&session=a%2Fb"
    assert (TraceQuestion().is_empty, of_traces.is_empty) == (True, False)


def test_a_stretch_of_time_reads_well_in_a_sentence() -> None:
    assert [one.last for one in PERIODS] == [
        "the last 15 minutes",
        "the last hour",
        "the last 6 hours",
        "the last 24 hours",
        "the last 7 days",
    ]


def test_a_question_becomes_a_filter() -> None:
    question = TraceQuestion(
        "x", "cancelled", "m", "k", "10", "2500.5", "1h", "20", "300", "talk/7"
    )

    assert question.to_filter(now_ns=4_000 * 10**9) == TraceFilter(
        text="x",
        status="cancelled",
        model="m",
        session="talk/7",
        key_id="k",
        min_duration_s=0.01,
        max_duration_s=2.5005,
        min_tokens=20,
        max_tokens=300,
        since_ns=400 * 10**9,
    )


@pytest.mark.parametrize("nonsense", ["", "nan", "inf", "-5", "ten", "1e999"])
def test_what_cannot_be_understood_asks_for_nothing(nonsense: str) -> None:
    question = TraceQuestion(
        status=nonsense,
        min_ms=nonsense,
        max_ms=nonsense,
        time=nonsense,
        min_tokens=nonsense,
        max_tokens=nonsense,
    )

    assert question.to_filter(now_ns=0) == TraceFilter()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.00000012, "<1 µs"),
        (0.0000006, "1 µs"),
        (0.000042, "42 µs"),
        (0.0000994, "99 µs"),
        (0.0000996, "0.1 ms"),
        (0.00012, "0.1 ms"),
        (0.0123, "12.3 ms"),
        (0.5534, "553 ms"),
        (0.9996, "1.00 s"),
        (2.734, "2.73 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min"),
        (72, "1 min 12 s"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (3.25 * 2**30, "3.25 GiB"),
        (512 * 2**30, "512 GiB"),
    ],
)
def test_bytes_are_told_in_binary_units(number: float, text: str) -> None:
    assert bytes_text(number) == text


def test_counts_have_their_noun() -> None:
    assert (plural(1, "span"), plural(2048, "token")) == ("1 span", "2,048 tokens")


def columns(*medians: float | None) -> Stats:
    buckets = tuple(
        StatsBucket(start_ns=at, requests=1, p50_s=value, p95_s=value)
        for at, value in enumerate(medians)
    )
    return Stats(0, len(medians), 1, (), buckets)


def test_a_curve_keeps_its_holes() -> None:
    curve = sparkline(columns(1.0, 2.0, None, 0.5))

    assert curve is not None
    assert curve.top_s == 2.0
    assert curve.median == "M75.0 24.0L225.0 2.0M525.0 35.0h4"


def test_nothing_that_happened_is_no_curve() -> None:
    assert sparkline(columns(None, None)) is None
