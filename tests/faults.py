"""What every test of a fault asks afterwards: does the server answer, and has it kept what it had acknowledged?"""

from __future__ import annotations

import http.client
import json
import resource
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.event_source import Browser, EventSource
from tests.server_process import ServerProcess

COUNT = "Count from 1 to 100."
HUNDRED = ", ".join(map(str, range(1, 101)))


@dataclass
class Reply:
    """status, headers with small names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """Of an error: for people, so it is one line."""
        message: str = self.json["error"]["message"]
        assert message.strip() and len(message.splitlines()) == 1, message
        return message


def send(
    server: ServerProcess, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request as it is, however wrong it may be."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())
    finally:
        connection.close()


def assert_well(server: ServerProcess) -> None:
    """It answers a program and a person, rightly."""
    assert server.json("/health")["status"] == "ok"
    asked = {"messages": [{"role": "user", "content": "Count from 1 to 10."}], "temperature": 0, "repeat_penalty": 1.0}
    answer = server.json("/v1/chat/completions", asked)
    assert answer["choices"][0]["message"]["content"] == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    person = Person(server)
    assert person.ask("Count from 1 to 10.") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    person.finds_all()


@dataclass
class Person:
    """Somebody at the page who remembers what the server has acknowledged."""

    server: ServerProcess
    browser: Browser = field(init=False)
    said: list[tuple[str, str, str]] = field(default_factory=list)
    """(conversation's url, question, answer) of each."""
    end: Any = None
    """The last answer's end event."""

    def __post_init__(self) -> None:
        self.browser = Browser(self.server.url)

    def ask(self, text: str) -> str:
        """The answer's text, in a new conversation; it and the question are acknowledged then."""
        self.ask_in(None, text)
        return self.said[-1][2]

    def ask_in(self, conversation: str | None, text: str) -> str:
        """The same in a conversation that may be old; its id."""
        asked = self.browser.ask(text, conversation)
        with EventSource(self.browser, asked["answer"]) as reader:
            answer = reader.whole()
        self.end = reader.end
        self.said.append((asked["conversation"]["url"], text.strip(), answer.strip()))
        return str(asked["conversation"]["id"])

    def finds_all(self) -> None:
        """Everything that was acknowledged is on its page."""
        for url, question, answer in self.said:
            page = self.browser.page(url)
            texts = [article.text for article in page]
            assert question in texts and answer in texts, (url, question, answer, texts)


def rows(folder: Path, query: str, *values: object) -> list[Any]:
    """What the database itself says, beside the running server."""
    with closing(sqlite3.connect(folder / "sparrow.db")) as db:
        return db.execute(query, values).fetchall()


def assert_sound(folder: Path) -> None:
    """The database is whole: SQLite finds no damage, no message hangs from nothing, both indexes agree with it."""
    assert rows(folder, "PRAGMA integrity_check") == [("ok",)]
    assert rows(folder, "PRAGMA foreign_key_check") == []


@contextmanager
def no_file_may_grow(server: ServerProcess) -> Iterator[None]:
    """What a full disk is to a program: each write behind this many bytes of a file fails, for real (EFBIG)."""
    free = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (16_384, free[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, free)
