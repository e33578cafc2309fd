"""What can be done with a message: edit it, move between its branches, ask again, delete it, copy it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser.chat import (
    COUNT,
    HUNDRED,
    SLOW,
    answers,
    box,
    busy,
    button,
    in_the_middle,
    note,
    questions,
    say,
    say_and_wait,
    written,
)
from tests.browser.conftest import PHONE, NewPage, Shot
from tests.server_process import ServerProcess


def message(page: Page, at: int) -> Locator:
    """The article at this place; its tools come when it is pointed at."""
    found = page.locator("#messages article").nth(at)
    found.hover()
    return found


def tool(page: Page, at: int, name: str) -> Locator:
    return message(page, at).get_by_role("button", name=name, exact=True)


def clipboard(page: Page) -> str:
    return str(page.evaluate("() => navigator.clipboard.readText()"))


def test_an_edited_question_begins_a_branch_and_arrows_lead_back(page: Page, shot: Shot) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    say_and_wait(page, "Count from 1 to 5.", "1, 2, 3, 4, 5")
    box(page).fill("half a thought")
    tool(page, 0, "Edit").click()
    expect(box(page)).to_have_value("Count from 1 to 3.")
    expect(box(page)).to_be_focused()
    expect(page.locator("#editing")).to_be_visible()
    shot(page, "editing")
    box(page).fill("Count from 1 to 4.")
    box(page).press("Enter")
    expect(page.locator(".branches .place")).to_have_text("2/2")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert questions(page).all_text_contents() == ["Count from 1 to 4."] and written(page) == "1, 2, 3, 4"
    expect(box(page)).to_have_value("half a thought")
    shot(page, "branches")
    page.get_by_role("link", name="Previous version").click()
    expect(questions(page)).to_have_text(["Count from 1 to 3.", "Count from 1 to 5."])
    expect(page.locator(".branches .place")).to_have_text("1/2")
    page.reload()
    expect(questions(page)).to_have_text(["Count from 1 to 3.", "Count from 1 to 5."])
    page.get_by_role("link", name="Next version").focus()
    page.keyboard.press("Enter")
    expect(questions(page)).to_have_text(["Count from 1 to 4."])
    expect(page.get_by_role("link", name="Previous version")).to_be_focused()
    say_and_wait(page, "Count from 1 to 6.", "1, 2, 3, 4, 5, 6")
    assert questions(page).all_text_contents() == ["Count from 1 to 4.", "Count from 1 to 6."]


def test_escape_gives_an_edit_up_and_up_edits_the_last_question(page: Page) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    box(page).press("ArrowUp")
    expect(box(page)).to_have_value("Count from 1 to 3.")
    page.keyboard.press("Escape")
    expect(box(page)).to_have_value("")
    expect(page.locator("#editing")).to_be_hidden()
    box(page).fill("a line")
    box(page).press("ArrowUp")
    expect(box(page)).to_have_value("a line")


def test_an_edit_survives_a_reload_and_a_server_that_is_away(page: Page, shot: Shot) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    box(page).fill("for later")
    tool(page, 0, "Edit").click()
    box(page).fill("Count from 1 to 4.")
    page.reload()
    expect(page.locator("#editing")).to_be_visible()
    expect(box(page)).to_have_value("Count from 1 to 4.")
    page.route("**/messages", lambda route: route.abort())
    box(page).press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Your message is kept.")
    expect(questions(page)).to_have_text(["Count from 1 to 3."])
    expect(page.locator("#editing")).to_be_visible()
    page.unroute("**/messages")
    button(page, "Retry").click()
    expect(answers(page)).to_have_text("1, 2, 3, 4", timeout=SLOW)
    expect(page.locator(".branches .place")).to_have_text("2/2")
    expect(box(page)).to_have_value("for later")


def test_regenerate_gives_another_answer_beside_the_old_one(page: Page) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    say_and_wait(page, "Count from 1 to 4.", "1, 2, 3, 4")
    tool(page, 1, "Regenerate").click()
    expect(page.locator(".branches .place")).to_have_text("2/2")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert answers(page).count() == 1 and written(page) == "1, 2, 3"
    page.get_by_role("link", name="Previous version").click()
    expect(answers(page)).to_have_count(2)


def test_a_branch_that_could_not_be_fetched_is_listened_to_all_the_same(page: Page) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    page.route("**/c/*", lambda route: route.abort())
    tool(page, 1, "Regenerate").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert answers(page).count() == 1 and written(page) == "1, 2, 3"
    page.unroute("**/c/*")
    page.reload()
    expect(page.locator(".branches .place")).to_have_text("2/2")


def test_a_question_is_deleted_with_what_followed_after_one_more_question(page: Page, shot: Shot) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    say_and_wait(page, "Count from 1 to 4.", "1, 2, 3, 4")
    tool(page, 2, "Delete").click()
    sure = page.get_by_role("alertdialog")
    expect(sure).to_be_visible()
    shot(page, "delete-message")
    sure.get_by_role("button", name="Cancel").click()
    expect(sure).to_be_hidden()
    expect(questions(page)).to_have_count(2)
    tool(page, 2, "Delete").click()
    sure.get_by_role("button", name="Delete").click()
    expect(questions(page)).to_have_text(["Count from 1 to 3."])
    page.reload()
    expect(questions(page)).to_have_text(["Count from 1 to 3."])
    tool(page, 0, "Delete").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#welcome")).to_be_visible()
    say_and_wait(page, "Count from 1 to 5.", "1, 2, 3, 4, 5")


def test_a_message_is_copied_as_it_was_written_and_code_without_its_fence(page: Page, shot: Shot) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    say(page, "Show me code.")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    tool(page, 1, "Copy").click()
    page.wait_for_selector(".copy.done")
    shot(page, "code")
    markdown = clipboard(page)
    assert "```python\ndef add(a, b):" in markdown
    button(page, "Copy code").click()
    page.wait_for_selector(".copy-code.done")
    assert clipboard(page) == "def add(a, b):\n    return a + b"
    tool(page, 0, "Copy").click()
    expect(page.get_by_role("log")).to_contain_text("Copied.")
    page.wait_for_function("async () => await navigator.clipboard.readText() === 'Show me code.'")


def test_a_phone_on_plain_http_copies_too(new_page: NewPage, demo_server: ServerProcess) -> None:
    page = new_page(demo_server.url)
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    page.evaluate(
        """() => {
            Object.defineProperty(navigator, 'clipboard', {value: undefined});
            document.addEventListener('copy', () => window.copied = document.activeElement.value);
        }"""
    )
    tool(page, 1, "Copy").click()
    page.wait_for_selector(".copy.done")
    assert page.evaluate("() => window.copied") == "1, 2, 3"


def test_on_glass_the_tools_of_an_old_message_come_when_it_is_touched(
    new_page: NewPage, demo_server: ServerProcess, shot: Shot
) -> None:
    page = new_page(demo_server.url, **PHONE)
    for n in (3, 4):
        box(page).fill(f"Count from 1 to {n}.")
        button(page, "Send").tap()
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    edits = page.locator('article[data-role="user"] .edit')
    expect(edits.last).to_be_visible()
    expect(edits.first).to_be_hidden()
    questions(page).first.tap()
    expect(edits.first).to_be_visible()
    shot(page, "phone-tools")
    edits.first.tap()
    expect(box(page)).to_have_value("Count from 1 to 3.")


def test_each_answer_has_its_numbers_and_the_header_the_memory(page: Page, shot: Shot) -> None:
    say_and_wait(page, "Count from 1 to 20.", ", ".join(map(str, range(1, 21))))
    speed = page.locator(".numbers summary")
    expect(speed).to_contain_text("tokens/s")
    speed.click()
    words = page.locator(".numbers p")
    expect(words).to_contain_text("first word after")
    shot(page, "numbers")
    live = (speed.text_content(), words.text_content())
    gauge = page.get_by_role("meter", name="Memory")
    used = gauge.get_attribute("aria-valuetext")
    assert used and "of 4,096 tokens" in used
    page.reload()
    assert (speed.text_content(), words.text_content()) == live, "the server counts as the script does"
    expect(gauge).to_have_attribute("aria-valuetext", used)


def test_while_an_answer_is_written_nothing_else_is_changed(page: Page, demo_server: ServerProcess) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    changes: list[Any] = []
    with in_the_middle(page, demo_server):
        page.on("request", lambda request: changes.append(request.url) if request.method == "POST" else None)
        for at, name in ((0, "Edit"), (1, "Regenerate"), (2, "Delete")):
            page.evaluate(
                "([at, name]) => document.querySelectorAll('#messages article')[at].querySelector(name).click()",
                [at, "." + name.lower()],
            )
        page.keyboard.press("Escape")
    expect(note(page)).to_contain_text("Stopped.")
    assert len(changes) == 1 and changes[0].endswith("/stop"), "Esc stops, and nothing else was sent"
    button(page, "Continue").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and questions(page).last.text_content() == COUNT
