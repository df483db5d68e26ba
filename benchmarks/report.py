"""Print what was measured, and write it as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.compare import BARE, MLX_LM, OURS
from benchmarks.contended import Contended
from benchmarks.figures import (
    Figures,
    MemoryFigures,
    Spread,
    TelemetryFigures,
    TelemetryPart,
    percentile,
)
from benchmarks.followup import FollowUp
from benchmarks.goals import (
    Goal,
    comparison_goals,
    contended_goals,
    failures_goal,
    followup_goals,
    memory_goal,
    telemetry_goals,
)
from benchmarks.history import Change, Earlier

# Wide enough for every column, also where there is no terminal.
WIDTH = 160
COLUMNS = (
    "contender",
    "tokens/s",
    "of bare",
    "range",
    "first token ms\np50 / p99",
    "gap ms\np50 / p99",
    "CPU µs/token\nAPI + engine",
    "beyond bare",
    "range",
    "client's\nCPU",
)
CONTENDED_COLUMNS = (
    "contender",
    "short alone ms\np50 / p99",
    "short beside ms\np50 / p99",
    "requests",
    "long alone s",
    "long beside s",
    "piece ms",
)
CHANGE_COLUMNS = ("", "then", "now", "")
FOLLOWUP_COLUMNS = (
    *("model, tokens,\ncontender", "cold\nms", "warm\nms", "restart\nms"),
    *("warm of cold\n(range)", "restart of cold\n(range)"),
    *("warm of bare's\n(range)", "warm of mlx_lm's\n(range)"),
)
TELEMETRY_COLUMNS = (
    "telemetry",
    "against",
    "tokens/s",
    "ratio",
    "range",
    "CPU per token",
    "range",
    "API CPU µs/request",
    "more",
    "range",
)


@dataclass(slots=True)
class Report:
    """Everything that one run has found; parts that were not asked for are empty."""

    rounds: int
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    comparisons: list[Figures] = field(default_factory=list)
    contended: list[Contended] = field(default_factory=list)
    followups: list[FollowUp] = field(default_factory=list)
    telemetry: list[TelemetryPart] = field(default_factory=list)
    memory: list[MemoryFigures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    earlier: Earlier | None = None

    @property
    def changes(self) -> list[Change]:
        """How shares of the bare loop differ from an earlier run's, if there is one to compare with."""
        return [] if self.earlier is None else self.earlier.changes(self.comparisons)

    @property
    def requests(self) -> int:
        """Requests that were sent and checked."""
        parts: list[Figures | Contended | FollowUp | TelemetryPart | MemoryFigures] = [
            *self.comparisons,
            *self.contended,
            *self.followups,
            *self.telemetry,
            # The same requests, of which each process has a row.
            *self.memory[:1],
        ]
        return sum(part.requests for part in parts)

    def goals(self) -> list[Goal]:
        """Return every goal that has been measured."""
        goals = [
            *comparison_goals(self.comparisons),
            *contended_goals(self.contended),
            *followup_goals(self.followups),
        ]
        for part in self.telemetry:
            goals += telemetry_goals(part)
        goals += map(memory_goal, self.memory)
        return [*goals, failures_goal(len(self.failures), self.requests)]

    def write(self, file: Path) -> None:
        """Write the report as JSON; units are in the names, times without one are in seconds."""
        content = {
            "started_at": self.started_at.isoformat(),
            "rounds": self.rounds,
            "machine": machine(),
            "comparisons": [asdict(row) for row in self.comparisons],
            "contended": [asdict(row) for row in self.contended],
            "followups": [asdict(row) for row in self.followups],
            "telemetry": [asdict(part) for part in self.telemetry],
            "memory": [asdict(row) for row in self.memory],
            "goals": [asdict(goal) for goal in self.goals()],
            "failures": self.failures,
        }
        file.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, str | int | list[float]]:
    """Return what the figures depend on; the load average says whether others were at work."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx-lm": version("mlx-lm"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def print_report(report: Report, screen: Console) -> None:
    """Print tables, goals and failures."""
    facts = machine()
    screen.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    for title, rows in groupby(
        report.comparisons, key=lambda row: f"{row.model}, {row.work}, {row.clients} clients"
    ):
        screen.print(_comparison_table(title, rows))
    for part in report.telemetry:
        screen.print(_telemetry_table(part))
    if report.contended:
        title = "first token of short requests, alone and beside a long prompt: tiny"
        cells = map(_contended_cells, report.contended)
        screen.print(_filled(_table(title), CONTENDED_COLUMNS, cells))
    if report.followups:
        title = "first token of a second turn, as a share of the first turn's and of others' second turn"
        turns = [_followup_cells(row, report.followups) for row in report.followups]
        screen.print(_filled(_table(title), FOLLOWUP_COLUMNS, turns))
    for figures in report.memory:
        screen.print(_memory_lines(figures), highlight=False)
    if report.earlier is not None:
        title = f"share of the bare loop, then ({report.earlier.started_at[:16]}) and now"
        screen.print(_filled(_table(title), CHANGE_COLUMNS, map(_change_cells, report.changes)))
    screen.print(_goals_table(report.goals()))
    for failure in report.failures[:10]:
        screen.print(f"wrong answer: {failure}", style="red", markup=False, highlight=False)


def _comparison_table(title: str, rows: Iterable[Figures]) -> Table:
    return _filled(_table(title), COLUMNS, map(_cells, rows))


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )


def _filled(table: Table, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _cells(row: Figures) -> Sequence[str]:
    client = row.client_cpu_us_per_token
    return (
        row.contender,
        f"{row.tokens_per_s.median:,.0f}",
        f"{row.ratio.median:.2f}",
        _range(row.ratio, ".2f"),
        _milliseconds(row.first_token_p50_s, row.first_token_p99_s),
        _milliseconds(row.gap_p50_s, row.gap_p99_s),
        f"{row.api_cpu_us_per_token:,.0f} + {row.engine_cpu_us_per_token:,.0f}",
        f"{row.extra_cpu_us_per_token.median:+,.0f}",
        _range(row.extra_cpu_us_per_token, "+,.0f"),
        "-" if client is None else f"{client:,.0f}",
    )


def _telemetry_table(part: TelemetryPart) -> Table:
    return _filled(
        _table(f"what telemetry costs: {part.model}, streamed"),
        TELEMETRY_COLUMNS,
        map(_telemetry_cells, part.rows),
    )


def _telemetry_cells(row: TelemetryFigures) -> Sequence[str]:
    extra_us = row.extra_api_cpu_us_per_request
    return (
        row.telemetry,
        row.against,
        f"{row.tokens_per_s.median:,.0f}",
        f"{row.throughput_ratio.median:.3f}",
        _range(row.throughput_ratio, ".3f"),
        f"{row.cpu_ratio.median:.3f}",
        _range(row.cpu_ratio, ".3f"),
        f"{row.api_cpu_us_per_request:,.0f}",
        f"{extra_us.median:+,.0f}",
        _range(extra_us, "+,.0f"),
    )


def _contended_cells(row: Contended) -> Sequence[str]:
    return (
        f"{row.server}, {row.long_words:,} words",
        _milliseconds(percentile(row.alone_s, 0.5), percentile(row.alone_s, 0.99)),
        _milliseconds(percentile(row.beside_s, 0.5), percentile(row.beside_s, 0.99)),
        str(len(row.beside_s)),
        f"{row.alone_long_s:.1f}",
        f"{percentile(row.long_s, 0.5):.1f}",
        "-" if row.piece_s is None else f"{row.piece_s * 1e3:,.0f}",
    )


def _followup_cells(row: FollowUp, rows: Iterable[FollowUp]) -> Sequence[str]:
    alike = {
        one.contender: one for one in rows if (one.model, one.tokens) == (row.model, row.tokens)
    }
    others = [alike.get(name) if row.contender == OURS else None for name in (BARE, MLX_LM)]
    times = (row.cold_s, row.warm_s, row.restart_s)
    return (
        f"{row.model}, {row.tokens:,}, {row.contender}",
        *(f"{median(one) * 1e3:,.1f}" if one else "-" for one in times),
        _ratio_cell(row.ratios(row.warm_s)),
        _ratio_cell(row.ratios(row.restart_s) if row.restart_s else []),
        *(_ratio_cell(row.warm_ratios(one) if one else []) for one in others),
    )


def _ratio_cell(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    return f"{median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})"


def _change_cells(change: Change) -> Sequence[str]:
    spreads = (change.before, change.now)
    shares = [f"{one.median:.2f} ({_range(one, '.2f')})" for one in spreads]
    return (change.place, *shares, "[red]slower[/red]" if change.is_slower else "")


def _memory_lines(figures: MemoryFigures) -> str:
    series = "  ".join(f"{requests}: {mib:.1f}" for requests, mib in figures.series_mib)
    return (
        f"Memory of the {figures.process} process, MiB after so many requests:\n  {series}\n"
        f"  slope after the warm-up {figures.bytes_per_request:+.0f} bytes a request\n"
    )


def _goals_table(goals: Iterable[Goal]) -> Table:
    table = _table("goals")
    for name in ("goal", "wanted", "got", ""):
        table.add_column(name, justify="left" if name == "goal" else "right")
    for goal in goals:
        verdict = "[green]pass[/green]" if goal.is_met else "[red]miss[/red]"
        table.add_row(goal.name, goal.wanted, goal.got, verdict)
    return table


def _range(spread: Spread, form: str) -> str:
    return f"{spread.low:{form}} … {spread.high:{form}}"


def _milliseconds(p50_s: float | None, p99_s: float | None) -> str:
    if p50_s is None or p99_s is None:
        return "-"
    return f"{p50_s * 1e3:,.1f} / {p99_s * 1e3:,.1f}"
