"""The site in a real browser; TOMOPROBE_REQUIRE_BROWSER=1 makes a missing one a failure."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlsplit

import pytest
import uvicorn
from sqlalchemy import Engine

from tomoprobe.leaderboard.settings import Current, Settings
from tomoprobe.leaderboard.site import create_app

from .board_data import (
    BUDGETS,
    KINDS,
    LEVELS,
    PROTOCOLS,
    REAL_TASKS,
    SMOKE_TASKS,
    fill,
    fill_curves,
    fill_kinds,
    fresh,
    sha,
)

pytestmark = pytest.mark.browser

ARGUMENTS = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

CURVES = "/tasks/adrenal_mnist3d?probe=label_efficiency"

PAGES = (
    "/",
    "/?probe=few_shot&shots=20",
    "/?probe=knn",
    "/tasks/sarcoma_ct_sex",
    CURVES,
    f"/models/{sha('texture')}",
    "/probes",
    "/probes/linear",
    "/nowhere",
)

SETTINGS = Settings(probes={**BUDGETS.probes, "knn": Current(2)})
"""With a probe whose results are all superseded."""

TABLE = "table.board tbody th.model"


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("/usr/bin/chromium")
    if path is None:
        if os.environ.get("TOMOPROBE_REQUIRE_BROWSER") == "1":
            pytest.fail("TOMOPROBE_REQUIRE_BROWSER is 1, but there is no chromium on the PATH.")
        pytest.skip("there is no chromium on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The board of most tests."""
    engine = fresh(tmp_path_factory.mktemp("board"))
    fill(engine)
    fill_curves(engine)
    with serving(engine, SETTINGS) as address:
        yield address
    engine.dispose()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> Iterator[str]:
    """A board with all kinds of tasks."""
    engine = fresh(tmp_path_factory.mktemp("kinds"))
    fill_kinds(engine)
    with serving(engine, PROTOCOLS) as address:
        yield address
    engine.dispose()


