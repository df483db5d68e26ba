"""The dashboard shows what the trace store says, each figure in its place, of all models or of one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from mlx_manager.app import create_app
from mlx_manager.observability import attributes as names
from mlx_manager.observability.span_record import SpanRecord, Value
from mlx_manager.traces.summary import ModelStats, Stats
from mlx_manager.traces.words import count_text, duration_text
from tests.support.recorded import BEGIN_NS, span
from tests.support.running import RunningServer, running, settings_for
from tests.web.markup import Element, read

WEEK_NS = 7 * 86_400 * 10**9
HOUR_MS = 3_600_000
# Of twenty the 10th, 19th and 20th are the percentiles: each a request of its own.
CHATS = 20
NONE = "–"


def chat(
    number: int, model: str, slow: float, tokens: tuple[int, int, int], status: str = "ok"
) -> SpanRecord:
    """A chat of an hour ago. Who took longest is neither who began to answer last nor who wrote slowest."""
    begun_ms = (time.time_ns() - BEGIN_NS) / 1e6 - HOUR_MS
    input_tokens, cached_tokens, output_tokens = tokens
    attributes: dict[str, Value] = {
        names.OPERATION_NAME: "chat",
        names.BACKEND: "local",
        names.REQUEST_MODEL: model,
        names.INPUT_TOKENS: input_tokens,
        names.CACHE_READ_TOKENS: cached_tokens,
        names.OUTPUT_TOKENS: output_tokens,
        names.TIME_TO_FIRST_TOKEN_S: slow * (0.1 + 7 * number % CHATS / 100),
        names.TIME_PER_OUTPUT_TOKEN_S: slow * (0.01 + 3 * number % CHATS / 1000),
        names.CANCELLED: status == "cancelled",
    }
    return span(
        f"chat {model}",
        begun_ms,
        begun_ms + slow * (1000 + 100 * (number % 100)),
        None,
        trace_id=f"{number + 1:032x}",
        status="error" if status == "error" else "unset",
        also=attributes,
    )


def chats() -> Iterator[SpanRecord]:
    """Two models that have no figure in common, and one that nobody waited for."""
    for number in range(CHATS):
        yield chat(number, "org/a", 1, (50, 10, 50_003))
        yield chat(100 + number, "org/b", 1.5, (90, 30, 70_001))
    for number in range(200, 203):
        yield chat(number, "org/b", 2, (1, 0, 0), "error")
    yield chat(500, "org/a", 2, (1, 0, 0), "error")
    for number in range(300, 304):
        yield chat(number, "org/a", 2, (2, 0, 1), "cancelled")
    for number in range(400, 402):
        yield chat(number, "org/gone", 2, (3, 0, 2), "cancelled")


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A manager that was told of chats."""
    folder = tmp_path_factory.mktemp("dashboard")
    with running(create_app(settings_for(folder, folder))) as server:
        store = server.state.traces
        assert store is not None
        for one in chats():
            assert store.put(lambda one=one: one)  # type: ignore[misc]
        assert store.flush(10)
        yield server


def shown(manager: RunningServer, **query: str) -> Element:
    answer = httpx.get(f"{manager.url}/dashboard", params={"time": "7d"} | query, timeout=60)
    assert answer.status_code == 200
    return read(answer.text)


def stats(manager: RunningServer, model: str | None = None) -> Stats:
    store = manager.state.traces
    assert store is not None
    now_ns = time.time_ns()
    return store.stats(now_ns - WEEK_NS, now_ns, model)


def by_model(page: Element) -> dict[str, list[Element]]:
    """The cells of the table `By model` by the name in front of them."""
    table = page.one("table", **{"aria-labelledby": "by-model"})
    found = table.one("tbody").all("tr")
    return {row.one("th", scope="row").one("a").text: row.all("td") for row in found}


def link_of(cell: Element) -> str | None:
    links = [one.attributes["href"] for one in cell.all("a")]
    return links[0] if links else None


def expected(model: ModelStats) -> list[tuple[str, str | None]]:
    """What the nine cells say, and where they lead."""
    return [
        (NONE, None) if seconds is None else (duration_text(seconds), f"/traces/{trace_id}")
        for one in (model.time_to_first_token, model.time_per_output_token, model.duration)
        for seconds, trace_id in (
            (one.p50_s, one.p50_trace_id),
            (one.p95_s, one.p95_trace_id),
            (one.p99_s, one.p99_trace_id),
        )
    ]


def test_the_percentiles_stand_under_their_headings(manager: RunningServer) -> None:
    page = shown(manager)

    table = page.one("table", **{"aria-labelledby": "by-model"})
    groups, columns = table.one("thead").all("tr")
    spans = [(one.text, one.attributes.get("colspan")) for one in groups.all("th")]
    assert spans == [("First token", "3"), ("Per output token", "3"), ("Whole request", "3")]
    assert groups.one("td").attributes["colspan"] == "3"
    percentiles = ["p50", "p95", "p99"] * 3
    assert [one.text for one in columns.all("th")] == [
        "Model",
        "Requests",
        "Tokens out",
        *percentiles,
    ]
    for cells in by_model(page).values():
        assert [cell.attributes.get("data-label") for cell in cells[2:]] == percentiles


