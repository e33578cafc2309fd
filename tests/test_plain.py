"""The page without a script, as its readers use it: forms, cookies, redirects, and HTML that comes bit by bit."""

from __future__ import annotations

import html
import http.client
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.answer_page import text_of
from tests.server_process import ServerProcess, slow_motion

TABLE = "Show me a table of birds."
COUNT = "Count from 1 to 100."
HUNDRED = ", ".join(map(str, range(1, 101)))

_FORM = re.compile(r'<form(?: id="\w+")? method="post" action="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)
_FIELD = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


class PlainBrowser:
    """Cookies, forms and redirects; no script."""

    def __init__(self, url: str, agent: str = "plain") -> None:
        self.url = url
        self.address = ""
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self._agent = agent

    def open(
        self, path: str, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The page, an error's too; read() waits for its end."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(self.url + path, data, {"User-Agent": self._agent, **(headers or {})})
        try:
            reply: http.client.HTTPResponse = self._opener.open(request, timeout=30)
        except HTTPError as error:
            reply = error  # type: ignore[assignment]
        self.address = (reply.url or "").removeprefix(self.url)
        return reply

    def page(self, path: str, form: Mapping[str, str] | None = None) -> str:
        with self.open(path, form) as reply:
            return reply.read().decode()

    def ask(self, page: str, text: str) -> str:
        return self.page("/plain/messages", {**fields(page, "messages"), "text": text})


def fields(page: str, action: str) -> dict[str, str]:
    """What the first form for it holds before anybody types."""
    for path, inside in _FORM.findall(page):
        if path == f"/plain/{action}":
            return {name: html.unescape(value) for name, value in _FIELD.findall(inside)}
    raise AssertionError(f"no form for {action} in {page}")


def main_of(page: str) -> str:
    return page.partition("<main>")[2].partition("<nav")[0]


@pytest.fixture
def browser(demo_server: ServerProcess) -> PlainBrowser:
    return PlainBrowser(demo_server.url)


def test_a_question_is_answered_by_the_page_that_follows(browser: PlainBrowser) -> None:
    page = browser.ask(browser.page("/?plain=1"), TABLE)
    assert re.fullmatch(r"/c/[\w-]{22}\?plain=1(#m\d+)?", browser.address)
    assert '<div class="settled">\n<p dir="auto">Here is a table:</p>' in page
    assert page.count("<table") == 1 and page.rstrip().endswith("</html>")
    assert "/plain/retry" in page and "/plain/continue" not in page
    later = browser.page(browser.address)
    streamed, loaded = (re.search(r"Here is a table.*?</table></div>", text, re.DOTALL) for text in (page, later))
    assert streamed and loaded and streamed[0] == loaded[0]
    assert "/plain/stop" not in later
    page = browser.ask(page, "Count from 1 to 5.")
    assert "1, 2, 3, 4, 5" in page and page.count("<article") == 4, "the same conversation goes on"


def test_the_page_needs_no_script_and_no_style(browser: PlainBrowser) -> None:
    page = browser.ask(browser.page("/?plain=1"), TABLE)
    assert not re.search(r"<script|<template|<style| style=| on\w+=|<svg", page)
    with browser.open(browser.address) as reply:
        assert "no-store" in reply.headers["Cache-Control"] and "User-Agent" in reply.headers["Vary"]
        assert "script-src 'self'" in reply.headers["Content-Security-Policy"]


def test_an_answer_comes_block_by_block(demo_server: ServerProcess, browser: PlainBrowser) -> None:
    form = {**fields(browser.page("/?plain=1"), "messages"), "text": TABLE}
    with slow_motion(demo_server), browser.open("/plain/messages", form) as reply:
        first = b""
        while b"Here is a table:</p>" not in first:
            first += reply.read1(1000)
        assert b"<table" not in first and b'action="/plain/stop"' in first
        rest = reply.read()
    assert b"<table" in rest and rest.rstrip().endswith(b"</html>")


def test_stop_and_go_on(demo_server: ServerProcess, browser: PlainBrowser) -> None:
    form = {**fields(browser.page("/?plain=1"), "messages"), "text": COUNT}
    with slow_motion(demo_server), browser.open("/plain/messages", form) as reply:
        first = b""
        while b"/plain/stop" not in first:
            first += reply.read1(1000)
        stopped = browser.page("/plain/stop", fields(first.decode(), "stop"))
        cut = reply.read().decode()
    assert "Stopped." in cut and "Stopped." in stopped, "the page that streamed says so, too"
    assert HUNDRED not in stopped
    whole = browser.page("/plain/continue", fields(stopped, "continue"))
    assert HUNDRED in whole and "Stopped." not in whole
    again = browser.page("/plain/retry", fields(whole, "retry"))
    assert HUNDRED in again and "2/2" in again
    (older,) = re.findall(r'href="(\?plain=1&amp;leaf=\d+)"', again)
    assert "1/2" in browser.page(browser.address.partition("?")[0] + html.unescape(older))
    refused = browser.page("/plain/continue", fields(whole, "stop"))
    assert "An answer is still being written" in refused or "can&#39;t go on" in refused


def test_what_was_typed_comes_back_with_an_error(demo_server: ServerProcess, browser: PlainBrowser) -> None:
    page = browser.page("/?plain=1")
    form = {**fields(page, "messages"), "text": "  \r\n "}
    with browser.open("/plain/messages", form) as reply:
        assert reply.status == 400 and "write something first" in reply.read().decode()
    form["text"] = "a\r\n<b> & " + "long " * 20_000
    with browser.open("/plain/messages", form) as reply:
        assert reply.status == 413
        assert ">\na\n&lt;b&gt; &amp; long long" in reply.read().decode()
    form["text"] = COUNT
    with slow_motion(demo_server), browser.open("/plain/messages", form) as reply:
        first = b""
        while b"/plain/stop" not in first:
            first += reply.read1(1000)
        there = browser.address.partition("?")[0].removeprefix("/c/")
        second = {**fields(page, "messages"), "conversation": there, "text": "And then?", "key": "k" * 20}
        with browser.open("/plain/messages", second) as refused:
            said = refused.read().decode()
            assert refused.status == 409 and "An answer is still being written here" in said
        assert "And then?</textarea>" in said and COUNT in said
        browser.page("/plain/stop", fields(first.decode(), "stop"))


def test_only_forms_of_this_server_s_own_page_are_taken(demo_server: ServerProcess, browser: PlainBrowser) -> None:
    form = {**fields(browser.page("/?plain=1"), "messages"), "text": "My words"}
    stranger = PlainBrowser(demo_server.url)
    stranger.page("/?plain=1")
    for sender, changed, headers in (
        (browser, {"token": "0" * 64}, {}),
        (browser, {"token": "é"}, {}),
        (stranger, {}, {}),
        (PlainBrowser(demo_server.url), {}, {}),
        (browser, {}, {"Origin": "http://evil.example"}),
        (browser, {}, {"Sec-Fetch-Site": "cross-site"}),
    ):
        with sender.open("/plain/messages", {**form, **changed}, headers) as reply:
            assert reply.status == 403 and "My words</textarea>" in reply.read().decode()
    with browser.open("/plain/messages", form, {"Content-Type": "application/json"}) as reply:
        assert reply.status == 400
    with browser.open("/plain/messages", {**form, **{f"x{n}": "" for n in range(50)}}) as reply:
        assert reply.status == 400
    assert "My words" not in main_of(browser.page("/?plain=1"))
    answered = browser.ask(browser.page("/?plain=1"), "Count from 1 to 5.")
    taken = {**fields(answered, "retry"), "token": fields(stranger.page("/?plain=1"), "messages")["token"]}
    with stranger.open("/plain/retry", taken) as reply:
        assert reply.status == 404
    for answer in ("", "x", "9" * 30):
        with browser.open("/plain/stop", {**fields(answered, "retry"), "answer": answer}) as reply:
            assert reply.status == 404


def test_sent_twice_it_is_asked_once(browser: PlainBrowser) -> None:
    form = {**fields(browser.page("/?plain=1"), "messages"), "text": "Count from 1 to 5."}
    assert browser.page("/plain/messages", form).count("<article") == 2
    first = browser.address
    assert browser.page("/plain/messages", form).count("<article") == 2 and browser.address == first
    other = browser.page("/plain/messages", {**form, "text": "Count from 1 to 3."})  # Back, and other words
    assert browser.address != first and text_of(main_of(other)).count("Count from 1 to 3.") >= 1


def test_nothing_that_was_written_is_markup(browser: PlainBrowser) -> None:
    page = browser.ask(browser.page("/?plain=1"), "<script>alert(1)</script>\r\n<b>")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<br>&lt;b&gt;" in page and "<script>" not in page


def test_conversations_are_listed_and_found(browser: PlainBrowser) -> None:
    browser.ask(browser.page("/?plain=1"), "Count from 1 to 5.")
    found = browser.page("/?plain=1&q=count")
    assert re.search(r'<li><a href="/c/[\w-]+\?plain=1" dir="auto">Count from 1 to 5.</a>', found)
    assert "Nothing was found" in browser.page("/?plain=1&q=zebra")


def test_an_answer_that_the_server_s_end_has_cut_off_goes_on(tmp_path: Path) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path), "--grace-s", "0"]) as server:
        browser = PlainBrowser(server.url)
        form = {**fields(browser.page("/?plain=1"), "messages"), "text": COUNT}
        with slow_motion(server, share=0.05), browser.open("/plain/messages", form) as reply:
            first = b""
            while b"/plain/stop" not in first:
                first += reply.read1(1000)
            time.sleep(1)  # some words come, and are saved
            os.kill(server.pid, signal.SIGTERM)
            cut = reply.read().decode()
            server.wait()
        assert "The server stopped in the middle of this answer" in cut and "/plain/continue" in cut
        assert text_of(cut).count("1, 2, 3") == 1 and HUNDRED not in cut, "what there is of it"
        server.start()
        assert HUNDRED in browser.page(browser.address)


