"""What Prometheus reads from a real server after real chats."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_manager.observability import attributes
from mlx_manager.observability.exposition import family_name
from tests.conftest import ENDLESS_TOKENS, TINY
from tests.observability.conftest import Python
from tests.support.process import Started, started
from tests.support.promql import Query, Selector, parse
from tests.support.promql_value import Window, quantile
from tests.support.running import wait_until
from tests.support.scrape import Scrape, rise

KEY = "a-key-for-metrics"
DURATION = "gen_ai_server_request_duration_seconds_count"
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "mlx-manager.json"
BUCKETED = [
    one for one in vars(attributes).values() if isinstance(one, attributes.Metric) and one.buckets
]
CUMULATIVE = ("_total", "_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the server's prefix cache."""
    return tmp_path_factory.mktemp("prefixes")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path, prefixes: Path
) -> Iterator[Started]:
    """The manager with metrics, with room for two requests at a time; its model is in memory."""
    folder = tmp_path_factory.mktemp("metrics")
    with started(
        folder,
        *("serve", "--model-dir", str(model_dir), "--model", TINY),
        MLX_SERVER_METRICS="true",
        MLX_SERVER_METRICS_KEY=KEY,
        MLX_SERVER_MAX_BATCH="2",
        # A step makes one token of a row: its steps are counted.
        MLX_SERVER_LOOKUP_TOKENS="0",
        MLX_SERVER_PREFIX_DISK_MIB="16",
        MLX_SERVER_PREFIX_DISK_PATH=str(prefixes),
    ) as server:
        yield server


def ask(server: Started, **changes: Any) -> httpx.Response:
    """Ask for 20 tokens, greedily: a sampled answer may meet an end token before."""
    body = {
        "model": TINY,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 20,
        "temperature": 0,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body | changes, timeout=60)


def leave(server: Started) -> None:
    """Ask for a long answer and go away after its first line."""
    body = {
        "model": TINY,
        "prompt": "x",
        "max_tokens": ENDLESS_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())


def cancelled(server: Started) -> float:
    return Scrape.of(server.url).total("mlx_requests_cancelled_total")


def engine_pid(server: Started) -> int:
    (engine,) = [
        child.pid
        for child in psutil.Process(server.process.pid).children()
        if "mlx_manager.mlx_server.engine" in child.cmdline()
    ]
    return engine


def test_each_chat_counts_once_and_where_it_belongs(server: Started) -> None:
    before = Scrape.of(server.url)
    whole, streamed = ask(server), ask(server, stream=True, stream_options={"include_usage": True})
    refused = ask(server, model="no/such")
    # A chat counts a moment after its end.
    wait_until(lambda: rise(before, Scrape.of(server.url))(DURATION) == 3)
    risen = rise(before, Scrape.of(server.url))

    assert [a.status_code for a in (whole, streamed, refused)] == [200, 200, 404]
    model = {"gen_ai_request_model": TINY, "gen_ai_response_model": TINY}
    assert risen(DURATION, **model, http_route="/v1/chat/completions") == 2
    assert risen(DURATION, error_type="model_not_found") == 1
    assert risen(DURATION) == 3
    assert risen("gen_ai_server_time_to_first_token_seconds_count", **model) == 2
    assert risen("gen_ai_server_time_per_output_token_seconds_count", **model) == 2
    usage = whole.json()["usage"]
    read = usage["prompt_tokens"]
    # The second one asks the same, and only its last token is computed.
    cached = usage["prompt_tokens_details"]["cached_tokens"] + read - 1
    assert risen("mlx_tokens_total", kind="input", **model) == 2 * read
    assert risen("mlx_tokens_total", kind="output", **model) == 40
    assert risen("mlx_tokens_total", kind="cached") == cached
    assert risen("mlx_prefix_cache_tokens_total", outcome="computed", **model) == 2 * read - cached
    assert risen("mlx_prefix_cache_tokens_total", outcome="cached") == cached