def test_each_percentile_is_the_stores_and_leads_to_the_trace_that_took_so_long(
    manager: RunningServer,
) -> None:
    found = stats(manager).models
    rows = by_model(shown(manager))

    assert list(rows) == [model.model for model in found] == ["org/a", "org/b", "org/gone"]
    for model in found:
        count, tokens, *cells = rows[str(model.model)]
        assert (count.text, tokens.text) == (
            count_text(model.requests),
            count_text(model.output_tokens),
        )
        assert [(cell.text, link_of(cell)) for cell in cells] == expected(model)
    # Were two of them the same, one could stand in the other's place.
    for model in found[:2]:
        texts, links = zip(*expected(model), strict=True)
        assert len(set(texts)) == len(set(links)) == 9
    assert expected(found[2])[:6] == [(NONE, None)] * 6


def test_the_traces_that_percentiles_lead_to_took_so_long(manager: RunningServer) -> None:
    fields = ("time_to_first_token_s", "time_per_output_token_s", "duration_s")
    for model in stats(manager).models[:2]:
        cells = by_model(shown(manager))[str(model.model)][2:]
        for field, cell in zip(sorted(fields * 3, key=fields.index), cells, strict=True):
            link = cell.one("a").attributes["href"]
            found = httpx.get(f"{manager.url}/api{link}").json()["summary"]
            assert found["model"] == model.model
            assert duration_text(found[field]) == cell.text, (field, link)


@pytest.mark.parametrize("model", ["org/a", "org/b"])
def test_the_figures_are_those_of_the_model_that_was_chosen(
    manager: RunningServer, model: str
) -> None:
    page = shown(manager, model=model)
    [one] = stats(manager, model).models
    of_all = stats(manager).models

    assert list(by_model(page)) == [model]
    assert page.one("p", **{"class": "lead"}).one("strong").text == model
    choices = page.one("select", id="model").all("option")
    assert [choice.text for choice in choices] == ["all", "org/a", "org/b", "org/gone"]
    assert [choice.text for choice in choices if "selected" in choice.attributes] == [model]
    assert said(page) == figures(one)
    assert said(shown(manager)) == figures(*of_all) != figures(one)
    live = urlsplit(page.one("div", id="results").attributes["hx-get"])
    assert parse_qs(live.query) == {"time": ["7d"], "model": [model]}


def test_the_charts_are_of_the_model_that_was_chosen(manager: RunningServer) -> None:
    for model, wanted in ((None, (50, 4)), ("org/a", (25, 1)), ("org/b", (23, 3))):
        page = shown(manager, **({"model": model} if model else {}))
        drawn = {one.attributes["data-title"]: curves(one) for one in page.all("time-chart")}
        counts = drawn["Requests"]
        assert (sum(counts["requests"]), sum(counts["errors"])) == wanted
        # All of them fall into one column, wherever columns begin.
        [seen] = [bucket for bucket in stats(manager, model).buckets if bucket.requests]
        latency = {name: [one for one in drawn["Latency"][name] if one] for name in ("p50", "p95")}
        assert latency == {"p50": [seen.p50_s], "p95": [seen.p95_s]}


def test_errors_lead_to_the_failed_traces_of_the_same_model_and_time(
    manager: RunningServer,
) -> None:
    page = shown(manager, model="org/b")
    [show] = [one for one in page.all("a") if one.text == "show"]
    assert page.one("small", **{"class": "bad"}).text == "3 errors"
    assert "time=7d" in show.attributes["href"]

    listed = read(httpx.get(manager.url + show.attributes["href"]).text)

    failed = listed.one("div", id="results").one("tbody").all("tr")
    assert len(failed) == 3
    assert all("org/b" in row.text and "error" in row.text for row in failed)


def test_a_model_that_was_never_asked_has_no_figures(manager: RunningServer) -> None:
    page = shown(manager, model="org/unknown")

    assert page.one("div", **{"class": "empty"}).one("h2").text == "No requests in the last 7 days"
    assert page.all("table", **{"aria-labelledby": "by-model"}) == []


def figures(*models: ModelStats) -> dict[str, tuple[str, ...]]:
    """What the tiles say of these models together."""
    requests = sum(one.requests for one in models)
    errors = sum(one.errors for one in models)
    tokens_in = sum(one.input_tokens for one in models)
    cached = sum(one.cached_tokens for one in models)
    tokens_out = sum(one.output_tokens for one in models)
    rate = tokens_out / (WEEK_NS / 1e9)
    share = f"{100 * errors / requests:.1f} % of requests{' · show' if errors else ''}"
    return {
        "Requests": (count_text(requests), "in the last 7 days"),
        "Tokens out": (count_text(tokens_out), f"{rate:.1f} tokens/s on average"),
        "Tokens in": (count_text(tokens_in), f"{100 * cached / tokens_in:.0f} % from the cache"),
        "Errors": (count_text(errors), share),
        "Cancelled": (count_text(sum(one.cancelled for one in models)), "clients that left"),
    }


def said(page: Element) -> dict[str, tuple[str, ...]]:
    """What the tiles say of the past by their titles: the figure, and the line below."""
    found = page.one("dl", **{"class": "tiles"}).all("div")
    told = {one.one("dt").text: tuple(line.text for line in one.all("dd")) for one in found}
    return {title: lines for title, lines in told.items() if title not in ("In progress", "Memory")}


def curves(chart: Element) -> dict[str, list[float]]:
    """The values of a chart's curves by their names."""
    _, *columns = json.loads(chart.attributes["data-columns"])
    return dict(zip(json.loads(chart.attributes["data-curves"]), columns, strict=True))