@contextmanager
def serving(engine: Engine, settings: Settings) -> Iterator[str]:
    """A real server on a free port of this machine."""
    app = create_app(engine, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def visit(browser, address):
    """Opens pages, each in a window of its own; fails on any complaint or foreign request."""
    complaints, contexts = [], []

    def opened(path: str = "/", width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda r: complaints.append(r.url) if not r.url.startswith(address) else None,
        )
        page.goto(address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    # a page that is not there is reported by the browser itself
    assert [c for c in complaints if "status of 404" not in c] == []


def models(page) -> list[str]:
    return page.locator(TABLE).all_inner_texts()


def test_a_visitor_sorts_the_board_by_a_task_and_turns_the_order(visit):
    page = visit()
    assert models(page)[0] == "swin_unetr_btcv"
    link = page.locator("[id='sort-task.adrenal_mnist3d']")
    header = page.locator("th", has=link)
    link.click()
    page.wait_for_selector("th[aria-sort=descending]")
    assert header.get_attribute("aria-sort") == "descending"
    best_first = models(page)
    assert (best_first[0], best_first[-1]) == ("resnet18_mae", "intensity")
    assert "sort=task.adrenal_mnist3d" in page.url
    link.click()
    page.wait_for_selector("th[aria-sort=ascending]")
    assert models(page) == best_first[::-1]
    page.go_back()
    page.wait_for_selector("th[aria-sort=descending]")
    assert models(page) == best_first


def test_sorting_loads_no_new_page_and_keeps_the_focus(visit):
    page = visit()
    page.evaluate("window.untouched = true")
    page.locator("#sort-model").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/?sort=model")
    page.wait_for_selector("th.model[aria-sort]")
    assert page.evaluate("window.untouched")
    assert page.evaluate("document.activeElement.id") == "sort-model"
    assert models(page) == sorted(LEVELS)


def test_a_visitor_filters_by_modality_task_and_name(visit):
    from playwright.sync_api import expect

    page = visit()
    page.select_option("#filter-modality", "MR")
    page.wait_for_url("**modality=MR**")
    expect(page.locator("th.task")).to_have_count(4)
    page.locator("#filter-tasks summary").click()
    page.check("#filter-task-smoke_lesion")
    page.wait_for_selector("text=Sanity check, never evidence.")
    assert page.locator("th.task").count() == 1
    page.locator("#filter-q").press_sequentially("rand")
    expect(page.locator(TABLE)).to_have_count(3)
    assert page.input_value("#filter-q") == "rand"
    assert page.evaluate("document.activeElement.id") == "filter-q"
    asked = set(parse_qsl(urlsplit(page.url).query))
    assert ("modality", "MR") in asked
    for link in page.locator(".downloads a").all():
        assert set(parse_qsl(urlsplit(link.get_attribute("href")).query)) == asked


def test_a_visitor_opens_a_task_and_from_there_a_model(visit):
    page = visit()
    page.locator("th.task a[href*='/tasks/adrenal_mnist3d']").click()
    page.wait_for_selector("h1:has-text('Adrenal mass or normal gland')")
    chart = page.locator("svg.chart").bounding_box()
    assert chart["width"] > 500
    assert page.locator("svg.chart circle").count() == len(LEVELS)
    page.locator("tbody th.model a").first.click()
    page.wait_for_selector("h1:has-text('The model resnet18_mae')")
    page.locator("summary", has_text="Manifest").click()
    assert page.locator("pre", has_text='"architecture": "resnet10"').is_visible()


def test_without_a_script_the_server_sorts_and_filters(visit):
    page = visit(java_script_enabled=False)
    page.locator("#sort-model").click()
    page.wait_for_url("**/?sort=model")
    assert models(page) == sorted(LEVELS)
    page.fill("#filter-q", "random")
    page.select_option("#filter-kind", "regression")
    page.click("text=Show")
    page.wait_for_url("**kind=regression**")
    assert models(page) == ["random_resnet10", "random_slices", "random_swin"]


@pytest.mark.parametrize("path", PAGES)
def test_a_telephone_shows_every_page_without_scrolling_sideways(visit, path):
    page = visit(path, width=360, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_model_stays_in_sight_when_the_table_is_scrolled(visit):
    page = visit(width=360)
    page.evaluate("document.querySelector('.scroll').scrollLeft = 500")
    model, box = page.locator(TABLE).first.bounding_box(), page.locator(".scroll").bounding_box()
    assert box["x"] <= model["x"] < box["x"] + 60
    last = page.locator("th.task").nth(len(REAL_TASKS) + len(SMOKE_TASKS) - 1)
    last.scroll_into_view_if_needed()
    assert last.is_visible()


def test_a_visitor_compares_with_another_model_and_keeps_what_was_shown(visit):
    page = visit(f"{CURVES}&shots=10")
    page.select_option("select[name=against]", "texture")
    page.click("#compared button")
    page.wait_for_selector("h2:has-text('Compared with texture')")
    asked = dict(parse_qsl(urlsplit(page.url).query))
    assert asked == {"probe": "label_efficiency", "shots": "10", "against": sha("texture")}
    page.select_option("select[name=shots]", "100 % of labels")
    page.click("form[aria-label='What to show'] button")
    page.wait_for_selector("h2:has-text('100 % of labels')")
    assert "Compared with texture" in page.inner_text("#compared")


def test_changing_the_probe_on_the_board_leaves_no_impossible_size_behind(visit):
    page = visit("/?probe=label_efficiency&shots=10")
    page.select_option("#filter-probe", "few_shot")
    page.wait_for_selector("#count:has-text('few_shot probe, 5 patients per class')")
    page.select_option("#filter-probe", "linear")
    page.wait_for_selector("#count:has-text('linear probe')")
    assert page.locator("#filter-shots").count() == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_curves_stay_inside_their_picture_and_apart_from_the_labels_of_the_axis(visit, width):
    page = visit(CURVES, width=width)
    chart = page.locator("svg.chart", has=page.locator("g.curve")).first
    box = chart.bounding_box()
    marks = [m.bounding_box() for m in chart.locator(".marker, .range").all()]
    assert len(marks) == 4 * 3 * 2 + 4  # models, sizes, interval and marker; the legend
    for mark in marks:
        assert box["x"] - 1 <= mark["x"] <= mark["x"] + mark["width"] <= box["x"] + box["width"] + 1
        assert box["y"] - 1 <= mark["y"] <= mark["y"] + mark["height"] <= box["y"] + box["height"]
    ranges = [m.bounding_box() for m in chart.locator(".range").all()]
    labels = [t.bounding_box() for t in chart.locator("text.tick[text-anchor=start]").all()]
    assert max(t["x"] + t["width"] for t in labels) < min(r["x"] for r in ranges)
    names = chart.locator("text.label").all_text_contents()
    assert names == list(LEVELS)[:4]


# Text against the background it stands on, for every element that has text of its own:
# relative luminance and contrast ratio as WCAG 2.2 defines them.
CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => {
      v /= 255;
      return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.body.querySelectorAll("*")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
    if (!text.trim() || e.closest("title, desc, option")) continue;
    const style = getComputedStyle(e);
    const color = numbers(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(color), luminance(background(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + "." + e.getAttribute("class") + " " + text]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_text_has_the_contrast_that_wcag_aa_asks_for(visit, path, scheme):
    found = visit(path, color_scheme=scheme).evaluate(CONTRASTS)
    assert len(found) > 5
    assert [f for f in found if f[0] < 4.5] == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_a_board_of_all_kinds_fits_its_page_and_no_head_overflows(browser, kinds, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    for path in ("/", "/tasks/kinds_pairs", "/probes"):
        page.goto(kinds + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [f for f in page.evaluate(CONTRASTS) if f[0] < 4.5] == []
    page.goto(kinds)
    heads = page.locator("thead th.task")
    assert heads.count() == len(KINDS)
    for head in heads.all():
        box = head.bounding_box()
        assert box["width"] < 220
        for part in head.locator(".sub").all():
            inner = part.bounding_box()
            assert box["x"] <= inner["x"]
            assert inner["x"] + inner["width"] <= box["x"] + box["width"]
            assert part.evaluate("e => e.scrollWidth <= e.clientWidth")
    context.close()


MARKS = """() => {
  const chart = document.querySelector("svg.chart:has(g.curve)");
  const paper = getComputedStyle(chart).getPropertyValue("--paper");
  return [paper, ...[1, 2, 3, 4, 5, 6, 7, 8].map(
    (i) => getComputedStyle(chart).getPropertyValue("--curve-" + i))];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_curves_have_the_contrast_that_wcag_aa_asks_of_graphics(visit, scheme):
    paper, *colours = (_luminance(c) for c in visit(CURVES, color_scheme=scheme).evaluate(MARKS))
    assert (paper > 0.5) == (scheme == "light")
    for colour in colours:
        darker, lighter = sorted((paper, colour))
        assert (lighter + 0.05) / (darker + 0.05) >= 3


def _luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG 2.2 defines it."""
    parts = [int(colour.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
