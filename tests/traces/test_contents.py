"""What was said is kept apart from its span, comes back with it, and goes before it, without a trace in the file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager.observability.span_record import SpanRecord
from mlx_manager.traces.schema import ADDITIONS, open_for_writing
from mlx_manager.traces.store import StoreOptions, TraceStore
from mlx_manager.traces.writing import store_records
from tests.support.process import started
from tests.support.running import wait_until
from tests.traces.records import START_NS, S, chat, put, server, span, span_id, trace_id

SAID = "marked-words"
CONTENT = ("gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages")
DELETE = "DELETE FROM contents WHERE stored_ns > 0"
MINUTE_NS = 60 * S
SWEPT_OFTEN = StoreOptions(max_age_s=600, max_content_age_s=60, retention_every_s=0.05)


def telling(trace: int, text: str = SAID, **changes: Any) -> SpanRecord:
    """A chat that tells what was said in it."""
    return chat(trace, attributes=dict.fromkeys(CONTENT, text), **changes)


def told(store: TraceStore, trace: int) -> set[Any]:
    """What the spans of a kept trace say was said."""
    found = store.get_trace(trace_id(trace))
    assert found is not None
    return {
        one.attributes[name] for one in found.spans for name in CONTENT if name in one.attributes
    }


def is_written(path: Path, text: str = SAID) -> bool:
    """Whether the text stands anywhere in the file or in those beside it."""
    return any(text.encode() in file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_what_was_said_is_kept_apart_and_comes_back_with_its_span(store: TraceStore) -> None:
    whole = (server(1), telling(1), span(1, 3, 2, at_s=0.5))
    put(store, *whole)
    trace = store.get_trace(trace_id(1))
    assert trace is not None
    assert trace.spans == whole
    ((stored,),) = rows(store.path, "SELECT span_id FROM contents")
    assert stored.hex() == span_id(2)
    details = rows(store.path, "SELECT details FROM spans")
    assert not [blob for (blob,) in details if SAID.encode() in blob]


def test_spans_that_come_later_leave_what_was_said(store: TraceStore) -> None:
    put(store, telling(1))
    put(store, server(1))
    assert told(store, 1) == {SAID}


def test_a_span_that_is_sent_again_says_what_it_said_last(store: TraceStore) -> None:
    put(store, telling(1), telling(2))
    put(store, telling(1, "other words"), chat(2))
    assert told(store, 1) == {"other words"}
    assert told(store, 2) == set()
    assert rows(store.path, "SELECT count(*) FROM contents") == [(1,)]


def test_sending_it_again_does_not_keep_it_longer(tmp_path: Path) -> None:
    now_ns = [START_NS]
    with TraceStore(tmp_path / "traces.db", SWEPT_OFTEN, clock_ns=lambda: now_ns[0]) as store:
        put(store, telling(1))
        now_ns[0] += MINUTE_NS // 2
        put(store, telling(1, "other words"), telling(2))
        now_ns[0] += MINUTE_NS // 2 + S
        wait_until(lambda: told(store, 1) == set())
        assert told(store, 2) == {SAID}


# Short ones lie beside others in a page, long ones fill pages of their own.
@pytest.mark.parametrize("length", [1, 20, 10_000])
def test_what_was_said_goes_after_its_time_and_its_trace_stays(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, now_ns, text = tmp_path / "traces.db", [START_NS], SAID * length
    with TraceStore(path, SWEPT_OFTEN, clock_ns=lambda: now_ns[0]) as store:
        put(store, *(telling(number, text) for number in range(1, 8)))
        now_ns[0] += MINUTE_NS // 2
        put(store, telling(8, "newer words"))
        assert is_written(path)
        now_ns[0] += MINUTE_NS // 2 + S
        wait_until(lambda: told(store, 1) == set())
        wait_until(lambda: not is_written(path))
        trace = store.get_trace(trace_id(1))
        assert trace is not None
        assert trace.spans == (chat(1),)
        assert trace.summary.output_tokens == 5
        assert told(store, 8) == {"newer words"}
    assert not is_written(path)
    assert "what 7 spans said is gone" in caplog.text


def test_what_was_said_goes_with_a_trace_that_is_too_old(tmp_path: Path) -> None:
    now_ns = [START_NS]
    path = tmp_path / "traces.db"
    options = StoreOptions(max_age_s=60, max_content_age_s=600, retention_every_s=0.05)
    with TraceStore(path, options, clock_ns=lambda: now_ns[0]) as store:
        put(store, telling(1))
        now_ns[0] += MINUTE_NS + S
        wait_until(lambda: store.get_trace(trace_id(1)) is None)
        wait_until(lambda: not is_written(path))
        assert rows(path, "SELECT count(*) FROM contents") == [(0,)]


def test_what_was_said_counts_and_goes_when_the_file_is_too_large(tmp_path: Path) -> None:
    path, limit = tmp_path / "traces.db", 2**20
    options = StoreOptions(max_bytes=limit, retention_every_s=0.05)
    with TraceStore(path, options) as store:
        put(store, *(telling(number, f"<{number}>" * 3000) for number in range(1, 101)))
        wait_until(lambda: store.get_trace(trace_id(1)) is None)
        wait_until(lambda: not is_written(path, "<1>"))
        wait_until(lambda: path.stat().st_size < limit)
        assert told(store, 100) == {"<100>" * 3000}
    orphans = "SELECT count(*) FROM contents WHERE trace NOT IN (SELECT id FROM traces)"
    assert rows(path, orphans) == [(0,)]


def test_a_reader_holds_the_erasing_up_only_while_it_reads(tmp_path: Path) -> None:
    path, now_ns = tmp_path / "traces.db", [START_NS]
    with TraceStore(path, SWEPT_OFTEN, clock_ns=lambda: now_ns[0]) as store:
        put(store, telling(1, SAID * 1000))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM contents").fetchone()
            now_ns[0] += MINUTE_NS + S
            wait_until(lambda: told(store, 1) == set())
            assert is_written(path)
        wait_until(lambda: not is_written(path), 30)


def test_what_a_killed_sweep_left_goes_with_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with closing(open_for_writing(path)) as killed:
        store_records(killed, [telling(1, SAID * 1000)], START_NS)
        killed.execute(DELETE)
        assert is_written(path)
        with TraceStore(path, SWEPT_OFTEN, clock_ns=lambda: START_NS):
            wait_until(lambda: not is_written(path))


def test_deleting_erases_pages_that_are_not_given_back_yet(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with closing(open_for_writing(path)) as connection:
        store_records(connection, [telling(1, SAID * 1000)], START_NS)
        connection.execute(DELETE)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert connection.execute("PRAGMA freelist_count").fetchone() > (0,)
        assert not is_written(path)


def test_what_an_older_file_held_is_erased_with_it(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    with closing(open_for_writing(path)) as connection:
        store_records(connection, [telling(1, SAID * 1000)], START_NS)
        connection.execute(f"PRAGMA user_version = {min(ADDITIONS) - 1}")
    assert is_written(path)
    with TraceStore(path, SWEPT_OFTEN) as store:
        assert store.get_trace(trace_id(1)) is None
        wait_until(lambda: not is_written(path))


def test_nothing_that_is_said_gets_into_the_file_when_capture_is_off(
    ask: Callable[..., str], kept: TraceStore
) -> None:
    trace = kept.get_trace(ask(prompt=SAID))
    assert trace is not None
    assert not [one for one in trace.spans if set(CONTENT) & one.attributes.keys()]
    assert not is_written(kept.path)
    assert rows(kept.path, "SELECT count(*) FROM contents") == [(0,)]


def test_a_server_shows_what_was_said_and_one_with_a_shorter_time_erases_it(tmp_path: Path) -> None:
    def say(url: str, text: str) -> str:
        body = {"model": "mlx-manager/starter", "prompt": text, "max_tokens": 2}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        return f"{url}/api/traces/{answer.raise_for_status().headers['X-Trace-ID']}"

    def shown(address: str) -> list[str]:
        answer = httpx.get(address)
        spans = answer.json()["spans"] if answer.is_success else []
        return [text for one in spans for name in CONTENT if (text := one["attributes"].get(name))]

    path = tmp_path / "traces.db"
    with started(tmp_path, "serve", MLX_SERVER_CAPTURE_CONTENT="on") as server:
        address = say(server.url, SAID)
        wait_until(lambda: len(shown(address)) == 2)
        assert SAID in shown(address)[0]
    assert is_written(path)

    settings = {"MLX_SERVER_CAPTURE_CONTENT": "on", "MLX_SERVER_CONTENT_RETENTION_DAYS": "0.00001"}
    with started(tmp_path, "serve", **settings) as server:
        address = address.replace(address.split("/api")[0], server.url)
        say(server.url, "other words")
        wait_until(lambda: not is_written(path), 60)
        assert httpx.get(address).is_success
        assert shown(address) == []
