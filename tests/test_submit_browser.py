"""From a packed checkpoint to the board in a real browser; needs Chromium and isolation."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy as sa

from tomoprobe.leaderboard import queue
from tomoprobe.submissions import isolation

from .running_site import FACTS, SHAPES, TITLE, resnet18, site, swin_unetr, token_of, worker
from .test_browser import browser  # noqa: F401 - a fixture
from .test_cli import typed

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(isolation.available() is not None, reason="no process is closed off here"),
]

PATIENCE_MS = 600_000
"""For a worker on a busy machine."""


class Platform(NamedTuple):
    """A server, and one user's token."""

    address: str
    engine: sa.Engine
    token: str
    url: str
    store: Path


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    url, store = f"sqlite:///{folder / 'board.db'}", folder / "store"
    with site(url, store) as (address, engine):
        yield Platform(address, engine, token_of(engine, "ada"), url, store)


@pytest.fixture
def page(browser, platform) -> Iterator:  # noqa: F811
    """A window of its own, logged in; fails on any complaint or foreign request."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda r: complaints.append(r.url) if not r.url.startswith(platform.address) else None,
    )
    page.goto(f"{platform.address}/submit")
    page.wait_for_url("**/login**")
    page.fill("#token", platform.token)
    page.click("main button[type=submit]")
    page.wait_for_url(f"{platform.address}/submit")
    yield page
    context.close()
    # what a test provokes is reported by the browser itself
    provoked = ("ERR_CONNECTION_RESET", "status of 422")
    assert [c for c in complaints if not any(text in c for text in provoked)] == []


def choose(page, folder: Path) -> None:
    """Fill in the form for a packed model, on one small task with one probe."""
    page.set_input_files("#manifest-file", folder / "manifest.toml")
    if (folder / "model.safetensors").exists():
        page.set_input_files("#file", folder / "model.safetensors")
    page.select_option("#suite", "")
    for group, value in (("task", "smoke_lesion"), ("probe", "knn")):
        box = page.locator(f"input[name={group}][value={value}]")
        page.locator("details", has=box).locator("summary").click()
        box.check()


@pytest.mark.parametrize("make", [resnet18, swin_unetr], ids=lambda make: make.__name__)
def test_a_checkpoint_of_monai_goes_from_the_form_to_the_board(
    platform, page, home, tmp_path, capsys, make
):
    make(tmp_path / "checkpoint.pt")
    name, packed = f"seen_{make.__name__}", tmp_path / "packed"
    code, _, err = typed(
        capsys,
        "pack",
        tmp_path / "checkpoint.pt",
        "--out",
        packed,
        "--yes",
        "--name",
        name,
        "--shape",
        SHAPES[make.__name__],
        *FACTS,
    )
    assert code == 0, err
    with worker(platform.url, platform.store, home, tmp_path / "worker.log"):
        choose(page, packed)
        page.click("#send")
        page.wait_for_url(re.compile(r"/submissions/[0-9a-f]{16}$"), timeout=PATIENCE_MS)
        assert page.inner_text("h1") == name
        # without being loaded anew by anybody, the page follows to the end
        page.wait_for_selector("text=See its rows", timeout=PATIENCE_MS)
    assert page.locator("tbody tr", has_text="done").count() == 3
    page.click("text=See its rows")
    page.wait_for_selector(f"main code:text-is('{name}')")
    assert page.inner_text("h1") == TITLE
    assert page.locator("a", has_text="smoke_lesion").count()
    page.goto(f"{platform.address}/?probe=knn")
    assert page.locator("table.board tbody th.model", has_text=name).count() == 1
    answer = page.request.get(f"{platform.address}/api/v1/results").json()
    mine = [row for row in answer["results"] if row["model"] == name]
    assert mine and {row["origin"] for row in mine} == {"verified"}


SEED = """
name = "{name}"
title = "Histogram"
authors = "tests"
license = "Apache-2.0"
readout = "histogram"
pretraining = []

[architecture]
name = "intensity"

[architecture.arguments]
low = 0.0
high = 0.5

[grid]
shape = [16, 16, 16]

[intensity]
scanner = {{type = "MinMax"}}
relative = {{type = "Window", low = 0.0, high = 1.0}}
"""


def test_a_waiting_submission_tells_its_place_and_is_cancelled(platform, page, tmp_path):
    (tmp_path / "manifest.toml").write_text(SEED.format(name="waiting"))
    choose(page, tmp_path)
    page.click("#send")
    page.wait_for_url(re.compile(r"/submissions/[0-9a-f]{16}$"))
    assert "No worker is running" in page.inner_text("#live [role=status]") or (
        "Next in the queue" in page.inner_text("#live [role=status]")
    )
    page.click("button:has-text('Cancel')")
    page.wait_for_selector("#live :text('Cancelled.')")
    assert queue.submission(platform.engine, page.url.rpartition("/")[2]).state == "cancelled"


def test_an_upload_goes_on_in_the_browser_after_the_line_broke(platform, page, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    values = np.random.default_rng(0).normal(size=(1_000_000,)).astype(np.float32)
    save_file({"a": values}, tmp_path / "model.safetensors")  # four chunks, no network's
    text = SEED.format(name="broken_line") + '\n[weights]\nfile = "model.safetensors"\n'
    (tmp_path / "manifest.toml").write_text(text)
    sent = []

    def unsteady(route) -> None:
        if route.request.method == "PATCH":
            sent.append(int(route.request.headers["upload-offset"]))
            if len(sent) == 3:
                route.abort("connectionreset")
                return
        route.continue_()

    page.route("**/submit/uploads/*", unsteady)
    choose(page, tmp_path)
    with page.expect_console_message(lambda m: "ERR_CONNECTION_RESET" in m.text):
        page.click("#send")
    page.wait_for_url(re.compile(r"/submissions/[0-9a-f]{16}$"))
    assert sent == [0, 1 << 20, 2 << 20, 2 << 20, 3 << 20]
    found = queue.submission(platform.engine, page.url.rpartition("/")[2])
    assert found.kind == "weights" and found.upload_id


def test_what_the_form_refuses_keeps_what_was_typed(platform, page, tmp_path):
    (tmp_path / "manifest.toml").write_text(SEED.format(name="mine").replace("license", "licence"))
    choose(page, tmp_path)
    page.click("#send")
    trouble = page.wait_for_selector(".problem:visible")
    assert "licence" in trouble.inner_text()
    assert page.is_checked("input[name=task][value=smoke_lesion]")
    assert json.dumps("mine") in page.input_value("#manifest")
