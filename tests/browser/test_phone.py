"""On glass, with a thumb: what the other tests do on a desktop, done on a phone."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.chat import HUNDRED, SLOW, answers, box, busy, button, in_the_middle, note, questions, written
from tests.browser.conftest import PHONE, NewPage
from tests.browser.test_conversation_list import links, search
from tests.server_process import ServerProcess


@pytest.fixture
def phone(new_page: NewPage, demo_server: ServerProcess) -> Page:
    return new_page(demo_server.url, **PHONE, permissions=["clipboard-read", "clipboard-write"])


def ask(phone: Page, text: str) -> None:
    box(phone).fill(text)
    button(phone, "Send").tap()


def ask_and_wait(phone: Page, text: str, answer: str) -> None:
    ask(phone, text)
    expect(answers(phone).last).to_have_text(answer, timeout=SLOW)
    expect(busy(phone)).to_have_count(0, timeout=SLOW)


def tool(phone: Page, at: int, name: str) -> Locator:
    """A button of this message; those of an older one come when it is touched."""
    message = phone.locator("#messages article").nth(at)
    found = message.get_by_role("button", name=name, exact=True)
    if not found.is_visible():
        message.locator(".text").tap()
    return found


def menu(phone: Page, title: str) -> Locator:
    if not phone.get_by_role("navigation").is_visible():
        button(phone, "Conversations").tap()
    phone.get_by_role("navigation").get_by_role("button", name=f"More about {title}", exact=True).tap()
    return phone.locator("#menu")


def test_messages_are_edited_asked_again_copied_and_deleted(phone: Page) -> None:
    ask_and_wait(phone, "Count from 1 to 3.", "1, 2, 3")
    ask_and_wait(phone, "Count from 1 to 4.", "1, 2, 3, 4")
    tool(phone, 0, "Edit").tap()
    expect(box(phone)).to_have_value("Count from 1 to 3.")
    ask(phone, "Count from 1 to 5.")
    expect(phone.locator(".branches .place")).to_have_text("2/2")
    expect(answers(phone)).to_have_text("1, 2, 3, 4, 5", timeout=SLOW)
    expect(busy(phone)).to_have_count(0, timeout=SLOW)
    phone.get_by_role("link", name="Previous version").tap()
    expect(questions(phone)).to_have_text(["Count from 1 to 3.", "Count from 1 to 4."])
    tool(phone, 3, "Copy").tap()
    phone.wait_for_selector(".copy.done")
    assert phone.evaluate("() => navigator.clipboard.readText()") == "1, 2, 3, 4"
    tool(phone, 3, "Regenerate").tap()
    expect(phone.locator("article").last.locator(".branches .place")).to_have_text("2/2")
    expect(busy(phone)).to_have_count(0, timeout=SLOW)
    tool(phone, 2, "Delete").tap()
    phone.get_by_role("alertdialog").get_by_role("button", name="Delete").tap()
    expect(questions(phone)).to_have_text(["Count from 1 to 3."])


def test_an_answer_is_stopped_gone_on_with_and_survives_a_reload(phone: Page, demo_server: ServerProcess) -> None:
    with in_the_middle(phone, demo_server):
        button(phone, "Stop").tap()
    expect(note(phone)).to_have_text("Stopped.")
    expect(busy(phone)).to_have_count(0)
    half = written(phone)
    assert half != HUNDRED and HUNDRED.startswith(half)
    with phone.expect_response("**/continue"):  # a tap reaches the page after tap() is over
        button(phone, "Continue").tap()
    phone.reload()
    expect(answers(phone)).to_have_text(HUNDRED, timeout=SLOW)
    expect(busy(phone)).to_have_count(0, timeout=SLOW)


def test_the_list_is_searched_renamed_and_pinned(phone: Page) -> None:
    ask_and_wait(phone, "Count from 1 to 20.", ", ".join(map(str, range(1, 21))))
    button(phone, "New chat").tap()
    expect(questions(phone)).to_have_count(0)
    ask_and_wait(phone, "Count from 1 to 3.", "1, 2, 3")
    menu(phone, "Count from 1 to 20.").get_by_role("button", name="Rename").tap()
    name = phone.get_by_role("dialog").get_by_role("textbox", name="Rename")
    name.fill("Twenty")
    name.press("Enter")
    menu(phone, "Twenty").get_by_role("button", name="Pin", exact=True).tap()
    if not phone.get_by_role("navigation").is_visible():
        button(phone, "Conversations").tap()
    expect(links(phone)).to_have_text(["Twenty", "Count from 1 to 3."])
    search(phone).fill("19")
    expect(links(phone).locator("mark").first).to_have_text("19")
    links(phone).first.tap()
    expect(questions(phone)).to_have_text(["Count from 1 to 20."])


def test_settings_hold_and_conversations_leave_as_a_file(phone: Page) -> None:
    button(phone, "Conversations").tap()
    button(phone, "Settings").tap()
    phone.get_by_label("Longest answer", exact=True).fill("5")
    phone.get_by_label("Temperature", exact=True).tap()  # leaves the field
    expect(phone.locator("#settings .saved")).to_have_text("Saved.")
    phone.get_by_text("Dark", exact=True).tap()
    expect(phone.locator("html")).to_have_attribute("data-theme", "dark")
    button(phone, "Close").tap()
    phone.reload()
    expect(phone.locator("html")).to_have_attribute("data-theme", "dark")
    ask(phone, "Count from 1 to 20.")
    expect(phone.locator("article .note .why")).to_contain_text("longest length", timeout=SLOW)
    button(phone, "Conversations").tap()
    button(phone, "Settings").tap()
    with phone.expect_download() as every:
        phone.get_by_role("dialog").get_by_role("link", name="Export", exact=True).tap()
    assert "Count from 1 to 20." in json.dumps(json.loads(every.value.path().read_text("utf-8")))


def test_a_lid_that_was_closed_for_long_is_opened_and_the_answer_goes_on(
    phone: Page, demo_server: ServerProcess
) -> None:
    """The old connection may be dead without knowing it: when the page is seen again, it begins a new one."""
    with in_the_middle(phone, demo_server):
        phone.evaluate("() => { const now = Date.now; Date.now = () => now() + 60_000 }")
        with phone.expect_request("**/events?after=*"):
            phone.evaluate("() => { document.dispatchEvent(new Event('visibilitychange')) }")
    expect(busy(phone)).to_have_count(0, timeout=SLOW)
    assert written(phone) == HUNDRED
