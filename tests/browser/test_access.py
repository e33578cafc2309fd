"""For everybody: no violation that axe-core finds, in both themes, on a desktop and on a phone, in every state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.chat import SLOW, answers, box, busy, button, in_the_middle
from tests.browser.conftest import PHONE, NewPage
from tests.server_process import ServerProcess

# All rules but those for what is still being worked out by axe's own authors.
RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
}


@pytest.fixture(scope="session")
def axe() -> Iterator[Axe]:
    yield Axe()


def violations(page: Page, axe: Axe) -> list[Any]:
    page.wait_for_timeout(50)
    found = axe.run(page, options=RULES).response["violations"]
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"]][:3], rule["help"]) for rule in found]


@pytest.mark.parametrize("scheme, device", [*product(["light", "dark"], ["desktop", "phone"])])
def test_axe_finds_nothing(new_page: NewPage, demo_server: ServerProcess, axe: Axe, scheme: str, device: str) -> None:
    is_phone = device == "phone"
    # axe is put into the page as a script, which the page's own policy forbids.
    options: dict[str, Any] = {"color_scheme": scheme, "bypass_csp": True, **(PHONE if is_phone else {})}
    page = new_page(demo_server.url, **options)
    found = {"empty": violations(page, axe)}
    for question in ("Show me a table of birds.", "Show me code."):
        box(page).fill(question)
        button(page, "Send").click()
        expect(answers(page).last).not_to_be_empty()
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    found["table and code"] = violations(page, axe)
    page.locator(".numbers summary").last.click()
    page.locator(".regenerate").last.click()
    expect(page.locator(".branches")).to_have_count(1)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    found["branches"] = violations(page, axe)
    with in_the_middle(page, demo_server):
        found["streaming"] = violations(page, axe)
        button(page, "Stop").click()
    expect(page.locator("article .note .why").last).to_contain_text("Stopped.")
    found["stopped"] = violations(page, axe)
    page.locator("#about").click()
    found["menu"] = violations(page, axe)
    page.get_by_role("button", name="Rename").click()
    found["rename"] = violations(page, axe)
    page.keyboard.press("Escape")
    if is_phone:
        button(page, "Conversations").click()
    page.locator("#search").fill("bird")
    expect(page.locator("#list mark").first).to_be_visible()
    found["search"] = violations(page, axe)
    button(page, "Settings").click()
    page.get_by_label("Temperature", exact=True).fill("9")
    page.keyboard.press("Tab")
    expect(page.locator("#settings .problem:not([hidden])")).to_have_count(1)
    found["settings"] = violations(page, axe)
    page.keyboard.press("Escape")
    page.route("**/messages", lambda route: route.abort())
    page.reload()
    box(page).fill("Hello")
    button(page, "Send").click()
    expect(page.locator("#problem")).to_be_visible()
    found["error"] = violations(page, axe)
    page.goto(demo_server.url + "/c/nothing")
    found["gone"] = violations(page, axe)
    page.route("**/health", lambda route: route.abort())  # or it goes away by itself: the server is there
    page.goto(demo_server.url + "/offline")
    found["offline"] = violations(page, axe)
    page.goto(demo_server.url + "/docs")
    found["docs"] = violations(page, axe)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing hangs over the edge"
    assert not {state: rules for state, rules in found.items() if rules}