def test_a_long_answer_is_measured_no_more_often_than_a_short_one(server: Started) -> None:
    def recordings(tokens: int) -> dict[str, float]:
        before = Scrape.of(server.url)
        body = {
            "model": TINY,
            "prompt": "x",
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
        }
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        wait_until(lambda: rise(before, Scrape.of(server.url))(DURATION) == 1)
        after = Scrape.of(server.url)
        counts = {one.name for one in after.samples if one.name.endswith("_count")}
        return {name: rise(before, after)(name) for name in counts}

    short, long = recordings(5), recordings(500)
    # It counts steps, in the engine, which tells them once a second.
    steps = "mlx_engine_step_duration_seconds_count"
    assert len(short) > 3
    assert short | {steps: 0} == long | {steps: 0}


def test_a_chat_whose_client_leaves_counts_as_cancelled_with_the_tokens_it_took(
    server: Started,
) -> None:
    before = Scrape.of(server.url)
    leave(server)
    wait_until(lambda: cancelled(server) > before.total("mlx_requests_cancelled_total"))
    risen = rise(before, Scrape.of(server.url))

    assert risen("mlx_requests_cancelled_total", http_route="/v1/completions") == 1
    assert risen(DURATION) == 0
    assert risen("mlx_tokens_total", kind="input") == 1
    assert 0 < risen("mlx_tokens_total", kind="output") < ENDLESS_TOKENS


def test_a_damaged_file_of_the_prefix_cache_is_counted_and_its_part_is_read_again(
    server: Started, prefixes: Path
) -> None:
    asked = [{"role": "user", "content": "What is read from a file? " * 30}]
    first = ask(server, messages=asked)
    httpx.post(f"{server.url}/admin/models/unload", json={"model": TINY}, timeout=60)
    files = list(prefixes.glob("*/*.safetensors"))
    assert files
    for file in files:
        data = file.read_bytes()
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    again = ask(server, messages=asked)

    def became(outcome: str) -> float:
        return Scrape.of(server.url).total("mlx_prefix_cache_files_total", outcome=outcome)

    wait_until(lambda: became("corrupt") > 0)
    texts = [one.json()["choices"][0]["message"]["content"] for one in (first, again)]
    assert texts[0] == texts[1]
    cached = again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached < 256, "of a damaged block nothing is used"
    assert became("read") == 0


def test_an_exemplar_leads_to_the_trace_of_the_chat_for_each_who_scrapes(server: Started) -> None:
    trace_id = ask(server).headers["X-Trace-ID"]
    wait_until(lambda: trace_id in _exemplars(Scrape.of(server.url), "request_duration"))
    for _ in range(2):
        scrape = Scrape.of(server.url)
        for name in ("request_duration", "time_to_first_token", "time_per_output_token"):
            assert trace_id in _exemplars(scrape, name)


def _exemplars(scrape: Scrape, name: str) -> list[str]:
    """The trace ids of a histogram's exemplars."""
    found = scrape.exemplars(f"gen_ai_server_{name}_seconds_bucket")
    return [exemplar.labels["trace_id"] for exemplar in found]


def test_what_an_engine_does_for_all_has_no_trace(server: Started) -> None:
    # The engine's own start is part of a request's trace, and what it does from then on is not.
    httpx.post(f"{server.url}/admin/models/unload", json={"model": TINY}, timeout=60)
    ask(server)
    scrape = Scrape.of(server.url)
    assert scrape.total("mlx_engine_step_duration_seconds_count") > 0
    assert scrape.exemplars("mlx_engine_step_duration_seconds_bucket") == []
    assert scrape.exemplars("mlx_worker_restarts_total") == []


def busy(scrape: Scrape) -> bool:
    """Whether the batch is full and somebody waits, as the engine said last."""
    return scrape.total("mlx_batch_width") == 2 and scrape.total("mlx_queue_depth") >= 1


