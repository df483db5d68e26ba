"""What is exported: the ratio, what the caller decided, and always what failed or was slow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags

from mlx_manager.observability.finished_spans import DirectWriter, FinishedSpan
from mlx_manager.observability.losses import Losses
from mlx_manager.observability.sampling import RecordingSampler, Sampling, sampling_from
from mlx_manager.observability.tail import SINK, Limits, Slowness, TailSampler
from mlx_manager.traces.reader import TraceReader
from tests.support.collector import collecting
from tests.support.process import Started, started

MILLISECOND_NS = 10**6


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Sampling()),
        ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, Sampling()),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, Sampling()),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, Sampling(honours_caller=False)),
        ({"OTEL_TRACES_SAMPLER": "no-such"}, Sampling(honours_caller=False)),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            Sampling(0.25),
        ),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            Sampling(0.25, honours_caller=False),
        ),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "nan"},
            Sampling(),
        ),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_always_off"},
            Sampling(0.0, keeps_striking=False),
        ),
    ],
)
def test_the_standard_variables_say_what_is_sampled(
    environ: dict[str, str], expected: Sampling
) -> None:
    assert sampling_from(environ) == expected


def test_a_setting_wins_over_the_standard_variables() -> None:
    environ = {"OTEL_TRACES_SAMPLER": "always_off"}
    assert sampling_from(environ, 0.5, 2.0) == Sampling(0.5, 2.0)


class Traced:
    """A provider whose ended spans go through a `TailSampler`; `sent` has the names of those that came out."""

    def __init__(self, sampling: Sampling, limits: Limits | None = None) -> None:
        self.sent: list[str] = []
        self.losses = Losses()
        self.now_s = 0.0
        self.sampler = TailSampler(
            sampling,
            lambda span: self.sent.append(span.name),
            self.losses,
            limits=limits,
            clock_s=lambda: self.now_s,
        )
        provider = TracerProvider(sampler=RecordingSampler(sampling))
        provider.add_span_processor(self.sampler)
        self.tracer = provider.get_tracer("test")

    @property
    def held_back(self) -> int:
        return self.losses.by_sink().get(SINK, 0)

    def start(self, name: str, parent: Span | Context | None = None) -> Span:
        context = trace.set_span_in_context(parent) if isinstance(parent, Span) else parent
        return self.tracer.start_span(name, context or Context(), start_time=MILLISECOND_NS)

    def request(
        self, name: str = "root", *, fails: bool = False, ms: int = 1, caller: Context | None = None
    ) -> Span:
        """A request of a span and its child, in which the child may fail."""
        root = self.start(name, caller)
        child = self.start("child", root)
        if fails:
            child.set_status(StatusCode.ERROR)
        child.end(2 * MILLISECOND_NS)
        root.end((1 + ms) * MILLISECOND_NS)
        return root


def called_by(sampled: bool) -> Context:
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    return trace.set_span_in_context(
        NonRecordingSpan(SpanContext(0xABC << 64, 0xDEF, is_remote=True, trace_flags=flags)),
        Context(),
    )


def test_everything_is_sent_and_nothing_waits_unless_something_is_set() -> None:
    traced = Traced(Sampling())
    root = traced.start("root")
    traced.start("child", root).end()

    assert traced.sent == ["child"]


def test_a_ratio_keeps_whole_traces() -> None:
    traced = Traced(Sampling(0.5))
    for _ in range(400):
        traced.request()

    assert 120 < traced.sent.count("root") < 280
    assert traced.sent.count("child") == traced.sent.count("root")
    assert len(traced.sent) + traced.held_back == 800


def test_a_failure_keeps_its_whole_trace() -> None:
    traced = Traced(Sampling(0.0))
    traced.request()
    traced.request(fails=True)

    assert traced.sent == ["child", "root"]
    assert traced.held_back == 2


def test_nothing_is_kept_when_sampling_is_off() -> None:
    traced = Traced(sampling_from({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}))
    traced.request(fails=True)

    assert traced.sent == []


def test_what_takes_longer_than_the_threshold_is_kept() -> None:
    traced = Traced(Sampling(0.0, slow_s=0.5))
    traced.request(ms=499)
    traced.request("slow", ms=501)

    assert traced.sent == ["child", "slow"]


def test_the_slowest_hundredth_of_a_route_is_kept() -> None:
    traced = Traced(Sampling(0.0))
    for _ in range(200):
        traced.request("quick", ms=10)
        traced.request("lengthy", ms=1000)
    assert traced.sent == []
    traced.request("quick", ms=20)
    traced.request("lengthy", ms=900)

    assert traced.sent == ["child", "quick"]


def test_whoever_is_slower_than_all_before_is_kept_from_the_sixth_request_on() -> None:
    traced = Traced(Sampling(0.0))
    for ms in (10, 20, 30, 40, 50, 49, 51, 50, 52):
        traced.request(f"route {ms}")  # one of each name says nothing about another
        traced.request(ms=ms)
    assert traced.held_back == 2 * (9 + 7)
    assert traced.sent == ["child", "root"] * 2


@pytest.mark.parametrize("change_s", [-0.01, 0.0, 0.01])
def test_the_slowest_of_any_stretch_is_slow_unless_a_slower_one_came_just_before(
    change_s: float,
) -> None:
    """Also while a route gets quicker or slower."""
    random = Random(7)
    took_s = [random.lognormvariate(3, 1) + 10 + number * change_s for number in range(1000)]
    slowness = Slowness(None)
    is_slow = [slowness.observe("route", duration_s) for duration_s in took_s]

    for _ in range(2000):
        begin = random.randrange(Slowness.FIRST, 990)
        slowest = max(range(begin, random.randrange(begin + 1, 1000)), key=took_s.__getitem__)
        before_s = took_s[max(0, begin - 100) : begin]
        assert is_slow[slowest] or max(before_s) > took_s[slowest]
    assert sum(is_slow) < 100, "it still is a small share"


def test_slowness_forgets_names_and_old_durations() -> None:
    slowness = Slowness(None)
    for _ in range(1000):
        slowness.observe("route", 10.0)
    for _ in range(600):
        slowness.observe("route", 1.0)
    assert slowness.observe("route", 2.0)
    for number in range(10_000):
        slowness.observe(str(number), 1.0)
    assert not slowness.observe("route", 2.0)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_callers_no_is_respected_even_for_failures(ratio: float) -> None:
    traced = Traced(Sampling(ratio))
    root = traced.request(fails=True, caller=called_by(sampled=False))

    assert traced.sent == []
    assert not root.get_span_context().trace_flags.sampled


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_callers_yes_is_respected(ratio: float) -> None:
    traced = Traced(Sampling(ratio))
    root = traced.request(caller=called_by(sampled=True))

    assert traced.sent == ["child", "root"]
    assert root.get_span_context().trace_flags.sampled


def test_a_caller_counts_for_nothing_when_that_is_set() -> None:
    traced = Traced(Sampling(0.0, honours_caller=False))
    traced.request(caller=called_by(sampled=True))
    assert traced.sent == []
    traced.request(caller=called_by(sampled=False), fails=True)
    assert traced.sent == ["child", "root"]


def test_two_requests_of_one_trace_are_decided_apart() -> None:
    traced = Traced(Sampling(0.0, honours_caller=False))
    caller = called_by(sampled=False)
    first, second = traced.start("first", caller), traced.start("second", caller)
    second.set_status(StatusCode.ERROR)
    first.end()
    second.end()

    assert traced.sent == ["second"]


def test_a_span_that_outlives_its_root_is_decided_with_it() -> None:
    traced = Traced(Sampling(0.0))
    root = traced.start("root")
    late = traced.start("late", root)
    root.end()
    assert traced.sent == []
    late.set_status(StatusCode.ERROR)
    late.end()

    assert traced.sent == ["root", "late"]


def limited(limits: Limits, act: Callable[[Traced], object]) -> Traced:
    """A trace with a failure in it that never ends, and then `act`."""
    traced = Traced(Sampling(0.0), limits)
    root = traced.start("root")
    child = traced.start("child", root)
    child.set_status(StatusCode.ERROR)
    child.end()
    assert traced.sent == []
    act(traced)
    return traced


def wait_and(do: Callable[[Traced], object]) -> Callable[[Traced], object]:
    def act(traced: Traced) -> None:
        traced.now_s = 61.0
        do(traced)

    return act


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        (Limits(age_s=60), wait_and(lambda traced: traced.sampler.force_flush())),
        (Limits(age_s=60), wait_and(lambda traced: traced.request())),
        (Limits(traces=1), lambda traced: traced.request()),
        (Limits(spans=1), lambda traced: traced.request()),
        (Limits(), lambda traced: traced.sampler.shutdown()),
    ],
)
def test_what_never_ends_is_decided_in_the_end(
    limits: Limits, act: Callable[[Traced], object]
) -> None:
    assert "child" in limited(limits, act).sent


def test_a_trace_of_too_many_spans_is_decided_early_and_keeps_its_failures() -> None:
    traced = Traced(Sampling(0.0), Limits(spans_per_trace=2))
    root = traced.start("root")
    for _ in range(3):
        traced.start("child", root).end()
    failure = traced.start("failure", root)
    failure.set_status(StatusCode.ERROR)
    failure.end()

    assert traced.sent == ["failure"]
    assert traced.held_back == 3


def test_a_span_without_a_context_is_no_trouble() -> None:
    traced = Traced(Sampling(0.5))
    traced.sampler.on_end(ReadableSpan("made by hand"))

    assert traced.sent == ["made by hand"]
    assert otel_context.get_current() == {}


def test_a_span_that_never_began_shares_the_fate_of_its_parent() -> None:
    traced = Traced(Sampling(0.0))
    for fails in (False, True):
        root = traced.start("root")
        writer = DirectWriter([traced.sampler], Resource({}), InstrumentationScope("test"))
        writer.write(root, FinishedSpan("phase", 1, 2, {}, "failed" if fails else None))
        assert traced.sent == []
        root.end(2 * MILLISECOND_NS)

    assert traced.sent == ["phase", "root"]
    assert traced.held_back == 2


STATUS = {"passed": "ok", "failed": "error"}
FAILS = b'{"model": "no/such", "prompt": "x"}'


def ask(server: Started, caller_flag: str | None, body: bytes | None = None) -> str:
    """Send a request, one that fails where it has a `body`, and return the id of its trace."""
    headers = {"Content-Type": "application/json"}
    if caller_flag:
        headers["traceparent"] = f"00-{uuid4().hex}-b7ad6b7169203331-{caller_flag}"
    # Not with httpx: where another test has instrumented it, it would decide by its `traceparent`.
    with closing(HTTPConnection(server.url.removeprefix("http://"), timeout=60)) as connection:
        path = "/v1/completions" if body else "/v1/models"
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        assert answer.status == (404 if body else 200)
        return str(answer.headers["X-Trace-ID"])


def ask_all(server: Started) -> dict[tuple[str | None, str], str]:
    """Send a request that passes and one that fails for each thing a caller may say; return the ids of the traces."""
    return {
        (flag, outcome): ask(server, flag, body)
        for flag in (None, "00", "01")
        for outcome, body in (("passed", None), ("failed", FAILS))
    }


@pytest.mark.parametrize(
    ("ratio", "slow_s", "sent_unasked"),
    [
        ("0", "3600", {"failed"}),
        ("0", "0.000001", {"passed", "failed"}),
        ("1", "3600", {"passed", "failed"}),
    ],
)
def test_failures_and_slow_requests_are_kept_here_whatever_a_caller_says_and_sent_unless_it_says_no(
    tmp_path: Path, ratio: str, slow_s: str, sent_unasked: set[str]
) -> None:
    with collecting() as collector:
        variables = {
            "MLX_SERVER_TRACE_SAMPLE_RATIO": ratio,
            "MLX_SERVER_TRACE_SLOW_S": slow_s,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with started(tmp_path, "server", **variables) as server:
            traces = ask_all(server)
        sent = {span.trace_id.hex() for span in collector.spans}
    assert {which for which, trace_id in traces.items() if trace_id in sent} == {
        *((None, outcome) for outcome in sent_unasked),
        ("01", "passed"),
        ("01", "failed"),
    }
    assert_all_are_kept(tmp_path, traces)


def test_a_callers_no_counts_for_nothing_where_the_standard_variable_says_so(
    tmp_path: Path,
) -> None:
    """What docs/telemetry.md offers to those who want each failure exported."""
    with collecting() as collector:
        variables = {
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with started(tmp_path, "server", **variables) as server:
            traces = ask_all(server)
        sent = {span.trace_id.hex() for span in collector.spans}
    failed = {which for which in traces if which[1] == "failed"}
    assert {which for which, trace_id in traces.items() if trace_id in sent} == failed
    assert_all_are_kept(tmp_path, traces)


def assert_all_are_kept(folder: Path, traces: dict[tuple[str | None, str], str]) -> None:
    """The trace store has each, with its status."""
    with TraceReader(folder / "traces.db") as reader:
        kept = {which: reader.get_trace(trace_id) for which, trace_id in traces.items()}
    outcomes = {which: trace.summary.status for which, trace in kept.items() if trace}
    assert outcomes == {(flag, outcome): STATUS[outcome] for flag, outcome in traces}
