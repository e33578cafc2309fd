"""Settings hold at once: how answers are chosen, here and everywhere; theme, language, reading along."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser.chat import SLOW, answers, box, busy, button, say, say_and_wait
from tests.browser.conftest import PHONE, NewPage, Shot
from tests.server_process import ServerProcess


def settings(page: Page) -> Locator:
    button(page, "Settings").click()
    opened = page.get_by_role("dialog", name="Settings")
    expect(opened).to_be_visible()
    return opened


def put(page: Page, field: str, value: str) -> None:
    """Type it, leave the field, and see it saved."""
    page.get_by_label(field, exact=True).fill(value)
    page.keyboard.press("Tab")
    expect(page.locator("#settings .saved")).to_have_text("Saved.")


def test_a_new_chat_is_begun_with_settings_of_its_own(page: Page, shot: Shot) -> None:
    sent: list[Any] = []
    page.on(
        "request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/messages") else None
    )
    opened = settings(page)
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.2")
    expect(page.get_by_label("Top k")).to_have_attribute("placeholder", "20")
    shot(page, "settings")
    put(page, "Longest answer", "5")
    put(page, "System prompt", "You are <b>Sparrow</b>.")
    opened.get_by_role("button", name="Close").click()
    page.reload()
    say(page, "Count from 1 to 20.")
    expect(page.locator("article .note .why")).to_contain_text("longest length", timeout=SLOW)
    assert sent[0]["settings"] == {"max_tokens": 5, "system_prompt": "You are <b>Sparrow</b>."}
    expect(button(page, "Continue")).to_be_visible()
    shot(page, "cut-at-length")
    for _ in range(2):
        settings(page)
        expect(page.get_by_label("Longest answer")).to_have_value("5")
        expect(page.get_by_label("System prompt")).to_have_value("You are <b>Sparrow</b>.")
        page.reload()
    settings(page)
    button(page, "Official values").click()
    expect(page.get_by_label("Longest answer")).to_have_value("")
    button(page, "Close").click()
    button(page, "Continue").click()
    expect(answers(page)).to_contain_text("19, 20", timeout=SLOW)
    expect(page.locator("article .note")).to_be_hidden()


def test_a_default_holds_for_every_conversation_but_for_those_with_their_own(page: Page) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    settings(page)
    put(page, "Temperature", "0")
    page.get_by_text("Every conversation", exact=True).click()
    expect(page.get_by_label("Temperature")).to_have_value("")
    put(page, "Temperature", "0,5")
    put(page, "Seed", "7")
    page.keyboard.press("Escape")
    page.reload()
    settings(page)
    expect(page.get_by_label("Temperature")).to_have_value("0")
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.5")
    expect(page.get_by_label("Seed")).to_have_attribute("placeholder", "7")
    button(page, "Official values").click()  # the model's, here, whatever the default is
    expect(page.get_by_label("Temperature")).to_have_value("0.2")
    expect(page.get_by_label("Top k")).to_have_value("")
    page.reload()
    settings(page)
    expect(page.get_by_label("Temperature")).to_have_value("0.2")
    page.get_by_text("Every conversation", exact=True).click()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    button(page, "Official values").click()
    expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.2")
    expect(page.get_by_label("Temperature")).to_have_value("")


def test_what_cannot_be_is_said_at_its_field_and_stays_there(page: Page, shot: Shot) -> None:
    settings(page)
    field = page.get_by_label("Temperature", exact=True)
    field.fill("3")
    field.press("Enter")
    problem = page.locator(".field", has=field).get_by_role("alert")
    expect(problem).to_have_text("Give a number from 0 to 2.")
    expect(field).to_have_value("3")
    shot(page, "settings-error")
    page.get_by_label("Top k", exact=True).fill("1.5")
    page.keyboard.press("Tab")
    expect(page.locator(".field", has=page.get_by_label("Top k")).get_by_role("alert")).to_have_text(
        "Give a whole number."
    )
    field.fill("nonsense")
    field.press("Enter")
    expect(problem).to_have_text("Give a number from 0 to 2.")
    field.fill("1.5")
    field.press("Enter")
    expect(problem).to_be_hidden()


def test_the_theme_changes_at_once_and_is_there_before_the_script(
    new_page: NewPage, demo_server: ServerProcess
) -> None:
    page = new_page(demo_server.url, color_scheme="light")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    settings(page)
    page.get_by_text("Dark", exact=True).click()
    expect(page.locator("#settings .saved")).to_have_text("Saved.")
    dark = page.evaluate(paper)
    assert dark != light
    page.route("**/*.js", lambda route: route.abort())
    page.reload()
    assert page.evaluate(paper) == dark


def test_the_language_is_chosen(page: Page, shot: Shot) -> None:
    box(page).fill("what I typed")
    settings(page)
    page.get_by_label("Language").select_option(label="中文")
    expect(page.get_by_role("textbox", name="消息", exact=True)).to_have_value("what I typed")
    button(page, "设置").click()
    expect(page.get_by_role("dialog", name="设置")).to_be_visible()
    shot(page, "chinese-settings")
    page.get_by_label("语言").select_option(label="English")
    expect(box(page)).to_have_value("what I typed")


def test_reading_along_shows_itself_and_can_be_switched_off(page: Page, shot: Shot) -> None:
    drafts: list[Any] = []
    page.on(
        "request", lambda request: drafts.append(request.post_data_json) if request.url.endswith("/drafts") else None
    )
    box(page).fill("Count from 1 to")
    sign = page.locator("#reading")
    expect(sign).to_be_visible()
    shot(page, "reading-along")
    box(page).fill("")
    expect(sign).to_be_hidden()
    settings(page)
    page.get_by_role("switch", name="Reading along").click()
    expect(page.locator("#settings .saved")).to_have_text("Saved.")
    button(page, "Close").click()
    n_before = len(drafts)
    box(page).fill("Count from 1 to 3.")
    page.wait_for_timeout(600)
    assert len(drafts) == n_before
    expect(sign).to_be_hidden()
    page.reload()
    box(page).fill("Count from 1 to 4.")
    page.wait_for_timeout(600)
    assert len(drafts) == n_before
    box(page).press("Enter")
    expect(busy(page)).to_have_count(0, timeout=SLOW)


def test_a_phone_has_the_settings_as_a_sheet(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url, **PHONE)
    button(page, "Conversations").tap()
    button(page, "Settings").tap()
    sheet = page.get_by_role("dialog", name="Settings")
    expect(sheet).to_be_visible()
    place = sheet.bounding_box()
    assert place and place["x"] == 0 and place["width"] == 390 and abs(place["y"] + place["height"] - 844) < 1
    shot(page, "phone-settings")
    page.locator("#set-data").scroll_into_view_if_needed()
    shot(page, "phone-settings-end")
