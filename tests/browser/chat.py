"""The chat as a person sees it: by the names of its parts, which are the contract of the page."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.server_process import ServerProcess, slow_motion

COUNT = "Count from 1 to 100."
HUNDRED = ", ".join(map(str, range(1, 101)))
SLOW = 30_000
"""Milliseconds for what the model computes: two cores may be shared with other tests."""


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def questions(page: Page) -> Locator:
    return page.locator('article[data-role="user"] .text')


def answers(page: Page) -> Locator:
    return page.locator('article[data-role="assistant"] .text')


def busy(page: Page) -> Locator:
    return page.locator('article[aria-busy="true"]')


def say(page: Page, text: str) -> None:
    """Type it and press Enter; returns at once."""
    box(page).fill(text)
    box(page).press("Enter")


def say_and_wait(page: Page, text: str, answer: str) -> None:
    """Ask, and see exactly this answer come to its end."""
    before = answers(page).count()
    say(page, text)
    expect(answers(page)).to_have_count(before + 1)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == answer


def written(page: Page) -> str:
    """The last answer, letter by letter."""
    return (answers(page).last.text_content() or "").strip()


def wait_for_first_words(page: Page) -> None:
    """Returns within a frame of the first words of the last answer."""
    page.wait_for_function(
        """() => [...document.querySelectorAll('article[data-role="assistant"] .text')].pop()?.textContent.trim()""",
        timeout=SLOW,
    )


@contextmanager
def in_the_middle(page: Page, server: ServerProcess) -> Iterator[str]:
    """Ask for a long answer, and stop the server's clock at its first words, which this gives.

    The demo writes its longest answer in half a second: what has to happen before its end happens inside this.
    """
    with slow_motion(server):
        box(page).fill(COUNT)
        button(page, "Send").click()
        wait_for_first_words(page)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        page.wait_for_timeout(150)  # what was on its way arrives
        half = written(page)
        assert half and half != HUNDRED and HUNDRED.startswith(half), half
        yield half
    finally:
        os.kill(server.pid, signal.SIGCONT)


def note(page: Page) -> Locator:
    """What stands below the last answer."""
    return page.locator("article .note .why").last


def watch(page: Page) -> None:
    """From now on, `states` knows every text that the last answer has shown."""
    page.evaluate(
        """() => {
            window.states = [];
            const all = document.querySelectorAll.bind(document, 'article[data-role="assistant"] .text');
            const look = () => window.states.push([...all()].pop()?.textContent.trim() ?? "");
            const what = {childList: true, subtree: true, characterData: true};
            new MutationObserver(look).observe(document.querySelector("main"), what);
        }"""
    )


def states(page: Page) -> list[str]:
    seen: Any = page.evaluate("() => [...new Set(window.states)].filter((text) => text)")
    return [str(text) for text in seen]
