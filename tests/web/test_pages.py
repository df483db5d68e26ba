"""The pages in a real browser, on a real server with real traces."""

from __future__ import annotations

import time

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from mlx_manager.traces.samples import Sample
from tests.support.browser import Complaints
from tests.web.conftest import HOSTILE_TRACE, MANY, Site

PATHS = ("/", "/dashboard", "/traces", "/requests", "/requests/usage", "/settings")
DAY_NS = 86_400 * 10**9
ROWS = "#results tbody tr"
SCREENS = {"wide": (1920, 1080), "desk": (1440, 900), "tablet": (820, 1180), "phone": (390, 844)}
# Cells that a table's card cuts off, where nothing can be scrolled to them.
CUT_OFF = """() => [...document.querySelectorAll(".table-card td")]
    .filter((one) => one.checkVisibility() && !one.closest(".scroll"))
    .filter((one) => one.getBoundingClientRect().right > one.closest(".table-card").getBoundingClientRect().right)
    .map((one) => one.innerText)"""

# What one would have to push sideways to see all of it; code keeps its lines.
SIDEWAYS = """() => [...document.querySelectorAll("body *:not(pre)")]
    .filter((one) => one.checkVisibility() && /auto|scroll/.test(getComputedStyle(one).overflowX))
    .filter((one) => one.scrollWidth > one.clientWidth)
    .map((one) => `${one.tagName} ${one.className} ${one.scrollWidth} > ${one.clientWidth}`)"""
USAGE = tuple(f"/requests/usage?by={way}" for way in ("key", "session", "endpoint", "day"))


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def filtered(page: Page, query: str) -> None:
    """Wait until the list has been filtered: the address and the rows change together."""
    page.wait_for_url(f"**/traces?{query}")
    page.wait_for_function(
        "query => document.querySelector('#results').getAttribute('hx-get') === `/traces?${query}`",
        arg=query,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SCREENS.values(), ids=SCREENS)
