"""The system's own Chromium, a page that fails its test by any error in its console, and screenshots that stay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.server_process import ROOT, ServerProcess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SCREENSHOTS = ROOT / "test-output" / "screenshots"
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
NOT_OURS = ("Failed to load resource", "net::ERR_")
"""What Chromium itself writes to the console about a server that a test has killed."""

NewPage = Callable[..., Page]
Shot = Callable[[Page, str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = os.environ.get("SPARROW_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(NAMES)} is installed, and SPARROW_CHROMIUM names none"
        if os.environ.get("SPARROW_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Browser) -> Iterator[NewPage]:
    """`new_page(url, locale="zh-CN", **PHONE)`: a browser of its own with no cookies, open at the url."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open(url: str, **options: Any) -> Page:
        defaults = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", "service_workers": "block"}
        context = browser.new_context(**{**defaults, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not [text for text in complaints if not any(known in text for known in NOT_OURS)]


@pytest.fixture
def page(new_page: NewPage, demo_server: ServerProcess) -> Page:
    """A desktop browser at the demo's empty page."""
    return new_page(demo_server.url)


@pytest.fixture(scope="session")
def shot(browser: Browser) -> Iterator[Shot]:
    """`shot(page, "name")` keeps what is to be seen in test-output/screenshots/, for a person to look at.

    At the end all of them are on one sheet, test-output/contact-sheet.png, also those of earlier runs.
    """
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    yield take
    _sheet(browser)


def _sheet(browser: Browser) -> None:
    pictures = "".join(
        f'<figure><img src="screenshots/{path.name}" alt=""><figcaption>{path.stem}</figcaption></figure>'
        for path in sorted(SCREENSHOTS.glob("*.png"))
    )
    style = (
        "body { display: flex; flex-wrap: wrap; gap: 16px; margin: 24px; font: 13px sans-serif; background: #ddd }"
        "figure { margin: 0 } img { display: block; height: 300px; margin-bottom: 4px }"
    )
    sheet = SCREENSHOTS.parent / "contact-sheet.html"
    sheet.write_text(f"<!doctype html><title>Sparrow</title><style>{style}</style>{pictures}", encoding="utf-8")
    page = browser.new_page(viewport={"width": 2040, "height": 800})
    page.goto(sheet.as_uri())
    page.screenshot(path=sheet.with_suffix(".png"), full_page=True)
    page.close()
