"""The page of the audit log: what each field of its filter finds, here and in the files that it offers."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import get_args
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, expect

from mlx_manager.app import create_app
from mlx_manager.database import open_database, upgrade
from mlx_manager.mlx_server.audit import service
from mlx_manager.mlx_server.audit.instance import Instance
from mlx_manager.mlx_server.audit.tables import Outcome
from mlx_manager.web.requests import OUTCOMES, PAGE
from tests.audit.rows import MadeRecord, make_record, with_changes
from tests.support.running import RunningServer, running, settings_for, wait_until
from tests.web.markup import Element, read

# On another machine, which was not heard of for a long time.
GONE = Instance("elsewhere", 1, "x")
LOST_TRACE = "f" * 32
NARROW = [
    ({"min_ms": "1000"}, ["lost", "left", "slow"]),
    ({"min_ms": "1000.1"}, ["lost", "slow"]),
    ({"max_ms": "400"}, ["quick", "early"]),
    ({"max_ms": "399.9"}, ["quick"]),
    ({"min_ms": "400", "max_ms": "499"}, ["early"]),
    ({"model": "org/two"}, ["slow"]),
    ({"model": "org/one"}, ["lost", "running", "left", "quick", "early"]),
    ({"time": "15m"}, ["running", "left", "slow", "quick"]),
    ({"time": "6h"}, ["lost", "running", "left", "slow", "quick"]),
    ({"text": "too_lo"}, ["slow"]),
    ({"text": "QUIC"}, ["quick"]),
    ({"text": "nobody"}, []),
    ({"status": "interrupted"}, ["lost"]),
    ({"status": "running"}, ["running"]),
    ({"status": "cancelled"}, ["left"]),
    ({"status": "error"}, ["slow"]),
    ({"status": "ok", "model": "org/one"}, ["quick", "early"]),
]
EVERYTHING = {
    "text": "quick",
    "status": "ok",
    "model": "org/one",
    "min_ms": "10",
    "max_ms": "30",
    "time": "1h",
}


def made(request_id: str, ago: timedelta, **columns: object) -> MadeRecord:
    """A row of a request to `org/one` that nothing was wrong with, unless `columns` say otherwise."""
    usual = {"outcome": "completed", "error_code": None, "error_type": None, "model": "org/one"}
    changes = usual | {"trace_id": None} | columns
    return with_changes(make_record(request_id, datetime.now(UTC) - ago), **changes)


async def fill(database_url: str) -> None:
    """Leave a log as servers leave it: more than a page of one model, and behind it one row of each other kind."""
    minute, hour, day = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
    many = [
        made(f"many-{number}", 3 * day, model="org/many", duration_s=0.5)
        for number in range(PAGE + 2)
    ]
    ended = [
        made("early", 2 * day, duration_s=0.4),
        made("quick", minute, duration_s=0.02),
        made("slow", minute, duration_s=7.5, model="org/two", outcome="failed"),
        made("left", minute, duration_s=1.0, outcome="cancelled"),
    ]
    with_changes(ended[2], error_code="too_long", status=400)
    now = datetime.now(UTC)
    unended = {"duration_s": None, "status": None, "outcome": "running"}
    running_one = made("running", minute, **unended)
    lost = made("lost", 3 * hour, trace_id=LOST_TRACE, **unended)
    database = await open_database(database_url)
    try:
        await upgrade(database)
        async with database.sessions.begin() as session:
            await service.record(session, [*many, *ended])
            # One is seen for as long as the test lasts; the other was last seen four minutes after it had begun.
            await service.record_running(session, [running_one], GONE, now + hour)
            await service.record_running(session, [lost], GONE, now - 3 * hour + 4 * minute)
    finally:
        await database.close()


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A manager on that log: what a server that is gone was answering is closed at its start."""
    folder = tmp_path_factory.mktemp("requests")
    settings = settings_for(folder, folder)
    asyncio.run(fill(settings.database_url))
    with running(create_app(settings)) as server:
        wait_until(lambda: bool(server.audited("lost")))
        yield server


def shown(manager: RunningServer, address: str = "/requests", **query: str) -> Element:
    answer = httpx.get(manager.url + address, params=query or None, timeout=60)
    assert answer.status_code == 200
    return read(answer.text)


def rows(page: Element) -> list[Element]:
    return [row for body in page.one("div", id="results").all("tbody") for row in body.all("tr")]


def listed(page: Element) -> list[str]:
    """The request ids of the rows."""
    return [row.one("td", **{"class": "main"}).one("small").one("code").text for row in rows(page)]


def export_links(page: Element) -> dict[str, str]:
    return {link.text: link.attributes["href"] for link in page.one("p", id="exports").all("a")}


def exported(manager: RunningServer, page: Element) -> tuple[list[str], list[str]]:
    """The request ids in the files that the page offers: JSON lines, and CSV."""
    links = export_links(page)
    jsonl = httpx.get(manager.url + links["JSONL"], timeout=60).text
    table = io.StringIO(httpx.get(manager.url + links["CSV"], timeout=60).text, newline="")
    lines = [json.loads(line)["request_id"] for line in jsonl.splitlines()]
    return lines, [row["request_id"] for row in csv.DictReader(table)]


