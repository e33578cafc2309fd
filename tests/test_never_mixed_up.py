"""200 random turns of 8 people, with drafts, stops, dropped connections, restarts and kill -9 in between.

Twice as many people as slots, so that every turn may find another's conversation, a copy of it, or a snapshot in its
slot: whatever is mixed up, somebody is called by a name that is not theirs.
"""

from __future__ import annotations

import http.client
import random
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.event_source import Browser
from tests.server_process import ServerProcess
from tests.test_people import FILLERS, NAMES

N_ROUNDS = 25
LONG = "Count from 1 to 60."
MAX_S = 60.0
GONE = (OSError, http.client.HTTPException)
"""What a client meets when the server is killed; urllib's errors are OSErrors."""


class Person:
    """Somebody at the page, who tells a name once and asks for it again and again."""

    def __init__(self, server: ServerProcess, folder: Path, name: str, seed: int) -> None:
        self.name = name
        self.n_asked = self.n_right = 0
        self._rng = random.Random(seed)
        self._server, self._folder = server, folder
        self._browser = Browser(server.url)
        self._conversation: str | None = None
        self._is_chinese = ord(name[0]) > 0x2E80

    def introduce(self) -> None:
        self._say(f"我叫{self.name}。" if self._is_chinese else f"My name is {self.name}.")

    def turn(self) -> None:
        doing = self._rng.choice(["ask", "ask", "ask", "fill", "stop"])
        if doing == "ask":
            question, form = (
                ("我叫什么名字？", "你叫{}。") if self._is_chinese else ("What is my name?", "Your name is {}.")
            )
            answer = self._say(question)
            self.n_asked, self.n_right = self.n_asked + 1, self.n_right + (answer == form.format(self.name))
        else:
            self._say(LONG if doing == "stop" else self._rng.choice(FILLERS), stops=doing == "stop")

    def _say(self, text: str, *, stops: bool = False) -> str:
        """The answer once it has ended. Nothing of anybody else may be in it."""
        if self._rng.random() < 0.3:
            self._post("/drafts", {"text": text[:-2], "conversation": self._conversation})
        body = {"text": text, "key": secrets.token_hex(16), "conversation": self._conversation}
        asked = self._post("/messages", body)
        self._conversation = asked["conversation"]["id"]
        if stops:
            time.sleep(self._rng.random() / 10)
            self._post(f"/answers/{asked['answer']}/stop", {})
        answer = self._listen(asked["answer"])
        assert not [name for name in NAMES if name != self.name and name in answer], f"{self.name} hears {answer!r}"
        return answer

    def _post(self, path: str, body: object) -> Any:
        """As the page does it: again, with the same key, until somebody is there."""
        deadline = time.monotonic() + MAX_S
        while True:
            try:
                return self._browser.post(path, body)
            except GONE:
                assert time.monotonic() < deadline, "nobody answers"
                time.sleep(0.1)

    def _listen(self, answer: int) -> str:
        """Come and go until the store has the whole answer: an answer that a crash broke off goes on when read."""
        deadline = time.monotonic() + MAX_S
        while (found := self._stored(answer))[0] in ("streaming", "interrupted"):
            assert time.monotonic() < deadline, f"answer {answer} is {found}"
            try:
                with self._browser.open(f"/answers/{answer}/events") as events:
                    events.read1(self._rng.choice([1, 100, 10_000]))
            except GONE:
                time.sleep(0.1)
        return found[1]

    def _stored(self, answer: int) -> tuple[str, str]:
        with closing(sqlite3.connect(self._folder / "sparrow.db")) as db:
            found: tuple[str, str] = db.execute(
                "SELECT status, content FROM messages WHERE id = ?", (answer,)
            ).fetchone()
        return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        yield server


def restart(server: ServerProcess, *, kill: bool) -> None:
    """In the middle of whatever goes on."""
    time.sleep(0.15)
    server.kill() if kill else server.stop()
    server.start()


@pytest.mark.timeout(300)
def test_in_200_turns_nobody_is_called_by_a_strange_name(server: ServerProcess, tmp_path: Path) -> None:
    people = [Person(server, tmp_path, name, seed) for seed, name in enumerate(NAMES)]
    with ThreadPoolExecutor(len(people)) as pool:
        list(pool.map(Person.introduce, people))
        for number in range(N_ROUNDS):
            turns = [pool.submit(person.turn) for person in people]
            if number % 8 == 4:
                interruption = threading.Thread(target=restart, args=(server,), kwargs={"kill": number % 16 == 4})
                interruption.start()
                interruption.join()
            for turn in turns:
                turn.result()
    n_asked, n_right = sum(person.n_asked for person in people), sum(person.n_right for person in people)
    print(f"asked for a name {n_asked} times, {n_right} answers were right")
    assert n_asked > 80 and n_right >= 0.9 * n_asked, "it forgets more than the demo model does when it is alone"
