"""What the page is without JavaScript: everything can be read, found and opened, and nothing stands there idle."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.chat import answers, questions, say, say_and_wait
from tests.browser.conftest import NewPage, Shot
from tests.server_process import ServerProcess


def test_all_that_was_said_can_be_read_and_found(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url)
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    page.locator(".edit").click()
    say(page, "Count from 1 to 4.")
    expect(answers(page)).to_have_text("1, 2, 3, 4", timeout=30_000)
    old = new_page(page.url, java_script_enabled=False, storage_state=page.context.storage_state())
    expect(answers(old)).to_have_text("1, 2, 3, 4")
    shot(old, "without-script")
    for name in ("Settings", "Edit", "Copy", "Delete", "Stop", "More about Count from 1 to 3."):
        expect(old.get_by_role("button", name=name, exact=True)).to_have_count(0)
    old.get_by_role("link", name="Previous version").click()
    expect(answers(old)).to_have_text("1, 2, 3")
    old.get_by_role("searchbox", name="Search").fill("count")
    old.get_by_role("searchbox", name="Search").press("Enter")
    links = old.get_by_role("navigation").get_by_role("link")
    expect(links).to_have_count(1)
    links.click()
    expect(questions(old)).to_have_text(["Count from 1 to 4."])
