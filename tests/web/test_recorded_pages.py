"""Traces that a real server has recorded, sent to another one and looked at there."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from mlx_manager.traces.explain import explain
from tests.traces.record import RECORDED
from tests.traces.test_recorded import EXPECTED, recorded
from tests.web.conftest import Site

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def viewer(site: Site) -> Site:
    """The manager, with all recorded traces sent to it as any OpenTelemetry exporter would."""
    for file in RECORDED.glob("*.json"):
        sent = httpx.post(f"{site.url}/otlp/v1/traces", content=file.read_bytes(), headers=JSON)
        assert sent.status_code == 200
    assert site.store.flush(10)
    return site


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def shown(page: Page, viewer: Site, name: str) -> None:
    page.goto(f"{viewer.url}/traces/{recorded(name).summary.trace_id}")
    expect(page.locator(".live")).to_have_attribute("data-state", "live")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_page_says_what_explains_a_trace_and_leads_to_the_evidence(
    viewer: Site, page: Page, name: str
) -> None:
    shown(page, viewer, name)
    found = explain(recorded(name))
    lines = page.locator(".explain li")
    expect(lines).to_have_count(len(found))
    for line, finding in zip(lines.all(), found, strict=True):
        expect(line).to_contain_text(finding.sentence)
        evidence = line.get_by_role("link", name="Show span")
        expect(evidence).to_have_attribute("href", f"#span-{finding.span_id}")
        assert page.locator(f"#span-{finding.span_id}").count() == 1


def test_the_trace_that_was_waited_for_is_a_click_away(viewer: Site, page: Page) -> None:
    found = recorded("queue")
    [queue] = [span for span in found.spans if span.name == "queue"]
    first, second = (f"/traces/{link.trace_id}" for link in queue.links)
    shown(page, viewer, "queue")

    line = page.locator(".explain li", has_text="Waited")
    expect(line.get_by_role("link", name="That trace")).to_have_attribute("href", first)
    line.get_by_role("link", name="Show span").click()
    links = page.get_by_role("region", name="Span queue").locator(".links li")
    expect(links).to_have_count(2)
    for item, link, address in zip(links.all(), queue.links, (first, second), strict=True):
        expect(item).to_contain_text("waited_behind")
        target = f"{address}#span-{link.span_id}"
        expect(item.get_by_role("link")).to_have_attribute("href", target)


def test_the_events_of_a_span_stand_where_they_happened(viewer: Site, page: Page) -> None:
    found = recorded("thoughts")
    [parse] = [span for span in found.spans if span.name == "parse"]
    shown(page, viewer, "thoughts")
    page.locator("[role=treegrid] tr", has_text="parse").click()

    events = page.get_by_role("region", name="Span parse").locator(".events li")
    expect(events).to_have_count(len(parse.events))
    names = [item.locator("p").inner_text().split()[-1] for item in events.all()]
    assert names == [event.name for event in parse.events]
    assert names[:2] == ["reasoning.began", "reasoning.ended"]


def test_each_token_has_its_mark_on_the_timeline(viewer: Site, page: Page) -> None:
    shown(page, viewer, "prefix_hit")
    timeline = page.locator("section.tokens")
    expect(timeline).to_contain_text("20 tokens in")
    marks = timeline.get_by_role("img", name="When each token left the engine").locator("path")
    assert (marks.get_attribute("d") or "").count("M") == 20

    shown(page, viewer, "failed")
    expect(page.locator("section.tokens")).to_have_count(0)


def test_the_list_has_a_curve_of_latency_when_there_was_any(
    viewer: Site, empty_site: str, page: Page
) -> None:
    page.goto(f"{viewer.url}/traces?time=15m")
    curve = page.get_by_role("img", name="Latency over time")
    for line in ("p50", "p95"):
        assert "M" in (curve.locator(f"path.{line}").get_attribute("d") or "")

    page.goto(f"{empty_site}/traces")
    expect(page.get_by_role("img", name="Latency over time")).to_have_count(0)
