"""A page that was once here opens also while the server is away, says so in plain words, and comes back by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat import box, say_and_wait
from tests.browser.conftest import NewPage, Shot
from tests.server_process import ServerProcess


def wait_for_worker(page: Page) -> None:
    page.evaluate("() => navigator.serviceWorker.ready.then(() => {})")
    page.wait_for_function("async () => (await caches.keys()).length === 1 && await caches.match('/offline')")


@pytest.mark.parametrize("locale, words", [("en-US", "The server is away"), ("zh-CN", "服务器不在")])
def test_the_page_waits_for_a_server_that_is_away(
    new_page: NewPage, tmp_path: Path, shot: Shot, locale: str, words: str
) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        page = new_page(server.url, locale=locale, service_workers="allow")
        wait_for_worker(page)
        server.kill()
        page.goto(server.url)
        expect(page.get_by_role("heading")).to_have_text(words)
        shot(page, f"offline-{locale[:2]}")
        server.start()
        expect(page.locator("#welcome")).to_be_visible(timeout=15_000)


def test_the_worker_changes_nothing_while_the_server_is_there(new_page: NewPage, demo_server: ServerProcess) -> None:
    page = new_page(demo_server.url, service_workers="allow")
    wait_for_worker(page)
    page.reload()
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    page.reload()
    say_and_wait(page, "Count from 1 to 4.", "1, 2, 3, 4")
    expect(box(page)).to_have_value("")


def test_it_can_be_installed(page: Page) -> None:
    manifest = page.evaluate("async () => (await fetch(document.querySelector('link[rel=manifest]').href)).json()")
    assert manifest["name"] == "Sparrow" and manifest["display"] == "standalone"
    for icon in manifest["icons"]:
        size = page.evaluate(
            """(src) => new Promise((resolve) => {
                const image = new Image();
                image.onload = () => resolve(`${image.naturalWidth}x${image.naturalHeight}`);
                image.src = src;
            })""",
            icon["src"],
        )
        assert icon["sizes"] in (size, "any")
