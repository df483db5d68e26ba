"""What a server's books say of the requests that it was sent: audit log, metrics and traces, side by side."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

DURATIONS = "gen_ai_server_request_duration_seconds_count"
CANCELLED = "mlx_requests_cancelled_total"
TOKENS = "mlx_tokens_total"
DROPPED = "mlx_telemetry_dropped_total"
# What a client has of a request: its answer whole, an error instead of it or at its end, or nothing, because its
# connection was lost or because it left.
Fate = Literal["whole", "refused", "told", "lost", "left"]
# What the audit log may say of it. One that left may have been wrong, or have had its answer on the way.
OUTCOMES: Mapping[Fate, frozenset[str]] = {
    "whole": frozenset({"completed"}),
    "refused": frozenset({"failed"}),
    "told": frozenset({"failed"}),
    "lost": frozenset({"interrupted"}),
    "left": frozenset({"cancelled", "completed", "failed"}),
}


@dataclass(frozen=True, slots=True)
class Row:
    """What the audit log has of one request; `code` is that of its error. No tokens where no prompt was read."""

    request_id: str
    outcome: str
    code: str | None
    has_reached_model: bool
    input_tokens: int
    output_tokens: int

    @property
    def end(self) -> str:
        """How it ended: its error's code where there is one, as metrics have it."""
        return self.code or self.outcome


@dataclass(frozen=True, slots=True)
class Line:
    """One number as clients, audit log, metrics and traces have it; None where one of them doesn't count it."""

    name: str
    clients: int | None = None
    audit: int | None = None
    metrics: int | None = None
    traces: int | None = None

    @property
    def agrees(self) -> bool:
        """Whether all who count it have the same number."""
        return len({self.clients, self.audit, self.metrics, self.traces} - {None}) <= 1


@dataclass(frozen=True, slots=True)
class Audited:
    """Of which requests the audit log has the one row that it should have, and of which none.

    `wrong` says what else it has: several rows of one, another outcome than its client saw, or what nobody sent.
    """

    kept: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    wrong: tuple[str, ...] = ()


def audited(folder: Path, fates: Mapping[str, Fate]) -> Audited:
    """Look up in the audit log in `folder` the requests with these ids, which must be all that there were."""
    by_id = _by_id(_rows(folder / "mlx.db"))
    kept = {one for one, fate in fates.items() if _is_kept(fate, by_id.get(one, []))}
    lost = fates.keys() - by_id.keys()
    others = {one: fates.get(one, "never sent") for one in by_id.keys() - kept}
    wrong = (
        f"{one} was {fate} and has {[row.outcome for row in by_id[one]]}"
        for one, fate in sorted(others.items())
    )
    return Audited(frozenset(kept), frozenset(lost), tuple(wrong))


def unkept_rows(metrics: str) -> int:
    """Return how many rows of the audit log the server says that it could not keep."""
    lost = (value for labels, value in samples(metrics, DROPPED) if labels["sink"] == "audit")
    return round(sum(lost))


def compared(folder: Path, metrics: str, fates: Mapping[str, Fate]) -> list[Line]:
    """Compare, line by line, what became of the requests with these ids, which must be all that there were.

    `folder` has the server's databases, `metrics` are those that Prometheus reads.
    """
    rows = _rows(folder / "mlx.db")
    by_id = _by_id(rows)
    return [
        Line("requests", len(fates), len(rows), traces=_traces(folder / "traces.db", fates)),
        *(_fate(fate, fates, by_id) for fate in OUTCOMES if fate in fates.values()),
        *_ends(rows, metrics),
        *_tokens(rows, metrics),
    ]


def _fate(fate: Fate, fates: Mapping[str, Fate], by_id: Mapping[str, list[Row]]) -> Line:
    """Count those that have one row each which says what it may."""
    ids = [request_id for request_id, one in fates.items() if one == fate]
    return Line(fate, len(ids), sum(_is_kept(fate, by_id.get(one, [])) for one in ids))


def _is_kept(fate: Fate, rows: Sequence[Row]) -> bool:
    return len(rows) == 1 and rows[0].outcome in OUTCOMES[fate]


def _ends(rows: list[Row], metrics: str) -> list[Line]:
    """Compare how those ended that came as far as a model, or the search for one: the metrics have no others."""
    audited = Counter(row.end for row in rows if row.has_reached_model)
    measured = Counter[str]()
    for labels, value in samples(metrics, DURATIONS):
        measured[labels.get("error_type", "completed")] += round(value)
    measured["cancelled"] = sum(round(value) for _, value in samples(metrics, CANCELLED))
    names = sorted({*audited, *(name for name, count in measured.items() if count)})
    return [Line(f"ended: {name}", None, audited[name], measured[name]) for name in names]


def _tokens(rows: list[Row], metrics: str) -> list[Line]:
    measured = Counter[str]()
    for labels, value in samples(metrics, TOKENS):
        measured[labels["kind"]] += round(value)
    read = sum(row.input_tokens for row in rows)
    made = sum(row.output_tokens for row in rows)
    return [
        Line("tokens read", None, read, measured["input"]),
        Line("tokens made", None, made, measured["output"]),
    ]


def _rows(file: Path) -> list[Row]:
    with closing(sqlite3.connect(file, timeout=30)) as database:
        found = database.execute(
            "SELECT request_id, outcome, error_code, backend IS NOT NULL, coalesce(input_tokens, 0),"
            " coalesce(output_tokens, 0) FROM audit_log"
        )
        return [Row(*row) for row in found]


def _by_id(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    by_id = defaultdict[str, list[Row]](list)
    for row in rows:
        by_id[row.request_id].append(row)
    return by_id


def _traces(file: Path, ids: Mapping[str, Fate]) -> int:
    """Return how many traces there are of these requests."""
    with closing(sqlite3.connect(file, timeout=30)) as database:
        return sum(one in ids for (one,) in database.execute("SELECT request_id FROM traces"))


def samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Return labels and value of each sample of a metric, in Prometheus's text."""
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    ]
