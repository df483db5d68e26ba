"""The pages for eyes, keyboards and screen readers: contrast, names, landmarks, focus; and where links lead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from mlx_manager.web.shell import PLACES
from tests.web.conftest import HOSTILE_TRACE, Site

CHECKS = (Path(__file__).parents[1] / "support" / "accessibility.js").read_text()
UNKNOWN = f"/traces/{'0' * 32}"
VIEWPORTS = {
    "wide": {"width": 1920, "height": 1080},
    "desk": {"width": 1440, "height": 900},
    "phone": {"width": 390, "height": 844},
}


def paths(site: Site) -> Iterator[str]:
    """Every kind of page, with something on it: what is unfolded by a click is open."""
    for place in PLACES:
        yield place.path
    yield "/dashboard?time=15m"
    yield "/requests/usage"
    yield "/traces?status=cancelled&text=none"
    for trace_id in (site.chat_id, site.missing_id, HOSTILE_TRACE):
        yield f"/traces/{trace_id}"
    yield UNKNOWN


def shown(page: Page, url: str) -> None:
    """Open a page, all that can be unfolded on it, and the details of a trace's first span."""
    page.goto(url)
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    if page.locator("[role=treegrid]").count():
        page.locator("[role=treegrid] tbody tr").first.click()
    page.evaluate(CHECKS)


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.mark.parametrize("viewport", ["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(
    site: Site, page: Page, scheme: str, viewport: str
) -> None:
    page.set_viewport_size(VIEWPORTS[viewport])  # type: ignore[arg-type]
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for path in paths(site):
        shown(page, site.url + path)
        assert page.evaluate("accessibility.contrast()") == [], path


@pytest.mark.parametrize("viewport", ["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_empty_pages_stands_out_too(
    empty_site: str, page: Page, scheme: str, viewport: str
) -> None:
    page.set_viewport_size(VIEWPORTS[viewport])  # type: ignore[arg-type]
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    for place in PLACES:
        shown(page, empty_site + place.path)
        assert page.evaluate("accessibility.contrast()") == [], place.path


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_everything_has_a_name_and_its_place(site: Site, page: Page, viewport: str) -> None:
    page.set_viewport_size(VIEWPORTS[viewport])  # type: ignore[arg-type]
    for path in paths(site):
        shown(page, site.url + path)
        assert page.evaluate("accessibility.names()") == [], path


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_tab_goes_through_the_whole_page_in_its_order_and_one_sees_where(
    site: Site, page: Page, viewport: str
) -> None:
    page.set_viewport_size(VIEWPORTS[viewport])  # type: ignore[arg-type]
    for path, control in (
        ("/", "<button> Copy"),
        ("/dashboard?time=15m", "<summary> Figures of the charts as a table"),
        ("/traces?limit=3&text=job-5", "class=cover> job-5"),
        (f"/traces/{site.chat_id}", "<tr"),
        ("/requests", "class=cover> /v1/chat/completions"),
        ("/settings", "<button class=button primary> Save"),
        (UNKNOWN, "<a class=button"),
    ):
        page.goto(site.url + path)
        expect(page.locator(".live")).to_have_attribute("data-state", "live")
        expect(page.locator("button:disabled")).to_have_count(0)
        page.evaluate(CHECKS)
        reached = list[str]()
        for place in range(page.evaluate("accessibility.count()")):
            page.keyboard.press("Tab")
            focus = page.evaluate("accessibility.focused()")
            assert focus is not None, (path, place)
            assert focus["place"] == place, (path, focus)
            assert focus["isLit"], (path, focus)
            assert focus["isThere"], (path, focus)
            reached.append(focus["what"])
        assert control in "\n".join(reached), (path, reached)


def test_the_first_tab_skips_to_the_content(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces")

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")

    expect(page.locator("main")).to_be_focused()


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        ("document.querySelector('h1').style.color = '#999'", "contrast", "contrast 2.6"),
        ("document.querySelector('h1').style.opacity = 0.3", "contrast", "contrast"),
        ("document.querySelector('#text').removeAttribute('id')", "names", "no name"),
        ("document.querySelector('.skip').remove()", "names", "skip link"),
        (
            "document.querySelector('.none').removeAttribute('role')",
            "names",
            "nothing that has a name",
        ),
        ("document.querySelector('th').removeAttribute('scope')", "names", "heading of nothing"),
    ],
)
def test_a_page_that_is_spoilt_is_noticed(
    site: Site, page: Page, change: str, check: str, says: str
) -> None:
    page.emulate_media(color_scheme="light")
    shown(page, f"{site.url}/traces")
    page.evaluate(change)

    assert says in "\n".join(page.evaluate(f"accessibility.{check}()"))


def test_a_new_request_appears_without_a_reload(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/requests?status=ok")
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    page.evaluate("document.body.dataset.is = 'the same page'")

    new = site.ask()

    row = page.get_by_role("row").filter(has=page.locator(f"a[href='/traces/{new}']"))
    expect(row).to_contain_text("test/tiny", timeout=15_000)
    expect(page.locator("body")).to_have_attribute("data-is", "the same page")


def test_every_link_leads_somewhere(site: Site, page: Page) -> None:
    """Pages, downloads and fragments, of every page, as far as they are on this server."""
    leads = "[...document.querySelectorAll('main a[href], header a[href], link[href], script[src], img[src], use')]"
    attributes = "(one) => one.getAttribute('href') ?? one.getAttribute('src')"
    checked = dict[str, int]()
    for path in paths(site):
        shown(page, site.url + path)
        for link in page.evaluate(f"{leads}.map({attributes})"):
            target, fragment = urldefrag(urljoin(site.url + path, link))
            assert target.startswith(site.url), link
            if target not in checked:
                checked[target] = httpx.get(target, headers={"Accept": "text/html,*/*"}).status_code
            assert checked[target] == (404 if target.endswith(UNKNOWN) else 200), (path, link)
            if fragment and link.startswith("#"):
                assert page.locator(f"[id='{fragment}']").count() == 1, (path, link)
    assert len(checked) > 30