def test_the_engine_s_own_figures_follow_its_work(server: Started, model_dir: Path) -> None:
    before, during, is_seen = Scrape.of(server.url), list[Scrape](), threading.Event()

    def look() -> bool:
        during.append(Scrape.of(server.url))
        return busy(during[-1])

    def keep_asking() -> int:
        tokens = 0
        while not is_seen.is_set():
            tokens += ask(server, max_tokens=200).json()["usage"]["completion_tokens"]
        return tokens

    with ThreadPoolExecutor() as threads:
        asking = [threads.submit(keep_asking) for _ in range(5)]
        try:
            wait_until(look, timeout_s=60)  # the engine says how it is once a second
        finally:
            is_seen.set()
        tokens = sum(one.result() for one in asking)
    wait_until(lambda: Scrape.of(server.url).total("mlx_batch_width") == 0)
    after = Scrape.of(server.url)

    full = during[-1]
    assert full.total("mlx_requests_active", gen_ai_request_model=TINY) >= 3
    assert full.total("mlx_memory_bytes", kind="kv") > 0
    assert after.total("mlx_requests_active") == 0
    assert after.total("mlx_queue_depth") == 0
    weights = sum(file.stat().st_size for file in (model_dir / TINY).glob("*.safetensors"))
    # The file has a header, too.
    assert 0.9 * weights < after.total("mlx_memory_bytes", kind="weights") <= weights
    assert after.total("mlx_memory_bytes", kind="kv") == 0
    assert 0 < after.total("mlx_memory_bytes", kind="buffers") < 2**30
    assert 0 < after.total("mlx_memory_bytes", kind="prefix_cache") <= 1024 * 2**20
    assert after.total("mlx_memory_reserved_bytes", kind="weights") == after.total(
        "mlx_memory_bytes", kind="weights"
    )
    assert after.total("mlx_memory_reserved_bytes") < after.total("mlx_memory_budget_bytes")
    for kind, least in (("kv", 1), ("prefix_cache", 2**20), ("head_room", 256 * 2**20)):
        assert after.total("mlx_memory_reserved_bytes", kind=kind) >= least, kind
    risen = rise(before, after)
    # A step makes a token for each of the two in the batch, or for one alone.
    assert tokens / 2 <= risen("mlx_engine_step_duration_seconds_count") <= tokens + 50
    assert risen("mlx_engine_step_duration_seconds_sum") > 0


def test_a_killed_engine_is_a_restart_and_a_load(server: Started) -> None:
    before = Scrape.of(server.url)
    os.kill(engine_pid(server), signal.SIGKILL)
    loads = "mlx_model_load_duration_seconds_count"
    wait_until(lambda: rise(before, Scrape.of(server.url))(loads) == 1, timeout_s=120)
    risen = rise(before, Scrape.of(server.url))

    assert risen("mlx_worker_restarts_total", gen_ai_request_model=TINY) == 1
    assert risen("mlx_model_load_duration_seconds_sum") > 0.05
    assert ask(server).status_code == 200


def test_a_request_that_goes_on_in_a_fresh_engine_is_counted_and_its_tokens_once(
    server: Started,
) -> None:
    wait_until(lambda: Scrape.of(server.url).total("mlx_requests_active") == 0)
    time.sleep(0.5)  # a chat counts a moment after its end
    before, killed = Scrape.of(server.url), engine_pid(server)
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(ask, server, max_tokens=3500)
        wait_until(lambda: Scrape.of(server.url).total("mlx_batch_width") == 1)
        os.kill(killed, signal.SIGKILL)
        assert asking.result().json()["usage"]["completion_tokens"] == 3500
    wait_until(lambda: rise(before, Scrape.of(server.url))(DURATION) == 1)
    after = Scrape.of(server.url)
    risen = rise(before, after)
    assert risen("mlx_requests_resumed_total", gen_ai_request_model=TINY) == 1
    assert risen("mlx_tokens_total", kind="output") == 3500
    assert [one.value for one in after.matching("mlx_circuit_open")] == [0]
    assert {one.labels["kind"] for one in after.matching("mlx_engine_row_difference")} == {
        "orphaned",
        "missing",
        "unbooked",
    }
    assert after.total("mlx_engine_row_difference") == 0


def test_the_older_text_is_given_to_those_who_ask_for_text(server: Started) -> None:
    ask(server)
    headers = {"Accept": "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}
    response = httpx.get(f"{server.url}/metrics", headers=headers)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"mlx_tokens", "mlx_requests_active", "target_info"} <= families
    assert "trace_id" not in response.text


def test_openmetrics_is_given_to_prometheus_and_to_those_who_do_not_say(server: Started) -> None:
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    for accept in (prometheus, "*/*"):
        response = httpx.get(f"{server.url}/metrics", headers={"Accept": accept})
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")


def test_it_says_who_is_speaking(server: Started) -> None:
    (target,) = Scrape.of(server.url).matching("target_info")
    assert target.labels["service_name"] == "mlx-manager"
    assert target.labels["deployment_environment_name"] == "development"


