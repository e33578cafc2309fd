"""A conversation in a real browser with the real server and the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    note,
    questions,
    say,
    say_and_wait,
    states,
    watch,
    written,
)
from tests.browser.conftest import NewPage, Shot
from tests.server_process import ServerProcess, slow_motion


def test_the_name_of_the_first_turn_is_known_in_the_third(page: Page, shot: Shot) -> None:
    shot(page, "welcome")
    say(page, "My name is Ana.")
    expect(answers(page)).to_contain_text("Ana", timeout=SLOW)
    expect(busy(page)).to_have_count(0)
    say(page, "Hello")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    say_and_wait(page, "What is my name?", "Your name is Ana.")
    assert questions(page).all_text_contents() == ["My name is Ana.", "Hello", "What is my name?"]
    shot(page, "conversation")


def test_an_answer_appears_word_by_word(page: Page, demo_server: ServerProcess) -> None:
    watch(page)
    with slow_motion(demo_server):
        say_and_wait(page, COUNT, HUNDRED)
    seen = states(page)
    assert len(seen) > 10, seen
    assert all(HUNDRED.startswith(text) for text in seen)
    assert sorted(seen, key=len) == seen, "what is there never goes back"


def test_the_page_says_that_it_waits_and_what_it_can_do_meanwhile(page: Page, shot: Shot) -> None:
    expect(button(page, "Stop")).to_be_hidden()
    expect(button(page, "Send")).to_be_disabled()
    # Held back on its way, so that the waiting sign has time to be seen.
    page.route("**/events?*", lambda route: None)
    say(page, COUNT)
    expect(page.locator("article .waiting")).to_be_visible()
    expect(button(page, "Send")).to_be_hidden()
    expect(button(page, "Stop")).to_be_visible()
    expect(busy(page)).to_have_count(1)
    shot(page, "waiting")
    page.unroute("**/events?*")
    page.wait_for_url("**/c/*")  # until then, what is sent stands in the box after a reload
    page.reload()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED


def test_stop_ends_the_answer_and_retry_gives_it_whole(page: Page, demo_server: ServerProcess, shot: Shot) -> None:
    with in_the_middle(page, demo_server):
        shot(page, "streaming")
        button(page, "Stop").click()
    expect(note(page)).to_contain_text("Stopped.")
    expect(box(page)).to_be_focused()
    stopped = written(page)
    assert stopped and HUNDRED.startswith(stopped) and stopped != HUNDRED
    shot(page, "stopped")
    page.reload()
    assert written(page) == stopped
    button(page, "Retry").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and answers(page).count() == 1


def test_a_stopped_answer_goes_on_behind_its_last_word(page: Page, demo_server: ServerProcess, shot: Shot) -> None:
    with in_the_middle(page, demo_server):
        button(page, "Stop").click()
    expect(note(page)).to_contain_text("Stopped.")
    stopped = written(page)
    watch(page)
    button(page, "Continue").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and answers(page).count() == 1
    assert all(text.startswith(stopped) for text in states(page)), "what is there never goes back"
    expect(button(page, "Continue")).to_be_hidden()
    page.reload()
    assert written(page) == HUNDRED


def test_what_stands_in_the_box_is_read_after_a_pause(page: Page, demo_server: ServerProcess) -> None:
    drafts: list[Any] = []
    page.on("request", lambda request: drafts.append(request.post_data_json) if "/drafts" in request.url else None)
    box(page).focus()
    page.keyboard.type("Count from 1 ", delay=20)
    page.wait_for_timeout(600)
    assert drafts == [{"text": "Count from 1"}], "once, after the last key"
    page.keyboard.type(" ")
    page.wait_for_timeout(600)
    assert len(drafts) == 1, "nothing new to read"
    page.keyboard.type("to 3.")
    page.keyboard.press("Enter")
    n_sent = len(drafts)  # one, unless other work made a pause between the keys
    expect(answers(page)).to_have_text("1, 2, 3", timeout=SLOW)
    page.wait_for_timeout(600)
    assert len(drafts) == n_sent, "what was sent is no draft any more"

    def hellos() -> list[Any]:
        return [draft for draft in drafts if draft["text"] == "Hello"]

    with in_the_middle(page, demo_server):
        box(page).fill("Hello")
        page.wait_for_timeout(600)
        assert not hellos(), "while an answer is written nothing else is read"
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    page.wait_for_timeout(800)
    assert hellos() == [{"conversation": page.url.rpartition("/")[2], "text": "Hello"}]


def test_a_reader_who_saves_data_sends_no_drafts(page: Page) -> None:
    drafts: list[str] = []
    page.on("request", lambda request: drafts.append(request.url) if "/drafts" in request.url else None)
    page.evaluate("() => Object.defineProperty(navigator, 'connection', {value: {saveData: true}})")
    box(page).fill("Count from 1 to 3.")
    page.wait_for_timeout(600)
    assert not drafts


def test_a_line_shows_where_the_models_memory_begins(new_page: NewPage, tmp_path: Path, shot: Shot) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path), "--ctx", "512"]) as server:
        page = new_page(server.url)
        line = page.locator("#messages .memory")
        say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
        expect(line).to_have_count(0)
        for _ in range(8):
            if line.count():
                break
            say_and_wait(page, "Count from 1 to 20.", ", ".join(map(str, range(1, 21))))
        expect(line).to_have_text("The model's memory begins here")
        shot(page, "memory")
        where = "(line) => [...document.querySelectorAll('#messages > *')].indexOf(line)"
        before = line.evaluate(where)
        assert before > 1
        page.reload()
        assert line.evaluate(where) == before, "the server counts as the script does"
        say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
        expect(line).to_have_count(1)


def test_escape_stops_too(page: Page, demo_server: ServerProcess) -> None:
    with in_the_middle(page, demo_server):
        page.keyboard.press("Escape")
    expect(note(page)).to_contain_text("Stopped.")


def test_a_memory_that_is_full_says_so_before_and_after_a_reload(new_page: NewPage, tmp_path: Path) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path), "--ctx", "160"]) as server:
        page = new_page(server.url)
        say(page, COUNT)
        for _ in range(2):
            expect(note(page)).to_have_text("The model's memory is full here. Start a new chat to go on.", timeout=SLOW)
            expect(button(page, "Continue")).to_be_hidden()
            expect(page.get_by_role("meter")).to_have_attribute("aria-valuenow", "160")
            page.reload()
        button(page, "New chat").click()
        say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
        say(page, COUNT)
        for _ in range(2):
            expect(note(page)).to_contain_text("To go on, it forgets what is oldest.", timeout=SLOW)
            expect(button(page, "Continue")).to_be_visible()
            page.reload()
        button(page, "Continue").click()
        expect(note(page)).to_contain_text("Start a new chat to go on.", timeout=SLOW)
        expect(button(page, "Continue")).to_be_hidden()


def test_a_question_is_sent_once_however_hastily(page: Page) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/messages") else None)
    box(page).fill("My name is Ana.")
    page.evaluate("() => { const send = document.querySelector('#send'); send.click(); send.click(); }")
    box(page).press("Enter")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    box(page).fill("Hello")
    button(page, "Send").dblclick()
    expect(answers(page)).to_have_count(2)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert len(sent) == 2 and questions(page).count() == 2


def test_enter_sends_shift_enter_makes_a_line_and_an_input_method_does_neither(page: Page) -> None:
    box(page).fill("one")
    box(page).press("Shift+Enter")
    page.keyboard.type("two")
    expect(box(page)).to_have_value("one\ntwo")
    box(page).evaluate(
        """(box) => {
            const enter = {key: "Enter", bubbles: true, cancelable: true};
            box.dispatchEvent(new KeyboardEvent("keydown", {...enter, isComposing: true}));
            box.dispatchEvent(new KeyboardEvent("keydown", {...enter, keyCode: 229}));
        }"""
    )
    expect(box(page)).to_have_value("one\ntwo")
    expect(questions(page)).to_have_count(0)
    box(page).press("Enter")
    expect(questions(page)).to_have_text("one\ntwo", use_inner_text=True)


def test_chinese_typed_with_an_input_method_is_sent_by_the_second_enter(page: Page) -> None:
    box(page).focus()
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    keyboard.send("Input.insertText", {"text": "你好"})
    expect(box(page)).to_have_value("你好")
    expect(questions(page)).to_have_count(0)
    box(page).press("Enter")
    expect(questions(page)).to_have_text("你好")


def test_an_example_is_a_question_and_typed_text_stays(page: Page) -> None:
    box(page).fill("half a thought")
    button(page, "Count from 1 to 20.").click()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == ", ".join(map(str, range(1, 21)))
    expect(box(page)).to_have_value("half a thought")


def test_the_list_opens_old_conversations_and_new_chat_begins_one(page: Page) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    first = page.url
    button(page, "New chat").click()
    expect(questions(page)).to_have_count(0)
    assert page.url.endswith("/") and not page.url.endswith("?")
    say_and_wait(page, "Count from 1 to 4.", "1, 2, 3, 4")
    links = page.get_by_role("navigation").get_by_role("link")
    assert links.all_text_contents() == ["Count from 1 to 4.", "Count from 1 to 3."]
    links.last.click()
    expect(answers(page)).to_have_text("1, 2, 3")
    assert page.url == first and page.title() == "Count from 1 to 3. · Sparrow"
    expect(links.nth(1)).to_have_attribute("aria-current", "page")


def test_two_browsers_do_not_see_each_other(new_page: NewPage, demo_server: ServerProcess) -> None:
    ana, ben = new_page(demo_server.url), new_page(demo_server.url)
    say(ana, "My name is Ana.")
    say(ben, "My name is Ben.")
    for page, name in ((ana, "Ana"), (ben, "Ben")):
        expect(answers(page)).to_contain_text(name, timeout=SLOW)
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    say_and_wait(ana, "What is my name?", "Your name is Ana.")
    say_and_wait(ben, "What is my name?", "Your name is Ben.")
    assert ben.get_by_role("navigation").get_by_role("link").all_text_contents() == ["My name is Ben."]
    ben.goto(ana.url)
    expect(ben.get_by_role("heading")).to_have_text("This conversation is not here")


def test_a_finished_answer_is_spoken_by_sentences(page: Page) -> None:
    speech = page.get_by_role("log")
    say(page, "Who are you?")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    spoken = speech.locator("p").all_text_contents()
    assert " ".join(spoken) == " ".join(written(page).split())
    assert all(sentence[-1] in ".!?" for sentence in spoken)


def test_what_has_no_sentence_is_spoken_once_and_whole(page: Page, demo_server: ServerProcess) -> None:
    with slow_motion(demo_server):
        say(page, COUNT)
        expect(busy(page)).to_have_count(1)
        expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert page.get_by_role("log").locator("p").all_text_contents() == [HUNDRED]
