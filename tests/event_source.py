"""A page's EventSource without a browser: it comes back with the last id until the answer has ended."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from types import TracebackType
from typing import Any

from tests.answer_page import AnswerPage
from tests.page_reader import Article, articles


class Browser:
    """One session: what it asks and opens."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def open(self, path: str, body: object = None, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        reply: http.client.HTTPResponse = self._opener.open(request, timeout=30)
        return reply

    def post(self, path: str, body: object) -> Any:
        with self.open(path, body) as reply:
            return json.loads(reply.read() or "null")

    def ask(self, text: str, conversation: str | None = None) -> Any:
        return self.post("/messages", {"text": text, "key": secrets.token_hex(16), "conversation": conversation})

    def page(self, url: str) -> list[Article]:
        with self.open(url) as reply:
            return articles(reply.read().decode())


class EventSource:
    """`with EventSource(browser, answer) as reader: reader.wait(...)`: `text` is what its page would show."""

    def __init__(self, browser: Browser, answer: int, after: int = 0, page: AnswerPage | None = None) -> None:
        self.page = page or AnswerPage()
        self.states: list[str] = []
        """Every text that was shown, from each to the next."""
        self.end: Any = None
        self.n_resets = 0
        self.waits: list[Any] = []
        """What it was told before the first word."""
        self._browser = browser
        self._path = f"/answers/{answer}/events?after={after}"
        self._last_id = ""
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def text(self) -> str:
        return self.page.text

    def wait(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.text, self.end)
            time.sleep(0.002)

    def whole(self) -> str:
        """The text once the answer has ended."""
        self.wait(lambda: self.end is not None)
        return self.text

    def __enter__(self) -> EventSource:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gone.set()
        self._thread.join()

    def _run(self) -> None:
        while self.end is None and not self._gone.is_set():
            try:
                headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
                with self._browser.open(self._path, headers=headers) as reply:
                    self._read(reply)
            except (OSError, http.client.HTTPException):
                pass
            self._gone.wait(0.05)

    def _read(self, reply: http.client.HTTPResponse) -> None:
        event = ""
        for line in reply:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                self._last_id = value
            elif name == "data":
                self._take(event, json.loads(value))
            if self._gone.is_set() or self.end is not None:
                return

    def _take(self, event: str, data: Any) -> None:
        if event == "end":
            self.end = data
            return
        if event == "wait":
            self.waits.append(data)
        self.n_resets += event == "reset"
        self.page.take(event, data)
        self.states.append(self.text)