def test_reading_metrics_leaves_no_trace_and_no_line_in_the_log(server: Started) -> None:
    response = httpx.get(f"{server.url}/metrics")
    httpx.get(f"{server.url}/v1/models")
    wait_until(lambda: "GET /v1/models" in server.text)
    assert "X-Trace-ID" not in response.headers
    assert "/metrics" not in server.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Authorization": "Bearer wrong"}, 403),
        ({"Authorization": f"Basic {KEY}"}, 403),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer {KEY}"}, 200),
    ],
)
def test_from_another_machine_it_takes_the_key(
    server: Started, headers: dict[str, str], status: int
) -> None:
    # What a proxy on this machine says of its clients.
    elsewhere = {"X-Forwarded-For": "203.0.113.7"}
    response = httpx.get(f"{server.url}/metrics", headers=headers | elsewhere)
    assert response.status_code == status
    if status == 403:
        assert response.json()["code"] == "metrics_forbidden"
        assert "MLX_SERVER_METRICS_KEY" in response.json()["detail"]
        assert KEY not in response.text


def test_off_by_default_and_it_says_how_to_switch_it_on(tmp_path: Path) -> None:
    with started(tmp_path, "server") as server:
        response = httpx.get(f"{server.url}/metrics")
    assert response.status_code == 404
    assert response.json()["code"] == "metrics_off"
    assert "MLX_SERVER_METRICS=true" in response.json()["detail"]


# Calls of both SDKs from one process: what it was configured for can't be changed afterwards.
CALLS = """
from mlx_manager.mlx_server.observability.logfire_config import configure_logfire, instrument_llm_clients
from mlx_manager.observability.setup import scrape
configure_logfire(metrics=True)
instrument_llm_clients()
import anthropic, openai
from opentelemetry import trace
from tests.support.provider import MESSAGES, app
from tests.support.running import running

def unsampled():
    context = trace.SpanContext(1, 1, is_remote=True, trace_flags=trace.TraceFlags(0))
    return trace.use_span(trace.NonRecordingSpan(context))

def call_all(gpt, claude):
    chats = gpt.chat.completions
    chats.create(model="gpt", messages=MESSAGES)
    usage = {"include_usage": True}
    list(chats.create(model="gpt", messages=MESSAGES, stream=True, stream_options=usage))
    with unsampled():
        chats.create(model="gpt", messages=MESSAGES)
        claude.messages.create(model="claude", messages=MESSAGES, max_tokens=9)
    with chats.create(model="gpt", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
    try:
        chats.create(model="unknown", messages=MESSAGES)
    except openai.NotFoundError:
        pass
    claude.messages.create(model="claude", messages=MESSAGES, max_tokens=9)
    with claude.messages.stream(model="claude", messages=MESSAGES, max_tokens=9) as stream:
        stream.get_final_text()

with (
    running(app) as server,
    openai.OpenAI(base_url=server.url + "/v1", api_key="k", max_retries=0) as gpt,
    anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0) as claude,
):
    for _ in range(2):
        call_all(gpt, claude)
        print(scrape("").body.decode())
"""


@pytest.fixture(scope="module")
def both_calls(module_python: Python) -> list[Scrape]:
    """What a process has measured that called both providers, and what when it had done so again."""
    done = module_python(CALLS)
    assert done.returncode == 0, done.stderr
    end = "# EOF\n"
    return [Scrape.parsed(text.lstrip() + end) for text in done.stdout.split(end)[:2]]


@pytest.fixture(scope="module")
def calls(both_calls: list[Scrape]) -> Scrape:
    """What it has measured when it had called them once."""
    return both_calls[0]


@pytest.mark.parametrize("metric", BUCKETED, ids=lambda metric: metric.name)
def test_histograms_are_scraped_with_the_bounds_that_are_documented(
    everything: Scrape, metric: attributes.Metric
) -> None:
    samples = everything.matching(f"{family_name(metric.name, metric.unit, metric.kind)[0]}_bucket")
    bounds = {float(sample.labels["le"]) for sample in samples}
    assert metric.buckets
    assert bounds == {*metric.buckets, math.inf}


