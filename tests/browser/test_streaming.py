"""An answer while it comes: Markdown in place at once, nothing that stands moves, and the page stays quick."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat import COUNT, SLOW, answers, box, busy, say
from tests.browser.conftest import NewPage, Shot
from tests.server_process import ServerProcess, slow_motion
from tests.test_operations import Stream, wait_for

WATCH = """() => {
    // After each change: where each finished block stands in its answer, and how tall it is.
    window.places = [];
    window.shrunk = [];
    let tallest = 0;
    const look = () => {
        const article = [...document.querySelectorAll('article[data-role="assistant"]')].pop();
        const text = article?.querySelector(".text");
        if (!text) return;
        const top = text.getBoundingClientRect().top;
        const height = article.getBoundingClientRect().height;
        if (height < tallest - 0.5) window.shrunk.push([tallest, height, text.innerText]);
        tallest = Math.max(tallest, height);
        window.places.push([...text.querySelectorAll(".settled > *")].map((block) => {
            const place = block.getBoundingClientRect();
            return [Math.round(place.top - top), Math.round(place.height)];
        }));
    };
    const what = {childList: true, subtree: true, characterData: true, attributes: true};
    new MutationObserver(look).observe(document.querySelector("#messages"), what);
}"""

LONG_TASKS = """() => {
    window.long = [];
    new PerformanceObserver((list) => window.long.push(...list.getEntries().map((task) => task.duration)))
        .observe({type: "longtask"});
}"""


def settled(page: Page) -> str:
    """The finished blocks as the server made them: without the buttons that the script adds."""
    found: Any = answers(page).last.evaluate(
        """(text) => {
            const copy = text.cloneNode(true);
            for (const button of copy.querySelectorAll("button")) button.remove();
            return copy.innerHTML;
        }"""
    )
    return str(found)


@pytest.mark.parametrize("question", ["Show me a table of birds.", "Show me a list.", "Show me code."])
def test_a_finished_block_never_moves_and_a_reload_shows_the_same(
    page: Page, demo_server: ServerProcess, question: str
) -> None:
    page.evaluate(WATCH)
    with slow_motion(demo_server):
        say(page, question)
        expect(answers(page)).to_have_count(1)
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    places = page.evaluate("() => window.places")
    assert len(places) >= 4
    for before, after in zip(places, places[1:], strict=False):
        assert after[: len(before)] == before, "a finished block moved"
    assert not page.evaluate("() => window.shrunk"), "the answer never gets shorter, also not at its end"
    streamed = settled(page)
    page.reload()
    assert settled(page) == streamed


def test_a_table_and_code_are_seen_as_such_while_they_are_written(
    page: Page, demo_server: ServerProcess, shot: Shot
) -> None:
    page.evaluate("""() => {
        window.seen = new Set();
        new MutationObserver(() => {
            for (const [name, selector] of [["row", ".open tr + tr"], ["tail", ".open .tail"]])
                if (document.querySelector(selector)) window.seen.add(name);
            const open = document.querySelector(".open")?.innerText ?? "";
            if (/\\| ---|```/.test(open)) window.seen.add("marks");
        }).observe(document.querySelector("#messages"), {childList: true, subtree: true, characterData: true});
    }""")
    for _ in range(3):  # all rows of a table may come between two looks of a fast machine
        with slow_motion(demo_server):
            for question in ("Show me a table of birds.", "Show me code."):
                say(page, question)
                expect(answers(page).last).not_to_be_empty()
                expect(busy(page)).to_have_count(0, timeout=SLOW)
        if {"row", "tail"} <= set(page.evaluate("() => [...window.seen]")):
            break
    assert set(page.evaluate("() => [...window.seen]")) >= {"row", "tail"}
    assert "marks" not in page.evaluate("() => [...window.seen]"), (
        "nobody sees a fence or the line under a table's head"
    )
    shot(page, "table-and-code")


def test_typing_stays_smooth_while_an_answer_is_written(page: Page, demo_server: ServerProcess) -> None:
    page.evaluate(LONG_TASKS)
    rounds = list[Any]()
    while [] not in rounds and len(rounds) < 5:  # what other programs do meanwhile is no fault of the page
        page.evaluate("() => window.long = []")
        with slow_motion(demo_server):
            say(page, COUNT)
            box(page).focus()
            while busy(page).count():
                page.keyboard.type("typed ", delay=10)
        expect(busy(page)).to_have_count(0, timeout=SLOW)
        box(page).fill("")
        rounds.append(page.evaluate("() => window.long"))
    print("tasks above 50 ms, by rounds:", rounds)
    assert [] in rounds


def test_what_a_message_says_is_never_run(page: Page) -> None:
    """The demo repeats what it is told: in the question, the answer and the title."""
    page.evaluate("() => window.hacked = false")
    for evil in ("<img src=x onerror=window.hacked=1>", "[x](javascript:window.hacked=1)"):
        say(page, f"Repeat: {evil}")
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert page.locator("article img, article [onerror], a[href^=javascript]").count() == 0
    page.reload()
    assert page.locator("article img, article [onerror], a[href^=javascript]").count() == 0
    assert not page.evaluate("() => window.hacked")


def test_right_to_left_text_stands_right(page: Page, shot: Shot) -> None:
    say(page, "مرحبا، كيف حالك؟")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    direction = "(element) => getComputedStyle(element).direction"
    assert page.locator('article[data-role="user"] .text').evaluate(direction) == "rtl"
    box(page).fill("שלום")
    assert box(page).evaluate(direction) == "rtl"
    shot(page, "right-to-left")


def waits(page: Page, *news: dict[str, Any]) -> None:
    """The answer's stream says these, and no more."""
    body = "".join(f"event: wait\ndata: {json.dumps(each)}\n\n" for each in news)
    page.route("**/events?*", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


@pytest.mark.parametrize(
    "name, news, words",
    [
        ("queue", {"queue": 3, "read": 0, "left_s": 12.4}, "Place 3 in the queue · about 12 s left"),
        ("queue-next", {"queue": 1, "read": 0, "left_s": None}, "Next in the queue"),
        ("reading", {"queue": 0, "read": 0.428, "left_s": 6.1}, "Reading, 42 % · about 6 s left"),
    ],
)
def test_waiting_is_explained(page: Page, shot: Shot, name: str, news: dict[str, Any], words: str) -> None:
    waits(page, news)
    say(page, COUNT)
    expect(page.locator(".how")).to_have_text(words)
    expect(page.get_by_role("log")).to_contain_text(words)
    shot(page, name)


def test_seconds_that_go_by_are_seen_and_not_spoken(page: Page) -> None:
    places = [(3, 12.4), (3, 11.4), (3, 10.4), (2, 9.4), (2, 8.4)]
    waits(page, *({"queue": place, "read": 0, "left_s": left} for place, left in places))
    page.evaluate("""() => {
        window.said = [];
        const log = document.querySelector('[role="log"]');
        new MutationObserver(() => window.said.push(log.textContent)).observe(log, {childList: true, subtree: true});
    }""")
    say(page, COUNT)
    expect(page.locator(".how")).to_have_text("Place 2 in the queue · about 8 s left")
    said = " ".join(page.evaluate("() => window.said"))
    assert "about 12 s" in said and "about 9 s" in said and not re.search("about (11|10|8) s", said)


def test_who_waits_in_the_queue_sees_the_place(new_page: NewPage, tmp_path: Path) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path), "--slots", "1"]) as server:
        first, chinese = new_page(server.url), new_page(server.url, locale="zh-CN")
        with slow_motion(server):
            longest = Stream(server)  # the whole context: a page may take long to ask beside other work
            wait_for(lambda: longest.said)
            say(first, COUNT)
            expect(first.locator(".how")).to_contain_text("Next in the queue", timeout=SLOW)
            chinese.get_by_role("textbox", name="消息").fill(COUNT)
            chinese.get_by_role("textbox", name="消息").press("Enter")
            expect(chinese.locator(".how")).to_contain_text("排在第 2 位", timeout=SLOW)
        longest.wait()
        for page in (first, chinese):
            expect(busy(page)).to_have_count(0, timeout=SLOW)


def test_a_long_question_is_seen_to_be_read(page: Page, demo_server: ServerProcess) -> None:
    page.evaluate("""() => {
        window.said = [];
        new MutationObserver(() => {
            const how = [...document.querySelectorAll(".how")].pop()?.textContent;
            if (how && how !== window.said.at(-1)) window.said.push(how);
        }).observe(document.querySelector("#messages"), {childList: true, subtree: true});
    }""")
    with slow_motion(demo_server):
        say(page, "Repeat: " + "the quick brown fox jumps over the lazy dog " * 70)
        expect(answers(page)).not_to_have_text("", timeout=SLOW)
    shares = [int(re.findall(r"Reading, (\d+) %", how)[0]) for how in page.evaluate("() => window.said")]
    assert len(shares) > 1 and shares == sorted(shares) and shares[-1] < 100
    expect(busy(page)).to_have_count(0, timeout=SLOW)
