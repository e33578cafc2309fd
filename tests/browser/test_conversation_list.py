"""The list of conversations: search in all that was said, rename, pin, delete with undo."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.browser.chat import SLOW, answers, box, busy, button, questions, say, say_and_wait
from tests.browser.conftest import PHONE, NewPage, Shot
from tests.server_process import ServerProcess


def links(page: Page) -> Locator:
    return page.get_by_role("navigation").get_by_role("link")


def search(page: Page) -> Locator:
    return page.get_by_role("searchbox", name="Search", exact=True)


def begin(page: Page, *texts: str) -> None:
    """A conversation for each text."""
    for text in texts:
        button(page, "New chat").click()
        expect(questions(page)).to_have_count(0)
        say(page, text)
        expect(answers(page)).to_have_count(1)
        expect(busy(page)).to_have_count(0, timeout=SLOW)


def menu(page: Page, title: str) -> Locator:
    """The open menu of the conversation with this title."""
    links(page).filter(has_text=title).first.hover()
    page.get_by_role("navigation").get_by_role("button", name=f"More about {title}", exact=True).click()
    opened = page.locator("#menu")
    expect(opened).to_be_visible()
    return opened


def test_all_that_was_said_is_found_also_chinese(page: Page, shot: Shot) -> None:
    begin(page, "My name is Ana.", "Count from 1 to 20.", "我叫小明。")
    page.keyboard.press("Control+k")
    expect(search(page)).to_be_focused()
    page.keyboard.type("19")
    expect(links(page)).to_have_count(1)
    expect(links(page)).to_contain_text("Count from 1 to 20.")
    expect(links(page).locator("mark").first).to_have_text("19")
    shot(page, "search")
    search(page).fill("小明")
    expect(links(page)).to_have_count(1)
    expect(links(page).locator("mark").first).to_have_text("小明")
    search(page).fill("zebra")
    expect(page.locator("#no-chats")).to_have_text("Nothing was found.")
    shot(page, "search-nothing")
    search(page).fill("")
    expect(links(page)).to_have_count(3)
    search(page).fill("name")
    expect(links(page)).to_have_count(1)
    search(page).press("ArrowDown")
    page.keyboard.press("Enter")
    expect(questions(page)).to_have_text(["My name is Ana."])


def test_what_was_found_in_another_branch_is_shown_there_and_gone_on_with(page: Page, shot: Shot) -> None:
    say_and_wait(page, "Count from 1 to 20.", ", ".join(map(str, range(1, 21))))
    page.locator(".edit").click()
    say(page, "My name is Ana.")
    expect(answers(page)).to_contain_text("Ana", timeout=SLOW)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    search(page).fill("19")
    expect(links(page).locator("mark")).to_have_text("19")
    links(page).click()
    expect(questions(page)).to_have_text(["Count from 1 to 20."])
    expect(page.locator("article.found")).to_have_attribute("data-role", "assistant")
    assert "leaf" not in page.url
    shot(page, "found")
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    assert questions(page).all_text_contents() == ["Count from 1 to 20.", "Count from 1 to 3."]
    page.reload()
    expect(questions(page)).to_have_text(["Count from 1 to 20.", "Count from 1 to 3."])


def test_a_conversation_is_renamed_and_pinned(page: Page, shot: Shot) -> None:
    begin(page, "Count from 1 to 3.", "Count from 1 to 4.")
    shown = menu(page, "Count from 1 to 4.")
    shot(page, "menu")
    shown.get_by_role("button", name="Rename").click()
    name = page.get_by_role("dialog").get_by_role("textbox", name="Rename")
    expect(name).to_have_value("Count from 1 to 4.")
    shot(page, "rename")
    name.fill("<b>Four</b>")
    name.press("Enter")
    expect(links(page).first).to_have_text("<b>Four</b>")
    assert page.title() == "<b>Four</b> · Sparrow"
    menu(page, "Count from 1 to 3.").get_by_role("button", name="Pin", exact=True).click()
    expect(links(page)).to_have_text(["Count from 1 to 3.", "<b>Four</b>"])
    say(page, "Hello")
    expect(answers(page)).to_have_count(2)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert links(page).all_text_contents() == ["Count from 1 to 3.", "<b>Four</b>"], "a pinned one stays on top"
    page.reload()
    expect(links(page)).to_have_text(["Count from 1 to 3.", "<b>Four</b>"])
    shot(page, "pinned")
    menu(page, "Count from 1 to 3.").get_by_role("button", name="Unpin").click()
    expect(links(page)).to_have_text(["<b>Four</b>", "Count from 1 to 3."])


def test_what_was_deleted_comes_back_by_undo(page: Page, shot: Shot) -> None:
    begin(page, "Count from 1 to 3.", "Count from 1 to 4.")
    menu(page, "Count from 1 to 3.").get_by_role("button", name="Delete").click()
    expect(links(page)).to_have_text(["Count from 1 to 4."])
    expect(page.locator("#toast")).to_contain_text("“Count from 1 to 3.” was deleted.")
    shot(page, "deleted")
    button(page, "Undo").click()
    expect(links(page)).to_have_text(["Count from 1 to 4.", "Count from 1 to 3."])
    # The one that is shown: its page is gone, and the way back is offered on the next.
    old = page.url
    menu(page, "Count from 1 to 4.").get_by_role("button", name="Delete").click()
    expect(page.locator("#welcome")).to_be_visible()
    expect(links(page)).to_have_text(["Count from 1 to 3."])
    button(page, "Undo").click()
    expect(links(page)).to_have_count(2)
    page.goto(old)
    expect(answers(page)).to_have_text("1, 2, 3, 4")


def test_a_phone_does_it_from_a_sheet_at_the_thumb(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url, **PHONE)
    box(page).fill("Count from 1 to 3.")
    button(page, "Send").tap()
    expect(answers(page)).to_have_text("1, 2, 3", timeout=SLOW)
    button(page, "Conversations").tap()
    page.get_by_role("navigation").get_by_role("button", name="More about Count from 1 to 3.").tap()
    sheet = page.locator("#menu")
    expect(sheet).to_be_visible()
    expect(page.get_by_role("navigation")).to_be_visible()
    place = sheet.bounding_box()
    assert place and place["x"] == 0 and place["y"] + place["height"] == 844
    shot(page, "phone-menu")
    sheet.get_by_role("button", name="Delete").tap()
    expect(page.locator("#toast")).to_be_visible()
    button(page, "Undo").tap()
    button(page, "Conversations").tap()
    expect(links(page)).to_have_text(["Count from 1 to 3."])
