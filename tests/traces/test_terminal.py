"""Traces on a terminal: what `mlx-manager traces` and `mlx-manager trace` print, without a server."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest
from rich.console import Console

from mlx_manager.errors import InvalidRequest, TraceNotFound
from mlx_manager.observability.span_record import SpanEvent, SpanLink
from mlx_manager.traces import terminal
from mlx_manager.traces.store import TraceStore
from mlx_manager.traces.summary import Trace, TraceFilter
from tests.support.process import COMMAND, environment, run
from tests.support.running import wait_until
from tests.traces.records import START_NS, S, chat, put, server, span, span_id, trace_id


@pytest.fixture
def told(store: TraceStore) -> TraceStore:
    """A store with a whole chat, a failed one and one that its client left."""
    failure = {"error.type": "engine_failed", "gen_ai.request.model": "large"}
    put(
        store,
        server(0xA1, took_s=4),
        chat(0xA1, at_s=1, took_s=3),
        span(0xA1, 3, 2, at_s=1, took_s=1, name="queue"),
        span(0xA1, 4, 2, at_s=2, took_s=2, name="decode", attributes={"mlx.decode.tokens_per_s": 25.25}),
        server(0xA2, at_s=10, attributes={"http.response.status_code": 503}),
        chat(0xA2, at_s=10, status="error", attributes=failure),
        server(0xB3, at_s=20, attributes={"mlx.cancelled": True}),
    )  # fmt: skip
    return store


def drawn(trace: Trace, width: int = 100) -> list[str]:
    page = StringIO()
    Console(file=page, width=width).print(terminal.waterfall(trace))
    return page.getvalue().splitlines()


def bars(lines: list[str]) -> list[tuple[int, int]]:
    return [(line.index("━"), line.count("━")) for line in lines if "━" in line]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_bar_stands_where_its_span_was(told: TraceStore, width: int) -> None:
    lines = drawn(terminal.find_trace(told, "0" * 30 + "a1"), width)
    assert all(len(line) <= width for line in lines)
    (left, whole), (chat_at, chat_long), (queue_at, queue_long), (decode_at, decode_long) = bars(
        lines
    )
    assert chat_at - left == pytest.approx(whole / 4, abs=1)
    assert (chat_long, queue_long, decode_long) == pytest.approx(
        (whole * 3 / 4, whole / 4, whole / 2), abs=1
    )
    assert queue_at == chat_at
    assert decode_at == pytest.approx(queue_at + queue_long, abs=1)
    assert decode_at + decode_long == left + whole


@pytest.mark.parametrize("width", [20, 40, 72, 80, 120, 250])
def test_ids_are_whole_however_narrow_the_terminal_is(told: TraceStore, width: int) -> None:
    put(told, span(0xA1, 9, 2, name="queue", links=(SpanLink(trace_id(0xB3), span_id(8)),)))
    page = StringIO()
    screen = Console(file=page, width=width)
    terminal.print_traces(told, TraceFilter(), 5, screen)
    listed = page.getvalue()
    screen.print(terminal.waterfall(terminal.find_trace(told, trace_id(0xA1))))
    shown = page.getvalue().removeprefix(listed)

    # Narrower than an id it is broken, and nothing else stands beside it.
    joined = [text.replace("\n", "") if width < 32 else text for text in (listed, shown)]
    assert all(trace_id(number) in joined[0] for number in (0xA1, 0xA2, 0xB3))
    assert trace_id(0xA1) in joined[1]
    assert joined[1].rstrip().endswith(trace_id(0xB3))
    assert all(len(line) <= width for line in page.getvalue().splitlines())
    assert ("cancelled" in listed) == (width >= 42)


def test_a_waterfall_says_what_one_looks_for(told: TraceStore) -> None:
    text = "\n".join(drawn(terminal.find_trace(told, trace_id(0xA1)), 160))
    for said in (trace_id(0xA1), "request-161", "4 spans", "tiny", "4.00 s"):
        assert said in text
    for fact in ("10 in", "5 out", "25.2 tokens/s", "HTTP 200"):
        assert fact in text
    failed = "\n".join(drawn(terminal.find_trace(told, trace_id(0xA2)), 160))
    assert "engine_failed" in failed
    assert "HTTP 503" in failed


def test_children_stand_below_their_parents_and_orphans_at_the_edge(store: TraceStore) -> None:
    put(
        store, span(1, 1), span(1, 2, 1, at_s=0.1), span(1, 3, 2, at_s=0.3), span(1, 4, 1, at_s=0.2)
    )
    put(store, span(1, 9, 77, at_s=0.5), span(1, 11, 12, at_s=0.6), span(1, 12, 11, at_s=0.7))
    names = [line[:14].rstrip() for line in drawn(terminal.find_trace(store, trace_id(1)))[4:]]
    assert names == [
        "span 1",
        "  span 2",
        "    span 3",
        "  span 4",
        "span 9",
        "span 11",
        "  span 12",
    ]


def test_events_and_links_stand_below_their_span(store: TraceStore) -> None:
    put(
        store,
        span(
            1,
            1,
            events=(SpanEvent("exception", START_NS + S // 2, {"exception.type": "ValueError"}),),
            links=(SpanLink(trace_id(7), span_id(8)),),
        ),
    )
    lines = drawn(terminal.find_trace(store, trace_id(1)), 150)
    assert any("◆ exception ValueError" in line and line.count("◆") == 2 for line in lines)
    assert any(f"→ trace {trace_id(7)}"[:30] in line for line in lines)


def test_a_name_of_others_does_not_steer_the_terminal(store: TraceStore) -> None:
    evil = "\x1b[2J\x1b]0;title\x07[bold]name[/bold]\n\r"
    put(store, span(1, 1, name=evil, attributes={"error.type": evil}, status="error"))
    page = StringIO()
    terminal.print_traces(store, TraceFilter(), 5, Console(file=page, width=150))
    text = page.getvalue() + "\n".join(drawn(terminal.find_trace(store, trace_id(1))))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]name[/bold]" in text


def test_an_id_may_be_cut_as_long_as_it_is_clear(told: TraceStore) -> None:
    assert terminal.find_trace(told, trace_id(0xB3)[:31]).summary.trace_id == trace_id(0xB3)
    with pytest.raises(InvalidRequest, match="Several") as caught:
        terminal.find_trace(told, trace_id(0xA0)[:31])
    assert trace_id(0xA1) in str(caught.value)
    for unknown in ("f", "no hex", ""):
        with pytest.raises(TraceNotFound):
            terminal.find_trace(told, unknown)


def test_following_tells_each_trace_once_when_it_is_whole(told: TraceStore) -> None:
    changes: list[Callable[[], object]] = [
        lambda: put(told, chat(0xC4, at_s=31)),
        lambda: put(told, server(0xC4, at_s=30)),
        lambda: None,
        lambda: put(told, server(0xC5, at_s=40)),
        lambda: None,
        lambda: None,
    ]
    looks = terminal.settled(told, TraceFilter(), 2, lambda: changes.pop(0)())
    ids = [[int(line.trace_id, 16) for line in traces] for traces in islice(looks, 3)]
    assert ids == [[0xA2, 0xB3], [0xC4], [0xC5]]


def test_the_commands_read_the_file_without_a_server(told: TraceStore, tmp_path: Path) -> None:
    told.close(30)
    listed = run(tmp_path, "traces")
    assert listed.returncode == 0, listed.stderr
    rows = listed.stdout.splitlines()
    assert [row.split()[3] for row in rows[1:]] == ["cancelled", "error", "ok"]
    assert [row.split()[2] for row in rows[1:]] == [trace_id(n) for n in (0xB3, 0xA2, 0xA1)]
    assert len(run(tmp_path, "traces", "--limit", "1").stdout.splitlines()) == 2
    only = run(tmp_path, "traces", "--model", "large", "--status", "error").stdout.splitlines()
    assert len(only) == 2
    assert "large" in only[1]
    assert run(tmp_path, "traces", "--model", "none").stdout.strip() == "No trace fits."
    shown = run(tmp_path, "trace", trace_id(0xA1))
    assert shown.returncode == 0, shown.stderr
    assert "decode" in shown.stdout


def test_what_can_not_be_shown_is_said_in_a_line(tmp_path: Path) -> None:
    outcome = run(tmp_path, "traces")
    assert outcome.returncode == 2
    assert str(tmp_path / "traces.db") in outcome.stderr
    assert "Traceback" not in outcome.stderr
    TraceStore(tmp_path / "traces.db").close(30)
    unknown = run(tmp_path, "trace", "abc")
    assert unknown.returncode == 2
    assert "There is no trace abc" in unknown.stderr
    assert not list(tmp_path.glob("*.broken*"))


def test_follow_prints_a_trace_that_comes_and_ends_on_ctrl_c(
    store: TraceStore, tmp_path: Path
) -> None:
    put(store, server(1))
    process = subprocess.Popen(
        [COMMAND, "traces", "--follow"],
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run that was started in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=[process.stdout])
    reader.start()
    try:
        wait_until(lambda: trace_id(1)[:16] in "".join(lines))
        put(store, server(0xFF << 120, at_s=5))
        wait_until(lambda: "ff00" in "".join(lines))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        reader.join()
        process.stdout.close()
    assert "Traceback" not in "".join(lines)
