"""How a trace is laid out: order, depth, bars, tokens."""

from __future__ import annotations

import pytest

from mlx_manager.observability.span_record import Value
from mlx_manager.web.waterfall import MOST_ROWS, kind_of, offsets, token_timelines, waterfall
from tests.support.recorded import chat_trace, id_of, span, trace


def test_children_follow_their_parents_in_the_order_of_their_start() -> None:
    fall = waterfall(
        trace(
            span("root", 0, 100, None),
            span("late", 60, 90, "root"),
            span("early", 10, 50, "root"),
            span("inner", 20, 30, "early"),
        )
    )

    assert [(row.span.name, row.level) for row in fall.rows] == [
        ("root", 1),
        ("early", 2),
        ("inner", 3),
        ("late", 2),
    ]
    assert [(row.position, row.siblings) for row in fall.rows] == [(1, 1), (1, 2), (1, 1), (2, 2)]
    assert (fall.rows[2].left, fall.rows[2].width) == (20.0, 10.0)
    assert [ns for _, ns in fall.ticks] == [0, 25_000_000, 50_000_000, 75_000_000, 100_000_000]


def test_a_span_whose_parent_is_not_kept_stands_at_the_top() -> None:
    fall = waterfall(trace(span("orphan", 0, 10, "gone"), span("below", 1, 2, "orphan")))

    assert [row.level for row in fall.rows] == [1, 2]


def test_spans_that_are_each_others_parents_do_not_hang_the_page() -> None:
    spans = (span("root", 0, 9, None), span("a", 0, 10, "b"), span("b", 1, 9, "a"))

    assert [row.span.name for row in waterfall(trace(*spans)).rows] == ["root"]


def test_a_deep_trace_is_shown_to_its_bottom() -> None:
    names = [f"{number:08d}" for number in range(900)]
    parents = [None, *names]
    chain = [span(name, 0, 1, parent) for name, parent in zip(names, parents, strict=False)]

    assert waterfall(trace(*chain)).rows[-1].level == 900


def test_more_rows_than_a_page_can_take_are_counted() -> None:
    spans = [span(f"{number:08d}", number, number + 1, None) for number in range(MOST_ROWS + 7)]

    fall = waterfall(trace(*spans))

    assert (len(fall.rows), fall.hidden) == (MOST_ROWS, 7)


def test_a_trace_of_no_length_has_bars() -> None:
    row = waterfall(trace(span("moment", 5, 5, None))).rows[0]

    assert (row.left, row.width) == (0.0, 0.0)


def test_kinds_follow_what_a_span_is() -> None:
    cloud = span("x", 0, 1, kind="client", gen_ai__operation__name="chat")

    assert kind_of(cloud) == "cloud"
    assert kind_of(span("SELECT", 0, 1, kind="client", db__system__name="sqlite")) == "database"
    assert kind_of(span("GET", 0, 1, kind="client")) == "client"
    assert kind_of(span("anything", 0, 1)) == "other"


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ((0, 8.5, 17), [0.0, 8.5, 17.0]),
        ("0,8,16.5", [0.0, 8.0, 16.5]),
        ("0,eight", []),
        (7, []),
        (None, []),
    ],
)
def test_token_times_are_read_from_lists_and_text(value: Value | None, read: list[float]) -> None:
    assert offsets(value) == read


def test_the_token_timeline_finds_the_longest_pause() -> None:
    decode = span("decode", 10, 60, mlx__decode__token_offsets_ms=(0, 5, 10, 40, 45))

    (line,) = token_timelines(chat_trace(decode))

    assert line.span_id == id_of("decode")
    assert (line.tokens, line.length_ms, line.median_gap_ms) == (5, 45.0, 5.0)
    assert (line.longest_gap_ms, line.longest_after) == (30.0, 3)
    assert line.path.startswith("M0 0V24M111.1 0V24")


def test_the_token_timeline_of_a_long_answer_counts_the_tokens_between_its_marks() -> None:
    decode = span(
        "decode",
        10,
        60,
        mlx__decode__token_offsets_ms=(0, 10, 20, 50),
        mlx__decode__token_stride=4,
        mlx__decode__tokens=15,
    )

    (line,) = token_timelines(chat_trace(decode))

    assert (line.tokens, line.stride) == (15, 4)
    assert (line.median_gap_ms, line.longest_gap_ms, line.longest_after) == (10.0, 30.0, 9)


@pytest.mark.parametrize("stride", [0, -3, "4", 2.5, True])
def test_a_stride_that_is_none_counts_as_one(stride: Value) -> None:
    decode = span(
        "decode", 0, 9, mlx__decode__token_offsets_ms=(0, 5, 9), mlx__decode__token_stride=stride
    )

    (line,) = token_timelines(chat_trace(decode))

    assert (line.tokens, line.stride) == (3, 1)


def test_without_token_times_there_is_no_timeline() -> None:
    assert token_timelines(chat_trace(span("decode", 10, 60))) == []
