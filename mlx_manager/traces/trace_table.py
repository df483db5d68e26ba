"""Traces as lines of a terminal, and how a terminal is told times and names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_manager.traces.summary import TraceSummary

NS_PER_S = 1_000_000_000
ID_WIDTH = 32
# Left for model and name, which are cut, when it is decided what else fits.
LEAST_WHAT = 16
# What goes into a pipe or a file has no edge.
UNBOUND_WIDTH = 250
STATUS_STYLES = {"ok": "green", "error": "bold red", "cancelled": "yellow"}


def list_screen() -> Console:
    """What commands print on: as wide as the terminal, or as a line needs to be where there is none."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=UNBOUND_WIDTH, highlight=False)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list; those with the highest `rank` are left out first where there isn't room for all."""

    title: str
    width: int
    rank: int
    cell: Callable[[TraceSummary], Text | str]
    justify: Literal["left", "right"] = "left"


COLUMNS = (
    Column("Day", 10, 5, lambda trace: time_text(trace.started_ns)[:10]),
    Column("Time", 8, 4, lambda trace: time_text(trace.started_ns)[11:]),
    Column("Trace", ID_WIDTH, 0, lambda trace: trace.trace_id),
    Column("Status", 9, 1, lambda trace: Text(trace.status, STATUS_STYLES[trace.status])),
    Column("Took", 9, 2, lambda trace: elapsed_text(trace.duration_ns), "right"),
    Column("First", 9, 7, lambda trace: _first(trace.time_to_first_token_s), "right"),
    Column("In", 6, 6, lambda trace: number_text(trace.input_tokens), "right"),
    Column("Out", 6, 6, lambda trace: number_text(trace.output_tokens), "right"),
    Column("What", LEAST_WHAT, 3, lambda trace: Text(_what(trace))),
)


def trace_table(traces: Iterable[TraceSummary], width: int, *, has_header: bool = True) -> Table:
    """A line a trace. Its id is never cut, since it is what one copies: other columns go where there is no room."""
    table = Table(box=None, show_header=has_header, padding=(0, 1, 0, 0), header_style="bold")
    columns = _fitting(width)
    for column in columns:
        is_open = column.title == "What"
        table.add_column(
            column.title,
            justify=column.justify,
            no_wrap=column.title != "Trace",
            overflow="fold" if column.title == "Trace" else "ellipsis",
            min_width=None if is_open else min(column.width, width),
        )
    for trace in traces:
        table.add_row(*(column.cell(trace) for column in columns))
    return table


def _fitting(width: int) -> Sequence[Column]:
    """The columns for which there is room, each with a space behind it."""
    columns = list(COLUMNS)
    while len(columns) > 1 and sum(column.width + 1 for column in columns) - 1 > width:
        last = max(column.rank for column in columns)
        columns = [column for column in columns if column.rank < last]
    return columns


def _what(trace: TraceSummary) -> str:
    return plain(" · ".join(filter(None, (trace.model, trace.name, trace.error_type))))


def _first(seconds: float | None) -> str:
    return "" if seconds is None else elapsed_text(round(seconds * NS_PER_S))


def time_text(at_ns: int) -> str:
    """A moment in local time, to the second."""
    return datetime.fromtimestamp(at_ns // NS_PER_S).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def elapsed_text(ns: int) -> str:
    """How long something took, in a few characters."""
    if ns >= NS_PER_S:
        return f"{ns / NS_PER_S:.2f} s"
    return f"{ns / 1e6:.1f} ms" if ns >= 1_000_000 else f"{ns / 1e3:.0f} µs"


def number_text(value: int | None) -> str:
    """A count, or nothing where there is none."""
    return "" if value is None else str(value)


def plain(text: str) -> str:
    """Without control characters: a name that others chose must not steer the terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)
