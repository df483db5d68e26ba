"""A soak compares all that counts requests: a book that is wrong by one is found."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tools.chaos.books import Audited, Fate, audited, compared, unkept_rows
from tools.chaos.kept import Kept, differences
from tools.chaos.possessions import POOL_THREADS, Held

FATES: dict[str, Fate] = {"a": "whole", "b": "refused", "c": "left"}
ROWS = [
    ("a", "completed", None, "mlx", 20, 2),
    ("b", "failed", "model_not_found", "mlx", None, None),
    ("c", "cancelled", None, "mlx", 10, 1),
]
METRICS = """# TYPE gen_ai_server_request_duration_seconds histogram
gen_ai_server_request_duration_seconds_count{http_route="/v1/messages"} 1.0
gen_ai_server_request_duration_seconds_count{error_type="model_not_found"} 1.0
# TYPE mlx_requests_cancelled_total counter
mlx_requests_cancelled_total 1.0
# TYPE mlx_tokens_total counter
mlx_tokens_total{kind="input"} 30.0
mlx_tokens_total{kind="output"} 3.0
mlx_tokens_total{kind="cached"} 5.0
"""


def differing(
    folder: Path,
    rows: Sequence[tuple[object, ...]] = ROWS,
    metrics: str = METRICS,
    traces: str = "abc",
) -> list[str]:
    """Keep books in `folder` and return the names of the lines on which they don't agree."""
    write_rows(folder, rows)
    with closing(sqlite3.connect(folder / "traces.db")) as database:
        database.execute("CREATE TABLE traces (request_id)")
        database.executemany("INSERT INTO traces VALUES (?)", traces)
        database.commit()
    return [line.name for line in compared(folder, metrics, FATES) if not line.agrees]


def write_rows(folder: Path, rows: Sequence[tuple[object, ...]]) -> None:
    """Keep an audit log in `folder`."""
    with closing(sqlite3.connect(folder / "mlx.db")) as database:
        columns = "request_id, outcome, error_code, backend, input_tokens, output_tokens"
        database.execute(f"CREATE TABLE audit_log ({columns})")
        database.executemany("INSERT INTO audit_log VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.commit()


def test_books_that_say_the_same_agree(tmp_path: Path) -> None:
    assert differing(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (ROWS[:2], ["requests", "left", "ended: cancelled", "tokens read", "tokens made"]),
        ([*ROWS, ROWS[1]], ["requests", "refused", "ended: model_not_found"]),
        (
            [("a", "cancelled", None, "mlx", 20, 2), *ROWS[1:]],
            ["whole", "ended: cancelled", "ended: completed"],
        ),
        ([*ROWS[:2], ("c", "running", None, None, 10, 1)], ["left", "ended: cancelled"]),
        ([("a", "completed", None, "mlx", 20, 3), *ROWS[1:]], ["tokens made"]),
    ],
    ids=["a row missing", "a row too many", "another outcome", "a row left open", "a token"],
)
def test_a_wrong_row_is_found(
    tmp_path: Path, rows: list[tuple[object, ...]], names: list[str]
) -> None:
    assert differing(tmp_path, rows) == names


@pytest.mark.parametrize("line", METRICS.splitlines())
def test_a_measurement_that_is_missing_is_found(tmp_path: Path, line: str) -> None:
    is_compared = not (line.startswith("#") or "cached" in line)
    assert bool(differing(tmp_path, metrics=METRICS.replace(line + "\n", ""))) == is_compared


def test_a_trace_that_is_missing_is_found(tmp_path: Path) -> None:
    assert differing(tmp_path, traces="ac") == ["requests"]


def test_each_request_is_looked_up_in_the_audit_log(tmp_path: Path) -> None:
    rows = [
        ("kept", "completed"),
        ("twice", "completed"),
        ("twice", "completed"),
        ("open", "running"),
        ("told", "completed"),
        ("cut off", "interrupted"),
        ("stray", "completed"),
    ]
    write_rows(tmp_path, [(*row, None, "mlx", 20, 2) for row in rows])
    fates: dict[str, Fate] = {"kept": "whole", "twice": "whole", "open": "whole", "gone": "refused"}
    found = audited(tmp_path, {**fates, "told": "told", "cut off": "lost"})
    assert found.kept == {"kept", "cut off"}
    assert found.lost == {"gone"}
    assert found.wrong == (
        "open was whole and has ['running']",
        "stray was never sent and has ['completed']",
        "told was told and has ['completed']",
        "twice was whole and has ['completed', 'completed']",
    )


def test_a_row_may_be_missing_only_when_the_server_says_so() -> None:
    before = Kept(Audited(frozenset("a"), frozenset("b")), unkept=1, pid=7)
    missing = Audited(frozenset("a"), frozenset("bc"))
    assert differences(Kept(missing, unkept=2, pid=7), before) == []
    silent = ["1 requests have no audit row, 0 are counted as lost"]
    assert differences(Kept(missing, unkept=1, pid=7), before) == silent
    assert differences(Kept(missing, unkept=1, pid=8), before) == []
    assert differences(Kept(missing, unkept=0, pid=8), before) == silent
    assert differences(Kept(before.audited, unkept=2, pid=7), before) == [
        "0 requests have no audit row, 1 are counted as lost"
    ]
    several = Audited(frozenset(), frozenset("b"), ("a was whole and has ['running']",))
    assert differences(Kept(several, unkept=1, pid=7), before) == list(several.wrong)
    assert differences(Kept(several, pid=7), Kept(several, pid=7)) == [], "it is told once"


def test_lost_rows_are_those_of_the_audit_log_alone() -> None:
    metric = 'mlx_telemetry_dropped_total{sink="%s"} %s\n'
    said = (
        "# TYPE mlx_telemetry_dropped counter\n" + metric % ("store", 4.0) + metric % ("audit", 3.0)
    )
    assert unkept_rows(said) == 3
    assert unkept_rows("") == 0


def test_what_has_become_more_is_told_and_what_has_become_less_is_not() -> None:
    before = Held({"tasks": 9.0, "threads": 9.0, "file descriptors": 26.0})
    after = Held({"tasks": 10.0, "threads": 9.0 + POOL_THREADS, "file descriptors": 25.0})
    assert after.beyond(before) == ["tasks was 9 and is 10"]
    leaking = Held(after.figures | {"tasks": 9.0, "threads": 10.0 + POOL_THREADS})
    assert leaking.beyond(before) == [f"threads was 9 and is {10 + POOL_THREADS}"]
