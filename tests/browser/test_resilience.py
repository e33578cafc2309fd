"""Reload, a cut wire, a killed server, a lost reply: nothing doubled, nothing missing, nothing typed is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, Route, expect

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
    wait_for_first_words,
    watch,
    written,
)
from tests.browser.conftest import NewPage, Shot
from tests.browser.proxy import Proxy
from tests.faults import no_file_may_grow, rows
from tests.server_process import ServerProcess, slow_motion


@pytest.fixture
def proxy(demo_server: ServerProcess) -> Iterator[Proxy]:
    with Proxy(int(demo_server.url.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def mortal_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, to be killed."""
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        yield server


def problem(page: Page) -> str:
    return page.locator("#problem .why").inner_text()


def test_a_reload_in_the_middle_goes_on_where_it_was(page: Page, demo_server: ServerProcess) -> None:
    with page.expect_response(lambda reply: "/c/" in reply.url) as reload, in_the_middle(page, demo_server):
        page.evaluate("() => setTimeout(() => location.reload())")
        page.wait_for_timeout(100)
    assert 'aria-busy="true" data-after="' in reload.value.text(), "the answer was over too early"
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and answers(page).count() == 1
    page.reload()
    assert written(page) == HUNDRED


def test_a_cut_wire_is_explained_and_the_answer_goes_on_behind_the_last_event(
    new_page: NewPage, demo_server: ServerProcess, proxy: Proxy, shot: Shot
) -> None:
    page = new_page(proxy.url)
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if "/events" in request.url else None)
    with in_the_middle(page, demo_server) as half:
        proxy.cut()
    expect(note(page)).to_have_text("Connection lost. Trying again…")
    shot(page, "connection-lost")
    watch(page)
    proxy.mend()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED
    assert all(text.startswith(half) for text in states(page)), "it went on, it did not begin again"
    expect(note(page)).to_be_hidden()
    assert int(asked[-1].all_headers()["last-event-id"]) > 0


def test_a_phone_that_comes_back_online_goes_on(page: Page, demo_server: ServerProcess) -> None:
    with in_the_middle(page, demo_server):
        page.context.set_offline(True)
        page.context.set_offline(False)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED


def test_a_killed_server_keeps_what_was_said_and_typed(
    new_page: NewPage, mortal_server: ServerProcess, shot: Shot
) -> None:
    page = new_page(mortal_server.url)
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    mortal_server.kill()
    say(page, "Count from 1 to 4.")
    expect(page.get_by_role("alert")).to_contain_text("The server can't be reached. Your message is kept.")
    expect(box(page)).to_have_value("Count from 1 to 4.")
    shot(page, "server-gone")
    mortal_server.start()
    button(page, "Retry").click()
    expect(answers(page)).to_have_count(2)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    expect(answers(page)).to_have_text(["1, 2, 3", "1, 2, 3, 4"])
    expect(box(page)).to_have_value("")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_killed_in_the_middle_of_an_answer_finishes_it_by_itself(
    new_page: NewPage, mortal_server: ServerProcess, shot: Shot
) -> None:
    page = new_page(mortal_server.url)
    with in_the_middle(page, mortal_server):
        os.kill(mortal_server.pid, signal.SIGKILL)
    mortal_server.kill()
    box(page).fill("what I typed meanwhile")
    expect(note(page)).to_have_text("Connection lost. Trying again…")
    shot(page, "killed-in-the-middle")
    watch(page)
    mortal_server.start()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and answers(page).count() == questions(page).count() == 1
    assert all(HUNDRED.startswith(text) for text in states(page)), "never doubled, never garbled"
    expect(note(page)).to_be_hidden()
    expect(box(page)).to_have_value("what I typed meanwhile")
    page.reload()
    assert written(page) == HUNDRED


def test_a_page_opened_after_the_restart_finishes_the_answer_too(
    new_page: NewPage, mortal_server: ServerProcess
) -> None:
    page = new_page(mortal_server.url)
    with in_the_middle(page, mortal_server):
        os.kill(mortal_server.pid, signal.SIGKILL)
    mortal_server.kill()
    conversation = page.url
    page.goto("about:blank")
    mortal_server.start()
    page.goto(conversation)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED and questions(page).count() == 1


