"""kill -9 while it loads, reads a prompt, writes a snapshot, writes the database: each moment is found, not guessed.

Inside an answer it is tests/test_resume.py that kills. After each the server starts, answers, and has what it said
that it had.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.event_source import Browser, EventSource
from tests.faults import COUNT, HUNDRED, Person, assert_sound, assert_well, rows
from tests.server_process import ServerProcess, slow_motion

N_TRIES = 6
LONG = "The sparrow sits on the roof and says nothing at all. " * 30


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        yield server
        assert "Traceback" not in server.output, server.output


def kill_when(server: ServerProcess, condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Looks a thousand times a second."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, server.output
        time.sleep(0.001)
    os.kill(server.pid, signal.SIGKILL)
    server.kill()


def test_while_the_model_is_loading(server: ServerProcess) -> None:
    person = Person(server)
    assert person.ask(COUNT) == HUNDRED
    server.stop()
    for _ in range(N_TRIES):
        server.spawn()
        kill_when(server, lambda: "Loading" in server.output)
        if "ready" not in server.output:
            break
    assert "ready" not in server.output, "it was ready each time before it could be killed"
    server.start()
    person.finds_all()
    assert_well(server)


def test_while_a_prompt_is_read(server: ServerProcess, tmp_path: Path) -> None:
    """The question was taken: it is answered when its reader comes back."""
    browser = Browser(server.url)
    with slow_motion(server, share=0.05):
        asked = browser.ask(LONG)
        with EventSource(browser, asked["answer"]) as reader:
            kill_when(server, lambda: any(0 < wait["read"] < 1 for wait in reader.waits))
            assert not reader.text
            assert rows(tmp_path, "SELECT status, content FROM messages WHERE role = 'assistant'") == [
                ("streaming", "")
            ]
            server.start()
            assert reader.whole()
    assert reader.end["status"] == "done"
    question, answer = browser.page(asked["conversation"]["url"])
    assert question.text == LONG.strip() and answer.text == reader.text.strip()
    assert_well(server)
    assert_sound(tmp_path)


def test_while_a_snapshot_is_written(server: ServerProcess, tmp_path: Path) -> None:
    """Half a file is swept away, and what it was of is read anew."""
    person = Person(server)
    conversation = person.ask_in(None, f"My name is Ana. {LONG}")
    half: list[Path] = []
    for _ in range(N_TRIES):
        with slow_motion(server):
            kill_when(server, lambda: any((tmp_path / "kv").glob("*.tmp")))
        half = list((tmp_path / "kv").glob("*.tmp"))
        if half:
            break
        server.start()
        for path in (tmp_path / "kv").glob("*.kv"):
            path.unlink()
        person.ask_in(conversation, "Hello!")
    assert half, "it was whole each time before it could be killed"
    server.start()
    assert not any(path.exists() for path in half)
    assert person.ask_in(conversation, "Hello!") and person.end["status"] == "done"
    person.finds_all()
    assert_well(server)


def conversations(n: int, n_messages: int) -> list[Any]:
    """A file to import: each a chain."""
    return [
        {
            "id": f"c{at}",
            "title": f"Conversation {at}",
            "messages": [
                {
                    "id": n,
                    "parent": n - 1 if n else None,
                    "role": "assistant" if n % 2 else "user",
                    "content": f"{at}.{n} sparrow",
                }
                for n in range(n_messages)
            ],
        }
        for at in range(n)
    ]


@pytest.mark.parametrize(("n", "n_messages"), [(300, 40), (1, 8000)])
def test_while_the_database_is_written(server: ServerProcess, tmp_path: Path, n: int, n_messages: int) -> None:
    """Inside many transactions, and inside a large one: a conversation is there whole, or not at all."""
    person = Person(server)
    assert person.ask(COUNT) == HUNDRED
    file, wal = conversations(n, n_messages), tmp_path / "sparrow.db-wal"
    size = wal.stat().st_size

    def bring() -> None:
        with pytest.raises((OSError, http.client.HTTPException)):
            person.browser.post("/import", file)

    importing = threading.Thread(target=bring)
    with slow_motion(server):  # or all may be written before this process gets its turn to look
        importing.start()
        kill_when(server, lambda: wal.stat().st_size > size + 300_000)
        importing.join()
    server.start()
    assert_sound(tmp_path)
    found = rows(tmp_path, "SELECT count(*) FROM messages WHERE content LIKE '%sparrow' GROUP BY conversation_id")
    assert all(count == (n_messages,) for count in found) and len(found) < max(2, n)
    person.finds_all()
    again = person.browser.post("/import", file)
    assert (again["imported"], again["skipped"]) == (n - len(found), len(found)) and not again["problems"]
    with person.browser.open("/export") as reply:
        assert len(json.loads(reply.read())["conversations"]) == n + 1
    assert_well(server)
