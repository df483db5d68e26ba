"""The benchmarks measure what they say; how fast anything is, no test asserts."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from benchmarks.__main__ import DEFAULT_PARTS, main, parse
from benchmarks.child import Child
from benchmarks.compare import BARE, MLX_LM, OURS
from benchmarks.connection import Reply
from benchmarks.contenders import Measured, deal
from benchmarks.figures import Figures, Spread, percentile, telemetry_figures
from benchmarks.followup import FollowUp
from benchmarks.goals import telemetry_goals
from benchmarks.history import Earlier
from benchmarks.memory import Growth
from benchmarks.models import make_model
from benchmarks.prompts import PromptMaker
from benchmarks.receiver import otlp_receiver
from benchmarks.replies import read
from benchmarks.report import WIDTH, Report, print_report
from benchmarks.rounds import measure, orders, throughput_ratio
from benchmarks.servers import Cpu, fast_blas
from benchmarks.telemetry import OFF, SPANS, STORE, STORE_AND_OTLP, TelemetryCost, measure_telemetry
from benchmarks.work import (
    CLIENT_COUNTS,
    Answers,
    BareRequest,
    BareTask,
    Length,
    Load,
    even_load,
    mixed_load,
)
from mlx_manager.traces.reader import TraceReader
from mlx_manager.traces.summary import TraceFilter

LENGTH = Length(prompt_tokens=7, output_tokens=2)
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
)


def test_a_plain_run_measures_all_that_goals_are_set_for_and_a_quick_one_less() -> None:
    plain, quick, named = (parse(line.split()) for line in ("", "--quick", "prefix --quick"))
    assert plain.parts == ["tiny", "small", "mixed", "contended", "prefix", "telemetry"]
    assert (plain.clients, CLIENT_COUNTS["even"]) == (None, (1, 4, 16, 32, 64))
    assert quick.parts == ["tiny", "small", "telemetry"]
    assert quick.rounds < plain.rounds
    assert named.parts == parse(["--only", "prefix"]).parts == ["prefix"]
    with pytest.raises(SystemExit):
        parse(["nothing-such"])


def test_a_run_reports_every_contender_and_checks_every_answer(tmp_path: Path) -> None:
    file = tmp_path / "report.json"

    status = main(
        [*"tiny --without-mlx-lm --clients 1,2 --rounds 1 --quick --json".split(), str(file)]
    )

    report = json.loads(file.read_text())
    rows = report["comparisons"]
    assert status == 0
    assert report["failures"] == []
    assert [(row["clients"], row["contender"]) for row in rows] == [
        (clients, name)
        for clients in (1, 2)
        for name in ("bare loop", "bare loop, spread", "MLX Manager", "MLX Manager, streamed")
    ]
    assert all(row["requests"] > 0 and row["tokens_per_s"]["median"] > 0 for row in rows)
    assert all(row["engine_cpu_us_per_token"] > 0 for row in rows)
    for row in rows:
        is_whole = row["contender"] == "MLX Manager"
        assert (row["first_token_p99_s"] is None) == is_whole
        assert (row["gap_p50_s"] is None) == is_whole
    assert report["goals"][-1]["is_met"]


def test_mixed_lengths_are_always_the_same_and_weigh_the_same_for_every_client(
    tmp_path: Path,
) -> None:
    load = mixed_load(8, 12)

    dealt = deal(load, 1, PromptMaker(make_model(tmp_path, "tiny")))

    prompts = {tuple(sorted(len(prompt.token_ids) for prompt, _ in own)) for own in dealt}
    outputs = {tuple(sorted(length.output_tokens for _, length in own)) for own in dealt}
    assert load == mixed_load(8, 12)
    assert [(own[0], own[-1], len(set(own))) for own in prompts] == [(32, 1500, 12)]
    assert [(own[0], own[-1], len(set(own))) for own in outputs] == [(8, 200, 12)]
    assert len({tuple(own) for own in load.lengths}) == 8


def test_short_requests_are_timed_beside_a_long_prompt(tmp_path: Path) -> None:
    file = tmp_path / "report.json"

    status = main([*"contended --without-mlx-lm --rounds 1 --quick --json".split(), str(file)])

    report = json.loads(file.read_text())
    own, bare = report["contended"]
    assert status == 0
    assert (own["server"], bare["server"]) == ("MLX Manager", "bare loop")
    for row in (own, bare):
        assert len(row["alone_s"]) > 5
        assert len(row["beside_s"]) >= 1
        assert max(row["beside_s"]) < min(row["long_s"])
    assert 0 < own["piece_s"] <= own["alone_long_s"]
    assert bare["piece_s"] is None
    assert report["goals"][0]["name"].startswith("MLX Manager: first token")


def test_a_second_turn_is_timed_warm_and_after_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"

    status = main([*"prefix --rounds 1 --quick --json".split(), str(file)])

    own, bare, theirs = rows = json.loads(file.read_text())["followups"]
    assert status == 0
    assert {(row["model"], row["tokens"]) for row in rows} == {("tiny", 1000)}
    assert [row["contender"] for row in rows] == ["MLX Manager", "bare loop", "mlx_lm.server"]
    assert own["warm_s"][0] < own["cold_s"][0]
    assert own["restart_s"][0] < own["cold_s"][0]
    assert (len(bare["cold_s"]), len(bare["warm_s"]), bare["restart_s"]) == (1, 1, [])
    assert own["warm_s"][0] < bare["warm_s"][0]
    assert len(theirs["cold_s"]) == len(theirs["warm_s"]) == len(theirs["restart_s"]) == 1
    of_bare, of_theirs = (f"{own['warm_s'][0] / row['warm_s'][0]:.3f}" for row in (bare, theirs))
    printed = capsys.readouterr().out
    assert re.search(rf"1,000, MLX Manager .* {of_bare} .* {of_theirs} ", printed)
    assert main([*"prefix --rounds 1 --quick --without-mlx-lm --against".split(), str(file)]) == 0
    assert "mlx_lm.server" not in capsys.readouterr().out


def test_the_table_of_second_turns_has_room_for_slow_ones(tmp_path: Path) -> None:
    own = FollowUp("small", 8_000, OURS, [60.0, 70.0, 80.0], [0.6, 0.7, 1.6], [1.2, 0.7, 0.8])
    bare = FollowUp("small", 8_000, BARE, [60.0, 70.0, 80.0], [90.0, 70.0, 80.0])
    theirs = FollowUp("small", 8_000, MLX_LM, [60.0] * 3, [0.3, 0.7, 0.8], [60.0] * 3)
    with (tmp_path / "printed").open("w") as printed:
        print_report(Report(3, followups=[own, bare, theirs]), Console(file=printed, width=WIDTH))
    text = (tmp_path / "printed").read_text()

    assert re.search(
        r"small, 8,000, MLX Manager +70,000.0 +700.0 +800.0 +0.010 \(0.010 … 0.020\) "
        r"+0.010 \(0.010 … 0.020\) +0.010 \(0.007 … 0.020\) +2.000 \(1.000 … 2.000\)",
        text,
    )
    assert re.search(r"bare loop +70,000.0 +80,000.0 +- +1.000 \(1.000 … 1.500\) +- +- +-", text)
    assert re.search(
        r"mlx_lm.server +60,000.0 +700.0 +60,000.0 +0.012 \(0.005 … 0.013\) +1.000 \(", text
    )


def test_a_led_task_ends_with_its_first_client_and_the_others_come_after_their_pauses(
    tmp_path: Path,
) -> None:
    path = make_model(tmp_path, "tiny")
    led = [BareRequest([5] * 40, 6)] * 2
    soon, late = BareRequest([7] * 9, 2, pause_s=0.001), BareRequest([7] * 9, 2, pause_s=600)
    with Child("benchmarks.bare", [str(path)], fast_blas()) as child:
        answers = child.ask(BareTask([led, [soon, late]], is_led=True))
        again = child.ask(BareTask([[soon] * 3]))

    assert len(answers.first_token_s) == 3
    assert answers.failures == again.failures == []
    assert answers.wall_s < 600
    assert (again.requests, again.tokens, len(again.first_token_s)) == (3, 6, 3)


def test_an_unknown_part_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "huge"])

    assert "no part 'huge'" in capsys.readouterr().err


def test_prompts_have_the_length_asked_for_and_differ_from_their_first_word(tmp_path: Path) -> None:
    prompts = PromptMaker(make_model(tmp_path, "tiny"))

    made = prompts.make([64] * 20, seed=1) + prompts.make([64] * 20, seed=2)

    assert {len(prompt.token_ids) for prompt in made} == {64}
    assert len({prompt.text.split()[0] for prompt in made}) == 40


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_stream_is_timed_by_its_text_however_it_is_cut(cut: int, is_chunked: bool) -> None:
    reply = _arrived(_stream(is_chunked), cut)

    reading = read(reply, LENGTH)

    assert reading.failure is None
    assert reading.tokens == 2
    assert len(reading.gaps_s) == 1
    assert reading.first_token_s is not None


def test_an_answer_with_other_counts_is_a_failure() -> None:
    body = (
        b'{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":1}}'
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

    reading = read(_arrived(head + body, 1000), LENGTH)

    assert reading.failure == "(7, 1, 'stop') instead of (7, 2, 'length')"
    assert reading.tokens == 0


def test_an_answer_that_breaks_off_or_is_refused_is_a_failure() -> None:
    broken = _arrived(_stream(True)[:-9], 1000)
    refused = _arrived(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", 1000)

    assert "ended before" in str(read(broken, LENGTH).failure)
    assert "503" in str(read(refused, LENGTH).failure)


@pytest.mark.parametrize("names", ["abc", "abcd"])
def test_nobody_is_favoured_by_the_place_in_a_round(names: str) -> None:
    contenders = [_Steady(name) for name in names]

    rounds = [[one.name for one in order] for order in orders(contenders, 2 * len(names))]

    assert all(sorted(order) == [*names] for order in rounds)
    for place in zip(*rounds, strict=True):
        assert Counter(place) == dict.fromkeys(names, 2)


def test_ratios_compare_what_was_measured_in_the_same_round() -> None:
    series = measure([_Steady("a", 2.0), _Steady("b", 4.0)], even_load(1, 1, 10), 3, lambda _: None)

    assert series["a"].compared(series["b"], throughput_ratio) == [2.0, 2.0, 2.0]


def test_telemetry_is_measured_from_off_to_an_export_and_nothing_else_reaches_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    cost = measure_telemetry("tiny", 1, tmp_path, lambda _: None, clients=1, is_quick=True)

    assert cost.failures == []
    stored = {name: _has_traces(tmp_path / name / "traces.db") for name in cost.series}
    assert stored == {OFF: False, SPANS: False, STORE: True, STORE_AND_OTLP: True}


def test_a_receiver_takes_what_an_exporter_sends() -> None:
    with otlp_receiver() as receiver, httpx.Client() as client:
        for path in ("/v1/traces", "/v1/metrics", "/v1/traces"):
            assert client.post(f"{receiver.url}{path}", content=b"x" * 100_000).status_code == 200
        assert receiver.exports_of_spans() == 2


def test_each_kind_of_telemetry_is_compared_with_none_and_the_store_with_spans_alone() -> None:
    walls_s = {OFF: 1.0, SPANS: 1.25, STORE: 1.26, STORE_AND_OTLP: 2.0}
    contenders = [_Steady(name, wall_s) for name, wall_s in walls_s.items()]
    series = measure(contenders, even_load(2, 1, 10), 3, lambda _: None)
    part = telemetry_figures(TelemetryCost("tiny", series))

    ratios = {(row.telemetry, row.against): row.throughput_ratio.median for row in part.rows}
    goals = {goal.name.partition(":")[0]: goal.is_met for goal in telemetry_goals(part)}

    assert part.requests == 4 * 3 * 2
    assert ratios == pytest.approx(
        {
            (OFF, OFF): 1.0,
            (SPANS, OFF): 0.8,
            (STORE, OFF): 1 / 1.26,
            (STORE, SPANS): 1.25 / 1.26,
            (STORE_AND_OTLP, OFF): 0.5,
        }
    )
    assert goals == {"tiny, telemetry into the store": False, "tiny, writing to the store": True}


def test_a_plain_run_prints_what_each_kind_of_telemetry_costs(tmp_path: Path) -> None:
    walls_s = {OFF: 1.0, SPANS: 1.25, STORE: 1.28, STORE_AND_OTLP: 2.0}
    contenders = [_Steady(name, wall_s) for name, wall_s in walls_s.items()]
    series = measure(contenders, even_load(2, 1, 10), 3, lambda _: None)
    report = Report(3, telemetry=[telemetry_figures(TelemetryCost("tiny", series))])
    with (tmp_path / "printed").open("w") as printed:
        print_report(report, Console(file=printed, width=200))
    text = (tmp_path / "printed").read_text()

    assert "telemetry" in DEFAULT_PARTS
    assert "what telemetry costs: tiny, streamed" in text
    for telemetry, against, ratio in (
        (OFF, OFF, "1.000"),
        (SPANS, OFF, "0.800"),
        (STORE, OFF, "0.781"),
        (STORE, SPANS, "0.977"),
        (STORE_AND_OTLP, OFF, "0.500"),
    ):
        assert re.search(
            rf"^ *{telemetry} +{against} +[\d,]+ +{ratio} +{ratio} … {ratio} ", text, re.M
        )


def test_a_share_that_is_smaller_in_every_round_is_slower_than_before(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    place = {"model": "tiny", "work": "even", "contender": "MLX Manager"}
    rows = [
        place | {"clients": clients, "ratio": {"median": 0.9, "low": 0.85, "high": 1.0}}
        for clients in (1, 4)
    ]
    file.write_text(json.dumps({"started_at": "2026-11-27T10:00", "comparisons": rows}))
    earlier = Earlier.read(file)

    figures = {one: figures_of(one, Spread(0.8, 0.7, high)) for one, high in ((4, 0.84), (16, 0.1))}
    [change] = earlier.changes(figures.values())
    assert change.place == "tiny, even, 4 clients, MLX Manager"
    assert change.is_slower
    [change] = earlier.changes([figures_of(4, Spread(0.8, 0.7, 0.86))])
    assert not change.is_slower, "their ranges meet"
    report = Report(1, comparisons=[*figures.values()], earlier=earlier)
    with (tmp_path / "printed").open("w") as printed:
        print_report(report, Console(file=printed, width=200))
    assert re.search(
        r"4 clients, MLX Manager +0.90 .* 0.80 .* slower", (tmp_path / "printed").read_text()
    )


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(SystemExit):
        main(["tiny", "--against", str(file)])
    assert "other.json is no report that --json has written" in capsys.readouterr().err


def figures_of(clients: int, share: Spread) -> Figures:
    one = Spread(1.0, 1.0, 1.0)
    return Figures(
        model="tiny",
        work="even",
        clients=clients,
        contender="MLX Manager",
        requests=1,
        failures=0,
        tokens_per_s=one,
        ratio=share,
        first_token_p50_s=None,
        first_token_p99_s=None,
        gap_p50_s=None,
        gap_p99_s=None,
        cpu_us_per_token=one,
        api_cpu_us_per_token=1.0,
        engine_cpu_us_per_token=1.0,
        extra_cpu_us_per_token=one,
        client_cpu_us_per_token=None,
    )


def test_growth_is_the_slope_after_the_warm_up() -> None:
    requests = list(range(100, 1100, 100))
    flat = Growth("API", requests, [5000, 9000, *[10_000] * 8])
    leaking = Growth("API", requests, [count * 3 for count in requests])

    assert flat.growth_bytes == pytest.approx(0)
    assert leaking.bytes_per_request == pytest.approx(3)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([], 0.5) is None


def _has_traces(file: Path) -> bool:
    if not file.exists():
        return False
    with TraceReader(file) as reader:
        return bool(reader.list_traces(TraceFilter()).traces)


class _Steady:
    """A contender that always takes the same time."""

    def __init__(self, name: str, wall_s: float = 1.0) -> None:
        self.name = name
        self._wall_s = wall_s

    def run(self, load: Load, seed: int) -> Measured:
        answers = Answers(self._wall_s, 0.0, load.requests, load.output_tokens, [], [], [])
        return Measured(answers, Cpu(0.1, 0.2), None)


def _stream(is_chunked: bool) -> bytes:
    if not is_chunked:
        return b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"".join(EVENTS)
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = (b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS)
    return head + b"".join(chunks) + b"0\r\n\r\n"


def _arrived(data: bytes, piece: int) -> Reply:
    """Return the reply that `data` makes when it comes in pieces of so many bytes."""
    reply = Reply(sent_s=0.0)
    for start in range(0, len(data), piece):
        if reply.take(data[start : start + piece]):
            break
    else:
        reply.end()
    return reply