def test_a_load_that_fails_is_measured_with_its_error(tmp_path: Path, model_dir: Path) -> None:
    broken = tmp_path / "models" / "test" / "broken"
    shutil.copytree(model_dir / TINY, broken)
    (broken / "model.safetensors").write_bytes(b"none")
    arguments = ("server", "--model-dir", str(tmp_path / "models"))
    with started(tmp_path, *arguments, MLX_SERVER_METRICS="true") as server:
        body = {"model": "test/broken", "prompt": "x"}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        scrape = Scrape.of(server.url)
    assert answer.status_code == 503
    loads = "mlx_model_load_duration_seconds_count"
    assert scrape.total(loads, error_type="model_load_failed") == scrape.total(loads) == 1


def test_calls_of_cloud_providers_are_in_the_conventions_metrics(calls: Scrape) -> None:
    duration, usage = "gen_ai_client_operation_duration_seconds", "gen_ai_client_token_usage"
    gpt = {"gen_ai_provider_name": "openai", "gen_ai_response_model": "gpt-real"}
    claude = {"gen_ai_provider_name": "anthropic", "gen_ai_response_model": "claude-real"}
    # Three whole ones; the one that was left has no true duration.
    assert calls.total(f"{duration}_count", **gpt, gen_ai_operation_name="chat") == 3
    assert calls.total(f"{duration}_count", error_type="NotFoundError") == 1
    assert calls.total(f"{duration}_count", **claude) == 3
    assert 0 < calls.total(f"{duration}_sum") < 60
    for provider, whole in ((gpt, 3), (claude, 3)):
        assert calls.total(f"{usage}_sum", **provider, gen_ai_token_type="input") == 11 * whole
        assert calls.total(f"{usage}_sum", **provider, gen_ai_token_type="output") == 3 * whole
    assert calls.exemplars(f"{duration}_bucket")