def test_a_server_that_is_stopped_does_not_wait_for_the_page_and_loses_no_word(
    new_page: NewPage, mortal_server: ServerProcess
) -> None:
    page = new_page(mortal_server.url)
    with in_the_middle(page, mortal_server) as half:
        os.kill(mortal_server.pid, signal.SIGTERM)
    began = time.monotonic()
    mortal_server.stop()
    assert time.monotonic() - began < 5
    assert written(page).startswith(half)
    watch(page)
    mortal_server.start()
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED
    assert all(text.startswith(half) for text in states(page)), "what was seen was saved"


def test_a_question_whose_reply_was_lost_is_not_asked_twice(page: Page) -> None:
    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/messages", lose)
    say(page, "Count from 1 to 3.")
    expect(page.get_by_role("alert")).to_be_visible()
    page.unroute("**/messages")
    button(page, "Retry").click()
    expect(answers(page)).to_have_count(1)
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    page.reload()
    assert questions(page).all_text_contents() == ["Count from 1 to 3."]
    assert page.get_by_role("navigation").get_by_role("link").count() == 1


def test_a_server_that_is_starting_gets_the_question_as_soon_as_it_is_ready(page: Page, shot: Shot) -> None:
    body = '{"error": {"code": "shutting_down", "message": "The server is not up yet."}}'
    page.route("**/messages", lambda route: route.fulfill(status=503, body=body, content_type="application/json"))
    say(page, "Count from 1 to 3.")
    expect(page.get_by_role("alert")).to_contain_text("Your message is sent as soon as it is ready.")
    shot(page, "starting")
    page.unroute("**/messages")
    expect(answers(page)).to_have_text("1, 2, 3", timeout=SLOW)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_is_typed_survives_a_reload_and_what_was_sent_does_not_come_back(page: Page) -> None:
    box(page).fill("half a thought,\nin two lines")
    page.reload()
    expect(box(page)).to_have_value("half a thought,\nin two lines")
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    box(page).fill("for this conversation")
    page.reload()
    expect(box(page)).to_have_value("for this conversation")
    button(page, "New chat").click()
    expect(box(page)).to_have_value("")


def test_what_cannot_be_sent_is_said_and_goes_back_into_the_box(page: Page) -> None:
    text = "word " * 20_000
    say(page, text)
    expect(page.get_by_role("alert")).to_contain_text("Shorten it.")
    expect(box(page)).to_have_value(text.strip())
    expect(button(page, "Retry")).to_be_hidden()
    expect(questions(page)).to_have_count(0)


def test_a_second_tab_may_not_ask_while_an_answer_is_written(
    page: Page, demo_server: ServerProcess, shot: Shot
) -> None:
    say_and_wait(page, "Count from 1 to 3.", "1, 2, 3")
    second = page.context.new_page()
    second.goto(page.url)
    box(second).fill("Count from 1 to 4.")
    with in_the_middle(page, demo_server):
        box(second).press("Enter")
    expect(second.get_by_role("alert")).to_contain_text("An answer is still being written here.")
    expect(box(second)).to_have_value("Count from 1 to 4.")
    shot(second, "conflict")
    expect(busy(page)).to_have_count(0, timeout=SLOW)
    assert written(page) == HUNDRED
    button(second, "Retry").click()
    expect(answers(second)).to_have_count(3)
    expect(busy(second)).to_have_count(0, timeout=SLOW)
    expect(answers(second)).to_have_text(["1, 2, 3", HUNDRED, "1, 2, 3, 4"])


def test_a_disk_without_room_is_said_and_nothing_is_lost_when_there_is_some(new_page: NewPage, tmp_path: Path) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        page = new_page(server.url)
        with slow_motion(server):
            say(page, COUNT)
            wait_for_first_words(page)
            with no_file_may_grow(server):
                expect(busy(page)).to_have_count(0, timeout=SLOW)
                expect(note(page)).to_contain_text("make room there")
                assert written(page) == HUNDRED
                say(page, "Hello!")
                expect(page.locator("#problem")).to_contain_text("make room there")
                expect(box(page)).to_have_value("Hello!")
        query = "SELECT count(*) FROM messages WHERE status = 'done' AND role = 'assistant'"
        for _ in range(100):
            if rows(tmp_path, query) == [(1,)]:
                break
            page.wait_for_timeout(100)
        page.reload()
        assert written(page) == HUNDRED
        expect(note(page)).to_have_text("")
