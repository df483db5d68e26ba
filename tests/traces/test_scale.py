"""More traces make no question slower: counted in steps of SQLite's machine, which no computer's speed changes.

How fast a million spans are answered from is measured by `python -m benchmarks.traces`.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.traces import MODELS, build
from mlx_manager.traces import figures, listing
from mlx_manager.traces.schema import open_for_reading
from mlx_manager.traces.summary import TraceFilter

FEW, MANY = 400, 3200
PAGE = 20
ROOT = Path(__file__).parents[2]

DAY_NS = 86_400 * 10**9
Ask = Callable[[sqlite3.Connection], object]


def page(**wanted: Any) -> Ask:
    return lambda store: listing.list_traces(store, TraceFilter(**wanted), PAGE, None)


def second_page(store: sqlite3.Connection) -> object:
    cursor = listing.list_traces(store, TraceFilter(), PAGE, None).next_cursor
    assert cursor is not None
    return listing.list_traces(store, TraceFilter(), PAGE, cursor)


def newest_trace(store: sqlite3.Connection) -> object:
    (newest,) = listing.list_traces(store, TraceFilter(), 1, None).traces
    return listing.get_trace(store, newest.trace_id)


def by_request_id(store: sqlite3.Connection) -> object:
    (newest,) = listing.list_traces(store, TraceFilter(), 1, None).traces
    assert newest.request_id is not None
    wanted = TraceFilter(text=newest.request_id[:-1])
    assert listing.list_traces(store, wanted, PAGE, None).traces == (newest,)
    return newest


def by_trace_id(store: sqlite3.Connection) -> object:
    (newest,) = listing.list_traces(store, TraceFilter(), 1, None).traces
    wanted = TraceFilter(text=newest.trace_id[:-1])
    assert listing.list_traces(store, wanted, PAGE, None).traces == (newest,)
    return newest


# What an index leads to at once.
QUICK: dict[str, Ask] = {
    "the newest": page(),
    "the second page": second_page,
    "a model": page(model=MODELS[2]),
    "no such model": page(model="none"),
    "a session": page(session="session-77"),
    "a key": page(key_id="none"),
    "an error": page(error_type="none"),
    "a time": page(until_ns=1),
    "one trace": newest_trace,
    "the beginning of a request id": by_request_id,
    "the beginning of a trace id": by_trace_id,
    "a text that is nowhere": page(text="no such thing"),
    "a text that is nowhere, of a status": page(text="no such thing", status="error"),
    "the models": listing.models,
}
# What may have to look at all, in an index that is a fraction of the table.
WALKS: dict[str, Ask] = {
    "a status": page(status="error"),
    "a status of a model": page(status="error", operation="chat"),
    "a duration": page(min_duration_s=30),
    "a number of tokens": page(min_tokens=4990),
    "an endpoint": page(endpoint="/v1/embeddings"),
    "a text in a name": page(text="/chat/", status="error"),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    yield from built(tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    yield from built(tmp_path_factory.mktemp("many"), MANY)


def built(folder: Path, traces: int) -> Iterator[sqlite3.Connection]:
    build(folder / "traces.db", traces)
    with closing(open_for_reading(folder / "traces.db")) as connection:
        yield connection


def steps(store: sqlite3.Connection, ask: Ask) -> int:
    counted = list[None]()
    store.set_progress_handler(lambda: counted.append(None), 1)
    try:
        ask(store)
    finally:
        store.set_progress_handler(None, 0)
    return len(counted)


def plan(store: sqlite3.Connection, ask: Ask) -> str:
    """How SQLite goes about all statements of a question."""
    statements = list[str]()
    store.set_trace_callback(statements.append)
    try:
        ask(store)
    finally:
        store.set_trace_callback(None)
    lines = [
        line
        for statement in statements
        for *_, line in store.execute(f"EXPLAIN QUERY PLAN {statement}")
    ]
    return "\n".join(lines)


@pytest.mark.parametrize("asked", QUICK)
def test_eight_times_the_traces_take_no_more_steps(
    few: sqlite3.Connection, many: sqlite3.Connection, asked: str
) -> None:
    ask = QUICK[asked]
    assert steps(many, ask) <= 1.5 * steps(few, ask) + 100


@pytest.mark.parametrize("asked", WALKS)
def test_what_looks_at_all_traces_looks_at_an_index_alone(
    many: sqlite3.Connection, asked: str
) -> None:
    told = plan(many, WALKS[asked])
    assert "USING COVERING INDEX traces_listed" in told
    assert "SCAN traces\n" not in f"{told}\n"


@pytest.mark.parametrize("model", [None, MODELS[2]])
def test_figures_of_a_day_read_that_day_alone(many: sqlite3.Connection, model: str | None) -> None:
    (until_ns,) = many.execute("SELECT max(started_ns) FROM traces").fetchone()

    def ask(store: sqlite3.Connection) -> object:
        return figures.stats(store, until_ns - DAY_NS, until_ns, model, 24)

    told = plan(many, ask)
    assert "SEARCH requests USING" in told
    assert "SCAN requests" not in told
    assert "SCAN traces" not in told


def test_a_walk_without_an_index_is_noticed(many: sqlite3.Connection) -> None:
    def walk(store: sqlite3.Connection) -> object:
        return store.execute("SELECT count(*) FROM traces WHERE backend = 'none'").fetchone()

    assert plan(many, walk) == "SCAN traces"


def test_the_benchmark_says_how_fast_each_question_is_answered(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.traces", "--spans", "7000"],
        cwd=ROOT,
        env={"COLUMNS": "150", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "7000 spans in 1000 traces" in done.stdout
    for question in ("page: newest 50", "one trace", "percentiles by model, 1 d"):
        assert question in done.stdout