def expressions() -> list[str]:
    """Every query of the dashboard, its variables filled in as Grafana does when all is wanted."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    queries += [
        variable["query"]["query"]
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in queries]


@pytest.fixture(scope="module")
def everything(server: Started, calls: Scrape) -> Scrape:
    """All that there is after something of everything has happened."""
    ask(server)
    ask(server, model="no/such")
    leave(server)
    wait_until(lambda: cancelled(server) > 0)
    # Told once a second.
    wait_until(lambda: Scrape.of(server.url).total("mlx_engine_step_duration_seconds_count") > 0)
    return Scrape([*Scrape.of(server.url).families, *calls.families])


def found(scrape: Scrape, selector: Selector) -> list[dict[str, str]]:
    """The labels of the series that a selector finds."""
    return [
        dict(sample.labels)
        for sample in scrape.matching(selector.metric)
        if all(one.accepts(sample.labels.get(one.label, "")) for one in selector.matchers)
    ]


@pytest.mark.parametrize("expression", expressions())
def test_every_query_of_the_dashboard_finds_what_it_asks_for(
    everything: Scrape, expression: str
) -> None:
    if expression.startswith("label_values("):
        metric, label = expression.removeprefix("label_values(").rstrip(")").split(", ")
        query = Query((Selector(metric, (), False),), frozenset({label}))
    else:
        query = parse(expression)
    assert query.selectors
    for selector in query.selectors:
        series = found(everything, selector)
        assert series, f"no series for {selector}"
        assert selector.is_range == selector.metric.endswith(CUMULATIVE), selector
        known = {
            label for sample in everything.matching(selector.metric) for label in sample.labels
        }
        assert query.grouping | {one.label for one in selector.matchers} <= known


def use(server: Started) -> None:
    """Something of everything that a dashboard shows: answers, a failure, a client that leaves, a fresh engine."""
    left = cancelled(server)
    killed = engine_pid(server)
    for _ in range(3):
        ask(server)
    ask(server, model="no/such")
    leave(server)
    before = Scrape.of(server.url)
    os.kill(killed, signal.SIGKILL)
    loads = "mlx_model_load_duration_seconds_count"
    wait_until(lambda: rise(before, Scrape.of(server.url))(loads) == 1, timeout_s=120)
    ask(server)
    wait_until(lambda: cancelled(server) > left)
    # What engines say, they say once a second.
    wait_until(lambda: Scrape.of(server.url).total("mlx_memory_bytes", kind="buffers") > 0)
    time.sleep(1.5)


@pytest.fixture(scope="module")
def window(server: Started, both_calls: list[Scrape]) -> Window:
    """Two scrapes, a minute apart as the dashboard is told, with the same things before and between them."""
    scrapes = []
    for called in both_calls:
        use(server)
        scrapes.append(Scrape([*Scrape.of(server.url).families, *called.families]))
    return Window(scrapes[0], scrapes[1], 60)


def panels() -> list[str]:
    """The queries of panels, which have a value; those of variables have names."""
    return [query for query in expressions() if not query.startswith("label_values(")]


@pytest.mark.parametrize("expression", panels())
def test_every_panel_has_a_figure_after_real_traffic(window: Window, expression: str) -> None:
    found = window.value(expression)
    assert any(math.isfinite(value) for value in found.values()), found


def test_the_figures_of_panels_are_those_of_the_traffic(window: Window) -> None:
    def value(query: str) -> float:
        [found] = window.value(query).values()
        return found

    per_model = "gen_ai_server_request_duration_seconds_count"
    ok, failed = (f'{per_model}{{error_type{sign}""}}[1m]' for sign in ("=", "!="))
    assert value(f"sum(increase({ok}))") == 4
    assert value(f"sum(rate({failed}))") == pytest.approx(1 / 60)
    assert value(f"sum(rate({failed})) / sum(rate({per_model}[1m]))") == pytest.approx(1 / 5)
    assert value("sum(increase(mlx_requests_cancelled_total[1m]))") == 1
    assert value("sum(increase(mlx_worker_restarts_total[1m]))") == 1
    slow, fast = (
        value(f"histogram_quantile({share}, sum by (le) (rate({per_model[:-6]}_bucket[1m])))")
        for share in (0.99, 0.01)
    )
    assert 0 < fast < slow < 82


def test_values_follow_the_rules_of_prometheus() -> None:
    def scraped(*lines: str) -> Scrape:
        return Scrape.parsed("\n".join(("# TYPE c counter", *lines, "# EOF", "")))

    window = Window(
        scraped('c_total{a="x",b="1"} 10', 'c_total{a="x",b="2"} 50'),
        scraped('c_total{a="x",b="1"} 40', 'c_total{a="x",b="2"} 20', 'c_total{a="y",b="1"} 5'),
        10,
    )
    x, y = frozenset({("a", "x")}), frozenset({("a", "y")})
    # The second began anew, and the third has been seen once.
    assert window.value("sum by (a) (rate(c_total[1m]))") == {x: 5.0}
    assert window.value("sum by (a) (c_total)") == {x: 60.0, y: 5.0}
    assert window.value('sum(c_total{b=~"1|3"})') == {frozenset(): 45.0}
    assert window.value("sum by (a) (increase(c_total[1m])) / sum by (a) (c_total)") == {x: 50 / 60}
    nothing = window.value("sum(c_total) / sum(increase(c_total{b='3'}[1m]))".replace("'", '"'))
    assert nothing == {}
    for unknown in ("sum(c_total) c_total", "rate(c_total)", "c_total{"):
        with pytest.raises(ValueError, match=r"\S"):
            window.value(unknown)


def test_a_quantile_lies_on_a_line_between_the_bounds_of_its_bucket() -> None:
    def histogram(*counts: float) -> dict[frozenset[tuple[str, str]], float]:
        bounds = ("0.1", "0.5", "1.0", "+Inf")
        return {frozenset({("le", le)}): count for le, count in zip(bounds, counts, strict=True)}

    def of(share: float, *counts: float) -> float:
        return quantile(share, histogram(*counts))[frozenset()]

    assert of(0.5, 0, 10, 10, 10) == pytest.approx(0.3)
    assert of(0.5, 10, 10, 10, 10) == pytest.approx(0.05)
    assert of(0.95, 2, 8, 10, 10) == pytest.approx(0.875)
    assert of(0.99, 0, 0, 1, 10) == 1.0
    assert math.isnan(of(0.5, 0, 0, 0, 0))


@pytest.mark.parametrize(
    "wrong",
    ["sum(rate(a[1m])", "sum(rate(a{b=~c}[1m]))", "average(a)", "a{b}", "sum by (c (a)", "a ? b"],
)
def test_a_misspelled_query_is_noticed(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(wrong)


def test_all_metrics_of_ours_are_on_the_dashboard() -> None:
    asked = " ".join(expressions())
    for metric in vars(attributes).values():
        if isinstance(metric, attributes.Metric):
            assert family_name(metric.name, metric.unit, metric.kind)[0] in asked
