"""The page in a browser: `make check-app`, which needs Playwright and a Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_command import running

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make check-app")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("SHOTS")
"""Folder that screenshots are kept in."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("page"), "--most_images", "40") as (_, found):
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1300, "height": 1500}) as context:
        yield opened(context, address)


def opened(context: Any, address: str) -> Any:
    page = context.new_page()
    page.goto(address)
    sync_api.expect(page.get_by_text("80 head evaluations an image")).to_be_visible(timeout=30_000)
    return page


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def draw(page: Any) -> None:
    page.get_by_role("button", name="Draw").click()


def choose(page: Any, label: str, side: int, option: str) -> None:
    page.get_by_label(label).nth(side).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_it_draws_two_settings_side_by_side(page: Any) -> None:
    page.get_by_label("sneaker").check()
    draw(page)
    for side, (stages, evaluations) in enumerate(((16, 232), (10, 80))):
        told = page.get_by_text(f"{stages} stages, {evaluations} head evaluations: ")
        sync_api.expect(told).to_be_visible(timeout=60_000)
        image = page.locator(".drawn img").nth(side)
        assert image.evaluate("image => image.naturalWidth") > 100
    shot(page, "drawn")


def test_a_preset_and_its_parts_change_what_is_told(page: Any) -> None:
    choose(page, "Preset", 0, "fast")
    sync_api.expect(page.get_by_text("24 head evaluations an image, 8 stages")).to_be_visible()
    steps = page.get_by_label("number input for From").nth(1)
    steps.fill("12")
    steps.press("Enter")  # which makes it a ramp, from 12 to 8
    sync_api.expect(page.get_by_text("96 head evaluations an image")).to_be_visible()
    page.get_by_text("The same as a command").nth(1).click()
    sync_api.expect(page.get_by_text("--schedule Linear")).to_be_visible()
    shot(page, "changed")


def test_the_command_is_copied(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text("The same as a command").nth(1).click()
    page.get_by_role("button", name="Copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("disa-predict ") and "--sampling balanced" in copied


def test_what_cannot_be_drawn_is_a_message(page: Any) -> None:
    choose(page, "Preset", 0, "fast")
    sync_api.expect(page.get_by_text("24 head evaluations an image")).to_be_visible()
    stages = page.get_by_label("number input for Stages").nth(0)
    stages.fill("9")
    stages.press("Enter")
    sync_api.expect(page.get_by_text("this solver is for 8 stages").first).to_be_visible()
    draw(page)
    sync_api.expect(page.get_by_text("A: this solver is for 8 stages")).to_be_visible()
    shot(page, "refused")


def test_two_people_draw_one_after_the_other(browser: Any, address: str) -> None:
    with browser.new_context() as one, browser.new_context() as other:
        pages = [opened(context, address) for context in (one, other)]
        for page in pages:
            page.get_by_label("number input for Images").fill("40")
            draw(page)
        for page in pages:
            sync_api.expect(page.get_by_text("16 stages, 232 head evaluations: ")).to_be_visible(timeout=120_000)
