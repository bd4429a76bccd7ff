# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E402 - imports that need what may be missing come after the skips
"""The page in a real browser: chromium, driven by Playwright, over an engine that sleeps."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs httpx, of the extra dev")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")

from lamp_trt.runtime.media.image import encode_png
from tests.serving.serving_process import Server, sleeping_server
from tests.system_tools import REMEDY

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip(f"the page in a browser: needs chromium, see {REMEDY}", allow_module_level=True)

SECONDS = 60
STEPS = {"steps": 15, "step_seconds": 0.1, "plays": True}
PNG = {"name": "x.png", "mimeType": "image/png", "buffer": encode_png(np.full((50, 80, 3), 90, np.uint8))}
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'

WATCH = """() => {
    window.seen = { previews: [], progress: [], left: [] };
    new MutationObserver(() => {
        const shown = (name) => document.querySelector(name);
        if (shown("img.preview")) window.seen.previews.push(shown("img.preview").src);
        if (shown("progress")) window.seen.progress.push(shown("progress").value);
        if (shown(".left")) window.seen.left.push(shown(".left").textContent);
    }).observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
}"""
"""Records what the page shows, which on a busy machine is faster than a test looks."""

expect = playwright.expect
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "steps"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[Server]:
    with sleeping_server(tmp_path_factory.mktemp("jobs"), settings={**STEPS, "log": str(log)}) as running:
        running.health("ok")
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # as root, in a container
        running = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


def is_error(said: Any) -> bool:
    """Whether a console message is an error. Chromium also logs the reply to a refused field, which the page
    shows."""
    return said.type == "error" and "status of 400" not in said.text


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page, opened anew; at its end nothing was asked of another machine and no error was logged."""
    context = browser.new_context(viewport={"width": 400, "height": 800})
    context.set_default_timeout(SECONDS * 1000)
    opened = context.new_page()
    foreign, errors = [], []

    def asked(request: Any) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            foreign.append(request.url)

    opened.on("request", asked)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: errors.append(said.text) if is_error(said) else None)
    opened.goto(server.url)
    expect(opened.locator("#health-text")).to_have_text("1 engine ready")
    yield opened
    assert (foreign, errors) == ([], [])
    context.close()


def make(page: Any, prompt: str) -> Any:
    """Start a video from an image; its card."""
    page.set_input_files("#frame-file", PNG)
    page.get_by_label("Prompt", exact=True).fill(prompt)
    count = page.locator("article").count()
    page.get_by_role("button", name="Make video").click()
    expect(page.locator("article")).to_have_count(count + 1)
    return page.locator("article").first


def steps(log: Path) -> int:
    return log.read_text().count("step ") if log.exists() else 0


def engine_rests(server: Server, log: Path) -> None:
    """Wait until the engine is idle, which a cancelled job's is within a step."""
    deadline = time.monotonic() + SECONDS
    while server.http.get("/health").json()["engines"][0]["state"] != "idle":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_video_is_made_with_progress_and_previews_and_plays(page: Any, server: Server) -> None:
    page.evaluate(WATCH)
    card = make(page, MARKUP)
    video = card.locator("video")
    expect(video).to_have_js_property("readyState", 4)
    expect(video).to_have_js_property("loop", True)
    expect(video).not_to_have_js_property("currentTime", 0)
    seen = page.evaluate("window.seen")
    assert len(set(seen["previews"])) >= 2
    values = [float(value) for value in seen["progress"]]
    assert values == sorted(values)
    assert len(set(values)) >= 3
    assert any(text.endswith(" left") for text in seen["left"])
    assert card.locator("h3").inner_text() == MARKUP
    assert page.title() == "lamp-trt"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.reload()
    expect(card.locator("h3")).to_have_text(MARKUP)
    expect(card.locator(".state")).to_have_text("Ready")
    with page.expect_download() as download:
        card.get_by_role("link", name="Settings file").click()
    assert Path(download.value.path()).read_text() == "{}"
    card.get_by_role("button", name="Again with this seed").click()
    seed = re.search(r"seed (\d+)", card.inner_text())
    assert seed is not None
    expect(page.locator("#setting-seed")).to_have_value(seed[1])
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(MARKUP)
    card.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("tab", name="Edit")).to_have_attribute("aria-selected", "true")
    page.get_by_role("button", name="Edit video").click()
    expect(page.locator("article").first.locator("video")).to_have_js_property("readyState", 4)
    page.get_by_role("button", name="Remove ended ones").click()
    expect(page.locator("article")).to_have_count(0)
    assert server.http.get("/v1/videos").json()["data"] == []


def test_a_second_tab_shows_a_running_job_and_does_not_stop_it(page: Any, server: Server, log: Path) -> None:
    card = make(page, "a long one")
    expect(card.locator("img.preview")).to_be_visible()
    second = page.context.new_page()
    second.goto(server.url)
    expect(second.locator("article").first.locator("img.preview")).to_be_visible()
    second.close()
    before = steps(log)
    expect(card.locator(".state")).not_to_have_text(card.locator(".state").inner_text())
    time.sleep(0.5)
    assert steps(log) > before
    card.get_by_role("button", name="Cancel").click()
    engine_rests(server, log)


def test_a_refusal_takes_the_preview_away_and_says_why(page: Any) -> None:
    card = make(page, "flagged")
    expect(card.locator("img.preview")).to_be_visible()
    expect(card.locator(".state")).to_have_text("Refused by the safety checker")
    assert card.locator("img").count() == 0
    expect(card.get_by_text("the video was refused.")).to_be_visible()


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_cancelling_and_closing_the_page_stop_the_engine_within_a_step(
    page: Any, server: Server, log: Path, how: str
) -> None:
    card = make(page, "a long one")
    expect(card.locator("img.preview")).to_be_visible()
    if how == "cancel":
        card.get_by_role("button", name="Cancel").click()
    else:
        page.close()
    engine_rests(server, log)
    assert "cancelled" in log.read_text().splitlines()[-1]
    before = steps(log)
    time.sleep(0.4)
    assert steps(log) == before


def test_a_refused_field_is_shown_and_everything_works_by_keyboard(page: Any) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to your videos")).to_be_focused()
    page.get_by_label("Prompt", exact=True).fill("x")
    page.set_input_files("#frame-file", PNG)
    page.locator("summary").press("Enter")
    page.get_by_label("background").fill("no colour")
    page.get_by_label("background").press("Control+Enter")
    expect(page.locator("#form-error")).to_contain_text("no colour")
    expect(page.get_by_label("background")).to_be_focused()
    page.get_by_role("tab", name="Make").press("ArrowRight")
    expect(page.get_by_role("tab", name="Edit")).to_be_focused()


@pytest.mark.slow
def test_a_pasted_image_is_the_first_frame_and_a_token_is_asked_for(browser: Any, tmp_path: Path) -> None:
    with sleeping_server(tmp_path / "jobs", token="0123456789abcdefXYZ", settings=STEPS) as guarded:
        guarded.health("ok")
        context = browser.new_context()
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.goto(guarded.url)
        page.locator("#token").fill("0123456789abcdefXYZ")
        page.get_by_role("button", name="Continue").click()
        expect(page.get_by_role("radio", name="b")).to_be_attached()
        page.evaluate(
            """() => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(9)], "shot.png", { type: "image/png" }));
                document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
            }"""
        )
        expect(page.locator("#frame-picker").get_by_text("shot.png")).to_be_visible()
        page.locator("#frame-picker").get_by_role("button", name="Remove").click()
        card = make(page, "rain")
        expect(card.locator("video")).to_have_js_property("readyState", 4)
        context.close()