@pytest.fixture
def w3m(tmp_path: Path) -> Iterator[list[str]]:
    program = shutil.which("w3m")
    if program is None:
        if os.environ.get("SPARROW_REQUIRE_BROWSER") == "1":
            pytest.fail("w3m is not installed")
        pytest.skip("w3m is not installed (Debian: apt install w3m)")
    yield [program, "-cookie", "-cols", "100"]


def test_w3m_can_use_it(demo_server: ServerProcess, w3m: list[str], tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*w3m, *arguments],
            env={**os.environ, "HOME": str(tmp_path), "LANG": "C.UTF-8"},
            capture_output=True,
            timeout=60,
            check=True,
        )
        return done.stdout.decode()

    seen = run("-dump", demo_server.url)
    assert "Message\n[" in seen and "\nSend\n" in seen and "model on your own machine" in seen
    assert len(seen.splitlines()) < 30, "nothing but the page"
    page = run("-dump_source", demo_server.url)
    assert '<input id="words" name="text"' in page, "a line at the bottom; a textarea opens an editor"
    sent = tmp_path / "form"
    sent.write_text(urllib.parse.urlencode({**fields(page, "messages"), "text": TABLE}))
    answer = run("-dump", "-post", str(sent), demo_server.url + "/plain/messages")
    assert re.search(r"You\n\nShow me a table of birds\.\n\nAnswer\n", answer)
    assert re.search(r"Here is a table:\n\n +\w+ +\w+\n", answer) and "Regenerate\n" in answer
    assert "• Show me a table of birds." in run("-dump", demo_server.url), "its cookie is kept"
