"""What the eye and the hand meet: phone, dark, Chinese, scrolling, contrast, names."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat import (
    COUNT,
    HUNDRED,
    SLOW,
    answers,
    box,
    busy,
    button,
    in_the_middle,
    questions,
    say,
    say_and_wait,
    written,
)
from tests.browser.conftest import PHONE, NewPage, Shot
from tests.server_process import ServerProcess

CONTRAST = """(selector) => {
    const rgb = (color) => color.match(/[\\d.]+/g).slice(0, 4).map(Number);
    const light = (color) => {
        const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = rgb(color).map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility()).map((element) => {
        let below = element;
        while (below && rgb(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
        const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(below).backgroundColor)];
        return [element.id || element.className || element.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


def fits(page: Page) -> bool:
    """Nothing is wider than the window, and the page itself does not scroll."""
    return bool(
        page.evaluate(
            "() => document.body.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
        )
    )


def test_a_phone_holds_it_in_one_hand(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url, **PHONE)
    assert fits(page)
    shot(page, "phone-welcome")
    box(page).tap()
    page.keyboard.type("Count from")
    box(page).press("Enter")
    page.keyboard.type("1 to 100.")
    expect(box(page)).to_have_value("Count from\n1 to 100.")
    expect(questions(page)).to_have_count(0)
    box(page).fill(COUNT)
    button(page, "Send").tap()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and fits(page)
    shot(page, "phone-conversation")
    width = page.evaluate("() => innerWidth")
    page.set_viewport_size({"width": width, "height": 380})  # its keyboard is there
    place = box(page).bounding_box()
    assert place and place["y"] >= 0 and place["y"] + place["height"] <= 380 and fits(page)
    for name in ("Send", "New chat", "Conversations"):
        size = button(page, name).bounding_box()
        assert size and min(size["width"], size["height"]) >= 44, (name, size)


def test_the_phones_list_opens_closes_and_leads(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url, **PHONE)
    box(page).fill("Count from 1 to 3.")
    button(page, "Send").tap()
    expect(answers(page)).to_have_text("1, 2, 3", timeout=SLOW)
    old = page.url
    button(page, "New chat").tap()
    expect(questions(page)).to_have_count(0)
    chats = page.get_by_role("navigation")
    expect(chats).to_be_hidden()
    button(page, "Conversations").tap()
    expect(chats).to_be_visible()
    shot(page, "phone-list")
    page.keyboard.press("Escape")
    expect(chats).to_be_hidden()
    button(page, "Conversations").tap()
    chats.get_by_role("link").tap()
    expect(answers(page)).to_have_text("1, 2, 3")
    assert page.url == old


def test_a_chinese_reader_talks_chinese(new_page: NewPage, demo_server: ServerProcess, shot: Shot) -> None:
    page = new_page(demo_server.url, locale="zh-CN")
    expect(page.get_by_role("textbox", name="消息", exact=True)).to_be_focused()
    shot(page, "chinese-welcome")
    for text in ("我叫小明。", "我叫什么名字？"):
        page.keyboard.type(text)
        button(page, "发送").click()
        expect(busy(page)).to_have_count(0, timeout=SLOW)
        expect(answers(page).last).to_contain_text("小明")
    assert written(page) == "你叫小明。"
    shot(page, "chinese-conversation")
    button(page, "新对话").click()
    expect(questions(page)).to_have_count(0)


@pytest.mark.parametrize("scheme, device", [*product(["light", "dark"], ["desktop", "phone"])])
def test_everything_can_be_read_in_both_themes(
    new_page: NewPage, demo_server: ServerProcess, shot: Shot, scheme: str, device: str
) -> None:
    page = new_page(demo_server.url, color_scheme=scheme, **(PHONE if device == "phone" else {}))
    texts = "h2, p, a, button, .text, .quant, .why, strong"
    found = page.evaluate(CONTRAST, texts)
    with in_the_middle(page, demo_server):
        button(page, "Stop").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    found += page.evaluate(CONTRAST, texts)
    assert len(found) > 10 and not [entry for entry in found if entry[1] < 4.5]
    shot(page, f"{scheme}-{device}")


def test_the_page_follows_the_answer_until_the_reader_scrolls_up(
    new_page: NewPage, demo_server: ServerProcess, shot: Shot
) -> None:
    page = new_page(demo_server.url, viewport={"width": 360, "height": 420})
    for _ in range(2):
        say_and_wait(page, COUNT, HUNDRED)
    assert gap(page) <= 1
    with in_the_middle(page, demo_server):
        page.mouse.move(180, 200)
        page.mouse.wheel(0, -300)
        expect(button(page, "To the end")).to_be_visible()
    top = page.evaluate("() => document.querySelector('#thread').scrollTop")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert abs(page.evaluate("() => document.querySelector('#thread').scrollTop") - top) <= 1
    shot(page, "scrolled-up")
    button(page, "To the end").click()
    assert gap(page) <= 1
    expect(button(page, "To the end")).to_be_hidden()


def gap(page: Page) -> float:
    """Pixels between what is seen and the end."""
    found: Any = page.evaluate(
        "() => { const t = document.querySelector('#thread'); return t.scrollHeight - t.clientHeight - t.scrollTop; }"
    )
    return float(found)


def test_the_names_that_stay(page: Page) -> None:
    say(page, "Count from 1 to 3.")
    expect(page.locator('article[data-role="user"]')).to_have_count(1)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    expect(page.locator('article[data-role="assistant"]')).not_to_have_attribute("aria-busy", re.compile(""))
    expect(box(page)).to_have_count(1)
    for name, n in {"Send": 1, "New chat": 1, "Edit": 1, "Regenerate": 1, "Copy": 2, "Delete": 2}.items():
        expect(button(page, name)).to_have_count(n)
    expect(page.get_by_role("searchbox", name="Search", exact=True)).to_be_visible()
    button(page, "Settings").click()
    expect(page.get_by_role("link", name="Export", exact=True)).to_be_visible()
    expect(button(page, "Import")).to_be_visible()


def test_all_of_it_by_keyboard_with_visible_focus(page: Page) -> None:
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                """() => {
                    const element = document.activeElement;
                    const accent = getComputedStyle(document.querySelector(".brand svg")).color;
                    // The box shows its focus by the frame around it and its button.
                    const style = getComputedStyle(element.id === "box" ? element.form : element);
                    const outline = style.outlineStyle !== "none" && style.outlineColor;
                    const ring = element.id === "box" ? style.borderTopColor : outline;
                    return [element.id || element.className || element.tagName, ring === accent];
                }"""
            )
        )
    focused = {name: ring for name, ring in seen if name != "BODY"}
    assert {"new", "thread", "example", "box"} <= set(focused)
    assert all(focused.values()), focused


def test_the_model_and_its_quant_are_shown_and_that_it_is_the_demo(page: Page, demo_server: ServerProcess) -> None:
    served = demo_server.json("/health")
    name = served["model"].removesuffix("-" + served["quant"].lower())
    expect(page.get_by_role("banner").locator(".model")).to_have_text(f"{name} {served['quant']}")
    expect(page.get_by_role("note")).to_contain_text("This is the demo.")


def test_a_reader_without_animations_gets_none(new_page: NewPage, demo_server: ServerProcess) -> None:
    page = new_page(demo_server.url, reduced_motion="reduce")
    page.route("**/events?*", lambda route: None)
    say(page, "Hello")
    dot = page.locator("article .waiting i").first
    expect(dot).to_be_visible()
    assert dot.evaluate("(dot) => getComputedStyle(dot).animationName") == "none"