def test_every_page_fits_its_screen_and_the_console_is_quiet(
    site: Site, page: Page, scheme: str, width: int, height: int
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    complaints = Complaints().of(page)

    traces = (f"/traces/{one}" for one in (site.chat_id, site.missing_id, HOSTILE_TRACE))
    for path in (*PATHS, *USAGE, *traces):
        page.goto(site.url + path)
        expect(page.locator(".live")).to_have_attribute("data-state", "live")

        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(SIDEWAYS) == [], path
        assert page.evaluate(CUT_OFF) == [], path
        assert page.locator("h1").count() == 1
    assert complaints.lines == []


@pytest.mark.parametrize(("width", "height"), SCREENS.values(), ids=SCREENS)
def test_every_page_says_that_nobody_is_signed_in(
    site: Site, page: Page, width: int, height: int
) -> None:
    page.set_viewport_size({"width": width, "height": height})
    for path in (*PATHS, f"/traces/{site.chat_id}", f"/traces/{'0' * 32}"):
        page.goto(site.url + path)

        account = page.get_by_role("banner").locator(".account")
        expect(account).to_be_visible()
        assert account.inner_text().split("\n") == ["Not signed in", "local only"], path
        expect(account).to_be_in_viewport(ratio=1)
        expect(account.locator("svg use")).to_have_attribute(
            "href", "/static/vendor/icons.svg#lock"
        )


def test_the_rows_of_sums_are_blocks_on_a_phone_and_each_figure_has_its_name(
    site: Site, page: Page
) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{site.url}/requests/usage")
    row = page.locator("tbody tr", has=page.get_by_role("rowheader", name="test/tiny"))
    cells = row.get_by_role("cell")
    assert len({round(cell.bounding_box()["y"]) for cell in cells.all()}) == 2  # type: ignore[index]
    shown = "(cell) => getComputedStyle(cell, '::before').content.replaceAll('\"', '').trim()"
    names = [cell.evaluate(shown) for cell in cells.all()]
    assert names == ["Requests", "Failed", "Tokens in", "Cached", "Tokens out"]

    page.goto(f"{site.url}/dashboard?time=15m")
    row = page.locator("tbody tr", has=page.get_by_role("rowheader", name="test/tiny"))
    names = [cell.evaluate(shown) for cell in row.get_by_role("cell").all()]
    measured = ("First token", "Per token", "Whole")
    assert names == [
        *("Requests", "Tokens out"),
        *(f"{what} {which}" for what in measured for which in ("p50", "p95", "p99")),
    ]


def test_a_filter_changes_list_and_address_and_back_undoes_both(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces")
    everything = page.locator(ROWS).count()

    page.get_by_label("Error").check()
    filtered(page, "status=error")
    errors = page.locator(ROWS).count()
    assert errors == page.locator(f"{ROWS} .status.error").count() < everything

    page.locator(f"#t-{site.missing_id}").click()
    page.wait_for_url(f"**/traces/{site.missing_id}")
    page.go_back()
    filtered(page, "status=error")
    expect(page.locator(ROWS)).to_have_count(errors)

    page.go_back()
    page.wait_for_url("**/traces")
    expect(page.locator(ROWS)).to_have_count(everything)
    expect(page.get_by_label("All")).to_be_checked()


def test_typing_filters_and_empty_fields_stay_out_of_the_address(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces")

    page.get_by_placeholder("Id, name").fill("job-54")

    filtered(page, "text=job-54")
    expect(page.locator(ROWS)).to_have_count(1)


def test_traces_of_a_session_are_narrowed_by_their_tokens(site: Site, page: Page) -> None:
    session = "agents/talk:7"
    short, long = (site.ask(tokens=n, headers={"X-Session-ID": session}) for n in (2, 40))
    tokens = dict[str, int]()
    for trace_id in (short, long):
        found = site.store.get_trace(trace_id)
        assert found is not None
        one = found.summary
        assert one.input_tokens is not None
        assert one.output_tokens is not None
        tokens[trace_id] = one.input_tokens + one.output_tokens
    page.goto(f"{site.url}/traces/{short}")
    page.get_by_role("link", name=session).click()
    page.wait_for_url("**/traces?session=agents/talk%3A7")
    expect(page.get_by_label("Session")).to_have_value(session)
    expect(page.locator(ROWS)).to_have_count(2)

    page.get_by_label("At least, in tokens").fill(str(tokens[long]))
    page.keyboard.press("Enter")
    filtered(page, f"min_tokens={tokens[long]}&session=agents%2Ftalk%3A7")
    expect(page.locator(ROWS)).to_have_count(1)
    expect(page.locator(f"#t-{long}")).to_be_visible()

    page.get_by_label("At least, in tokens").fill("")
    page.get_by_label("At most, in tokens").fill(str(tokens[long] - 1))
    page.keyboard.press("Enter")
    filtered(page, f"max_tokens={tokens[long] - 1}&session=agents%2Ftalk%3A7")
    expect(page.locator(ROWS)).to_have_count(1)
    expect(page.locator(f"#t-{short}")).to_be_visible()

    page.get_by_label("Session").fill("agents")
    page.keyboard.press("Tab")
    expect(page.locator(".empty h2")).to_have_text("No trace fits")


def test_the_audit_log_asks_for_nothing_that_it_does_not_know(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/requests")

    expect(page.get_by_label("At least, in milliseconds")).to_be_visible()
    expect(page.get_by_label("Session")).to_have_count(0)


@pytest.mark.parametrize("path", ["/traces", "/requests"])
def test_no_number_is_too_large_to_be_asked_for(site: Site, path: str) -> None:
    for number in ("1e30", "9" * 200, "-1", "\N{ARABIC-INDIC DIGIT ONE}"):
        asked = dict.fromkeys(("min_ms", "max_ms", "min_tokens", "max_tokens"), number)
        answer = httpx.get(site.url + path, params=asked, timeout=60)
        assert answer.status_code == 200, number


def test_a_filter_works_without_a_script(site: Site, browser_without_script: Page) -> None:
    page = browser_without_script
    page.goto(f"{site.url}/traces")

    page.get_by_placeholder("Id, name").fill(site.chat_id)
    page.get_by_role("button", name="Filter").click()

    expect(page.locator(ROWS)).to_have_count(1)
    page.locator(ROWS).get_by_role("link").click()
    page.get_by_role("link", name="decode").click()
    expect(page.get_by_role("region", name="Span decode")).to_contain_text("mlx.decode.tokens")


def test_older_traces_are_a_page_away(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces?text=job")
    first = page.locator(ROWS).count()

    page.get_by_role("link", name="Older").click()

    page.wait_for_url("**cursor=*")
    expect(page.locator(ROWS)).to_have_count(MANY - first)
    assert page.get_by_role("link", name="Older").count() == 0
    page.get_by_role("link", name="Newest").click()
    page.wait_for_url("**/traces?text=job")


def test_a_place_in_the_list_that_is_gone_shows_the_newest_page(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces?cursor=nonsense")

    expect(page.locator("#results")).to_contain_text("That place in the list is gone")
    assert page.locator(ROWS).count() > 10


def test_a_new_trace_appears_without_a_reload(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces?status=ok&model=test%2Ftiny")
    expect(page.locator(".live")).to_have_attribute("data-state", "live")

    new = site.ask()

    expect(page.locator(f"#t-{new}")).to_be_visible(timeout=15_000)


def test_paused_updates_stay_away_until_they_are_wanted(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces?status=ok&model=test%2Ftiny")
    expect(page.locator(".live")).to_have_attribute("data-state", "live")

    page.get_by_role("button", name="Live").click()

    expect(page.locator(".live")).to_have_text("Paused")
    new = site.ask()
    assert page.locator(f"#t-{new}").count() == 0
    page.get_by_role("button", name="Paused").click()
    expect(page.locator(".live")).to_have_attribute("data-state", "live")


def test_a_theme_that_was_chosen_is_there_on_the_next_page(site: Site, page: Page) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(site.url)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)

    page.get_by_role("button", name="Dark theme").click()
    dark = page.evaluate(ground)
    page.goto(f"{site.url}/traces")

    assert light != dark
    assert page.evaluate(ground) == dark
    expect(page.get_by_role("button", name="Dark theme")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="System theme").click()
    page.reload()
    assert page.evaluate(ground) == light


def test_the_waterfall_is_walked_with_the_keyboard(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces/{site.chat_id}")
    rows = page.locator("[role=treegrid] tbody tr")
    names = [text.strip() for text in rows.locator(".name").all_inner_texts()]
    rows.first.focus()

    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    expect(rows.nth(1)).to_have_attribute("aria-expanded", "false")
    expect(rows.nth(2)).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(rows.nth(2)).to_be_visible()
    page.keyboard.press("End")
    page.keyboard.press("Enter")

    assert names[:2] == ["POST /v1/chat/completions", "chat test/tiny"]
    assert names[-1] == "decode"
    expect(rows.last).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("region", name="Span decode")).to_contain_text("mlx.decode.tokens")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Span prefill")).to_be_visible()
    expect(page.get_by_role("region", name="Span decode")).to_be_hidden()


def test_looking_at_spans_takes_one_step_back(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces")
    page.goto(f"{site.url}/traces/{site.chat_id}")
    for number in (2, 1, 0):
        page.locator("[role=treegrid] tbody tr").nth(number).click()

    page.go_back()

    assert page.url == f"{site.url}/traces"


def test_an_explanation_leads_to_its_span(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces/{site.chat_id}")

    load = page.locator(".explain li", has_text="had to be loaded first")
    load.get_by_role("link", name="Show span").click()

    expect(page.get_by_role("region", name="Span model.load")).to_be_visible()
    expect(page.locator("tr", has_text="model.load")).to_have_attribute("aria-selected", "true")


def test_markup_in_names_and_attributes_is_text(site: Site, page: Page) -> None:
    complaints = Complaints().of(page)
    for path in (
        f"/traces/{HOSTILE_TRACE}",
        "/traces?text=onerror",
        "/traces?text=%22%3E%3Cscript%3E",
    ):
        page.goto(site.url + path)
        expect(page.locator(".live")).to_have_attribute("data-state", "live")
        assert page.title().endswith("MLX Manager")
        assert page.locator("main img, main script").count() == 0
    page.goto(f"{site.url}/traces/{HOSTILE_TRACE}")
    assert "<script>" in page.locator("h1").inner_text()
    assert complaints.lines == []


def test_a_trace_is_downloaded_as_otlp_json(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/traces/{site.chat_id}")

    with page.expect_download() as download:
        page.get_by_role("link", name="OTLP JSON").click()

    assert download.value.suggested_filename == f"trace-{site.chat_id}.json"
    assert "resourceSpans" in download.value.path().read_text()


def test_a_percentile_on_the_dashboard_opens_a_trace(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/dashboard?time=15m")
    page.wait_for_function("document.querySelectorAll('time-chart canvas').length === 6")

    row = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="test/tiny"))
    row.get_by_role("link").last.click()

    page.wait_for_url("**/traces/*")
    expect(page.locator("h1")).to_have_text("POST /v1/chat/completions")


def test_the_time_of_the_dashboard_is_chosen_and_kept_in_the_address(
    site: Site, page: Page
) -> None:
    page.goto(f"{site.url}/dashboard")

    page.get_by_label("7 days").check()

    page.wait_for_url("**/dashboard?time=7d")
    expect(page.locator(".tiles")).to_contain_text("in the last 7 days")


def test_queue_and_memory_of_days_ago_are_on_the_dashboard(site: Site, page: Page) -> None:
    at_ns = time.time_ns() - 3 * DAY_NS
    site.store.put_sample(
        Sample(at_ns, 1, "test/gone", 1.5, 7, 2.0, 4, 2**30, 2**20, 3 * 2**20, 2**10)
    )
    assert site.store.flush(10)
    page.goto(f"{site.url}/dashboard?time=7d")
    titles = page.locator("figure h2").all_inner_texts()
    assert {"Queue and batch", "Memory", "Prompt tokens from the cache"} <= set(titles)
    chart = page.get_by_role("img", name="Memory over time")
    expect(chart.locator(".u-legend")).to_contain_text("prefix cache")

    page.get_by_text("Figures of the charts as a table").click()

    row = page.get_by_role("row").filter(has_text="1.00 MiB")
    cells = row.get_by_role("cell").all_inner_texts()
    assert cells[7:] == [
        "1.5",
        "7",
        "2.0",
        "4",
        *"1.00 GiB|1.00 MiB|3.00 MiB|1.00 KiB|1.00 GiB".split("|"),
    ]
    page.goto(f"{site.url}/dashboard?time=24h")
    expect(page.get_by_role("row").filter(has_text="1.00 MiB")).to_have_count(0)


def test_the_table_of_the_charts_stays_open_when_the_figures_change(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/dashboard?time=15m")
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    page.get_by_text("Figures of the charts as a table").click()
    before = page.locator(".tiles dd").first.inner_text()

    site.ask()

    expect(page.locator(".tiles dd").first).not_to_have_text(before, timeout=15_000)
    expect(page.get_by_role("region", name="Figures over time")).to_be_visible()


def test_a_row_of_the_audit_log_leads_to_its_trace(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/requests?status=error")

    expect(page.locator(ROWS)).to_have_count(1)
    page.locator(ROWS).get_by_role("link").click()

    page.wait_for_url(f"**/traces/{site.missing_id}")


def test_exports_hold_what_the_filter_shows(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/requests")
    page.get_by_label("Error").check()
    expect(page.locator(ROWS)).to_have_count(1)

    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()

    lines = download.value.path().read_text().splitlines()
    assert len(lines) == 2
    assert site.missing_id in lines[1]


def test_timeouts_are_changed_and_a_wrong_one_is_explained(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/settings")
    chat = page.get_by_label("Chats, messages and responses")
    expect(chat).to_have_value("900")

    chat.fill("-3")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("chat_s")
    expect(chat).to_have_attribute("aria-invalid", "true")

    chat.fill("450")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")
    page.reload()
    expect(chat).to_have_value("450")


def test_a_limit_names_every_path_that_keeps_to_it(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/settings")
    named = page.locator("timeouts-form code").all_inner_texts()
    paths = httpx.get(f"{site.url}/openapi.json").json()["paths"]
    asking = [path for path, said in paths.items() if path.startswith("/v1/") and "post" in said]

    assert set(named) <= set(asking)
    for path in asking:
        assert any(path == one or path.startswith(f"{one}/") for one in named), path


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/traces", "No traces yet"),
        ("/requests", "No requests yet"),
        ("/dashboard", "No requests in the last hour"),
    ],
)
def test_an_empty_page_says_what_to_do_next(
    empty_site: str, page: Page, path: str, says: str
) -> None:
    page.goto(empty_site + path)

    expect(page.locator(".empty h2")).to_have_text(says)
    page.locator(".empty").get_by_role("link", name="overview").click()
    expect(page.locator("h1")).to_have_text("Overview")


def test_a_trace_that_is_not_kept_is_a_page_for_people(site: Site) -> None:
    answer = httpx.get(f"{site.url}/traces/{'0' * 32}", headers={"Accept": "text/html"})

    assert answer.status_code == 404
    assert "There is no trace 0000" in answer.text
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", [*PATHS, "/traces/" + "0" * 32])
def test_every_page_is_bound_by_its_headers(site: Site, path: str) -> None:
    headers = httpx.get(site.url + path, headers={"Accept": "text/html"}).headers

    assert "unsafe" not in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_looking_at_traces_leaves_none(site: Site) -> None:
    limits = "/api/settings/timeouts"
    for path in (*PATHS, f"/traces/{site.chat_id}", "/static/style.css", limits):
        answer = httpx.get(site.url + path)
        assert "X-Trace-ID" not in answer.headers, path
    assert "X-Trace-ID" in httpx.put(site.url + limits, json={}).headers, "a change does"


@pytest.fixture
def browser_without_script(context: BrowserContext) -> Page:
    browser = context.browser
    assert browser is not None
    return browser.new_context(java_script_enabled=False).new_page()


def test_a_model_is_loaded_pinned_and_unloaded_on_the_first_page(site: Site, page: Page) -> None:
    complaints = Complaints().of(page)
    page.goto(site.url)
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    line = page.locator("li", has_text="test/late")
    state = line.locator(".state")
    expect(state).to_have_text("on disk")

    line.get_by_role("button", name="Load test/late").click()
    expect(state).to_have_text("ready", timeout=30_000)

    line.get_by_role("button", name="Pin test/late", exact=True).click()
    expect(state).to_have_text("ready · pinned")
    line.get_by_role("button", name="Unpin test/late").click()
    expect(state).to_have_text("ready")

    line.get_by_role("button", name="Unload test/late").click()
    expect(state).to_have_text("on disk")
    assert complaints.lines == []


def test_what_can_not_be_done_is_said_on_the_first_page(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.locator(".live")).to_have_attribute("data-state", "live")
    page.route(
        "**/admin/models/load", lambda route: route.continue_(post_data='{"model": "no/such"}')
    )
    page.locator("li", has_text="test/plain").get_by_role("button", name="Load").click()
    expect(page.locator("#models-said")).to_contain_text("There is no model 'no/such' here")