def fields(page: Element) -> dict[str, str]:
    """What is filled in or chosen in the filter."""
    form = page.one("form", action="/requests")
    typed = {
        one.attributes["name"]: one.attributes.get("value", "")
        for one in form.all("input")
        if one.attributes["type"] != "radio" or "checked" in one.attributes
    }
    chosen = {
        one.attributes["name"]: option.attributes.get("value", option.text)
        for one in form.all("select")
        for option in one.all("option", selected="")
    }
    return {name: value for name, value in (typed | chosen).items() if value}


@pytest.mark.parametrize(
    ("asked", "found"), NARROW, ids=["&".join(asked.values()) for asked, _ in NARROW]
)
def test_a_filter_finds_the_same_rows_on_the_page_and_in_its_exports(
    manager: RunningServer, asked: dict[str, str], found: list[str]
) -> None:
    page = shown(manager, **asked)

    assert listed(page) == found
    assert exported(manager, page) == (found, found)
    assert fields(page) == asked


def test_all_of_a_filter_goes_into_exports_and_updates(manager: RunningServer) -> None:
    page = shown(manager, **EVERYTHING)

    assert listed(page) == ["quick"]
    assert fields(page) == EVERYTHING
    for name, file_format in (("JSONL", "jsonl"), ("CSV", "csv")):
        asked = parse_qs(urlsplit(export_links(page)[name]).query)
        [since] = asked.pop("since")
        ago = datetime.now(UTC) - datetime.fromisoformat(since)
        assert timedelta(hours=1) <= ago < timedelta(hours=2)
        assert asked == {
            "format": [file_format],
            "text": ["quick"],
            "outcome": ["completed"],
            "model": ["org/one"],
            "min_duration_s": ["0.01"],
            "max_duration_s": ["0.03"],
        }
    live = urlsplit(page.one("div", id="results").attributes["hx-get"])
    assert parse_qs(live.query) == {name: [value] for name, value in EVERYTHING.items()}


def test_a_filter_is_kept_on_the_page_below(manager: RunningServer) -> None:
    page = shown(manager, model="org/many")
    many = [f"many-{number}" for number in range(PAGE + 2)][::-1]
    assert listed(page) == many[:PAGE]
    assert exported(manager, page) == (many, many)

    below = shown(manager, page.one("a", rel="next").attributes["href"])

    assert listed(below) == many[PAGE:]
    assert fields(below) == {"model": "org/many"}
    assert below.all("a", rel="next") == []


def test_every_outcome_can_be_chosen_and_asks_for_rows_that_say_so(manager: RunningServer) -> None:
    assert set(OUTCOMES.values()) == set(get_args(Outcome))
    page = shown(manager)
    form = page.one("form", action="/requests")
    statuses = [one.attributes["value"] for one in form.all("input", name="status")]
    assert statuses == ["", *OUTCOMES]
    for status in OUTCOMES:
        said = [
            row.one("td", **{"data-label": "Status"}).one("span").text
            for row in rows(shown(manager, status=status))
        ]
        assert set(said) == {status}


def test_on_a_phone_an_interrupted_request_is_one_tap_away(
    manager: RunningServer, context: BrowserContext
) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{manager.url}/requests")
    choices = page.get_by_role("group", name="Status")
    page.evaluate("document.fonts.ready")
    assert choices.evaluate("one => one.scrollWidth <= one.clientWidth"), "all are in sight"
    texts = choices.locator("span").all_inner_texts()
    assert texts == ["All", "OK", "Error", "Cancelled", "Interrupted", "Running"]

    page.get_by_label("Interrupted").check()

    page.wait_for_url("**/requests?status=interrupted")
    row = page.locator("#results tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("lost")
    expect(row).to_contain_text("its trace was lost with the server")
    expect(row.locator(".status")).to_have_text("interrupted")
    too_wide = "cells => cells.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.innerText)"
    assert row.locator("td").evaluate_all(too_wide) == [], "nothing reaches into its neighbour"


def test_what_was_used_is_added_up_and_leads_to_its_requests(manager: RunningServer) -> None:
    page = shown(manager, "/requests/usage", time="6h")
    head, *found, total = page.one("table").all("tr")
    assert [cell.text for cell in head.all("th")] == [
        *("Model", "Requests", "Failed", "Tokens in", "Cached", "Tokens out"),
    ]
    used = {row.one("th").text: [cell.text for cell in row.all("td")] for row in found}
    # Each row is of 20 tokens, 16 of them from the cache, and an answer of 5.
    assert used == {
        "org/one": ["4", "0", "80", "64", "20"],
        "org/two": ["1", "1", "20", "16", "5"],
    }
    assert [cell.text for cell in total.all("td")] == ["5", "1", "100", "80", "25"]
    [one, _two] = page.one("tbody").all("a")
    assert listed(shown(manager, one.attributes["href"])) == ["lost", "running", "left", "quick"]
    assert shown(manager).one("p", id="exports").all("a")[0].attributes["href"] == "/requests/usage"


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ({"by": "day", "time": "15m", "text": "quick"}, 1),
        ({"by": "session"}, 1),
        ({"by": "nobody"}, 3),
        ({"model": "org/two"}, 1),
        ({"text": "none of them"}, 0),
    ],
)
def test_usage_can_be_asked_for_in_other_ways(
    manager: RunningServer, query: dict[str, str], values: int
) -> None:
    page = shown(manager, "/requests/usage", **query)
    assert len([row for body in page.all("tbody") for row in body.all("tr")]) == values
