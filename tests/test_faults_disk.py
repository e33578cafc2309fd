"""A disk without room, a database that another program holds, snapshots with flipped bits, a clock that is wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from tests.event_source import Browser, EventSource
from tests.faults import COUNT, HUNDRED, Person, assert_sound, assert_well, no_file_may_grow, rows
from tests.server_process import ServerProcess, slow_motion

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at a process through /proc, or limits it")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        yield server
        assert "Traceback" not in server.output, server.output


def refusal(browser: Browser, path: str, body: object) -> tuple[int, str, str]:
    with pytest.raises(HTTPError) as refused:
        browser.post(path, body)
    with closing(refused.value) as error:
        said = json.loads(error.read())["error"]
    assert len(said["message"].splitlines()) == 1
    return refused.value.code, said["code"], said["message"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- no room ---------------------------------------------------------------------------------------------------


def test_without_room_the_answer_streams_on_and_is_saved_when_there_is_some(
    server: ServerProcess, tmp_path: Path
) -> None:
    person = Person(server)
    assert person.ask(COUNT) == HUNDRED
    asked = person.browser.ask(COUNT)
    with EventSource(person.browser, asked["answer"]) as reader:
        with slow_motion(server):
            reader.wait(lambda: bool(reader.text))
            with no_file_may_grow(server):
                assert reader.whole() == HUNDRED
                assert reader.end["status"] == "error" and reader.end["error"]["code"] == "store_failed"
                assert "disk" in reader.end["error"]["message"]
                code = refusal(person.browser, "/messages", {"text": "Hello!"})
                assert code[:2] == (507, "store_failed") and str(tmp_path) in code[2] and "make room" in code[2]
                person.finds_all()
    query = "SELECT status, content FROM messages WHERE id = ?"
    wait_until(lambda: rows(tmp_path, query, asked["answer"]) == [("done", HUNDRED)])
    assert rows(tmp_path, "SELECT count(*) FROM messages WHERE content = 'Hello!'") == [(0,)]
    person.finds_all()
    assert_well(server)
    server.kill()
    server.start()
    person.finds_all()
    assert_sound(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[int]:
    """A file system of 6 MB at tmp_path, for those who enter this process's namespaces: where the system lets people
    make one."""
    command = f"mount -t tmpfs -o size=6m tmpfs {tmp_path} && echo mounted && exec sleep 1000"
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    with subprocess.Popen(enter, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "mounted\n":
                pytest.skip("this system lets nobody mount a file system of their own")
            yield holder.pid
        finally:
            holder.kill()


def test_on_a_full_disk_nothing_is_lost_and_it_goes_on_when_there_is_room(small_disk: int, tmp_path: Path) -> None:
    """ENOSPC itself: the server's data are on the small disk, and a file takes the rest of it."""
    inside = ["nsenter", "--target", str(small_disk), "--user", "--preserve-credentials", "--mount", "--"]
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)], inside=inside) as server:
        person, filler = Person(server), Path(f"/proc/{small_disk}/root{tmp_path}/filler")
        assert person.ask(COUNT) == HUNDRED
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        status, code, message = refusal(person.browser, "/import", [big(n) for n in range(20)])
        assert (status, code) == (507, "store_failed") and "make room" in message
        person.finds_all()
        filler.unlink()
        assert person.ask(COUNT) == HUNDRED
        person.finds_all()
        assert_well(server)
        server.kill()
        server.start()
        person.finds_all()


def big(n: int) -> dict[str, Any]:
    """A conversation that takes 200 kB."""
    return {"title": f"{n}", "messages": [{"id": 1, "role": "user", "content": f"{n} sparrow " * 20_000}]}


# --- another program ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(folder: Path) -> Iterator[sqlite3.Connection]:
    """As an sqlite3 shell does it that has begun a change."""
    with closing(sqlite3.connect(folder / "sparrow.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("ROLLBACK")


def test_a_database_that_is_held_for_a_moment_is_waited_for(server: ServerProcess, tmp_path: Path) -> None:
    person = Person(server)
    answers: list[str] = []
    with held(tmp_path):
        asking = threading.Thread(target=lambda: answers.append(person.ask(COUNT)))
        asking.start()
        time.sleep(0.5)
        assert not answers
        with Browser(server.url).open("/conversations") as reply:
            assert reply.status == 200, "who only reads waits for nobody"
    asking.join()
    assert answers == [HUNDRED]
    person.finds_all()


def test_one_that_is_held_for_long_is_said_and_nothing_is_lost(server: ServerProcess, tmp_path: Path) -> None:
    person = Person(server)
    assert person.ask(COUNT) == HUNDRED
    asked = person.browser.ask(COUNT)
    with EventSource(person.browser, asked["answer"]) as reader:
        with held(tmp_path):
            code = refusal(person.browser, "/messages", {"text": "Hello!"})
            assert code[:2] == (503, "store_busy") and str(tmp_path) in code[2] and "close it" in code[2]
            assert reader.whole() == HUNDRED
    query = "SELECT status, content FROM messages WHERE id = ?"
    wait_until(lambda: rows(tmp_path, query, asked["answer"]) == [("done", HUNDRED)])
    assert rows(tmp_path, "SELECT count(*) FROM messages WHERE content = 'Hello!'") == [(0,)]
    person.finds_all()
    assert_well(server)
    assert_sound(tmp_path)


# --- snapshots -----------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_snapshots_with_flipped_bits_are_read_anew(server: ServerProcess, tmp_path: Path) -> None:
    """In the head, the tokens and the payload: llama.cpp may end the process over one wrong byte, so it gets none."""
    people, names = [Person(server) for _ in range(3)], ("Ana", "Penelope", "Quillon")
    chats = []
    for person, name in zip(people, names, strict=True):
        chats.append(person.ask_in(None, f"My name is {name}."))
        person.ask_in(chats[-1], "Count from 1 to 60.")
    server.stop()
    files = sorted((tmp_path / "kv").glob("*.kv"))
    assert len(files) == 3
    for path, at in zip(files, (20, 100, path_middle(files[2])), strict=True):
        flip(path, at)
    server.start()
    for person, chat, name in zip(people, chats, names, strict=True):
        person.ask_in(chat, "What is my name?")
        assert person.said[-1][2] == f"Your name is {name}."
        person.finds_all()
    assert not [path for path in files if path.exists()], "what is of no use is deleted"
    assert_well(server)


def path_middle(path: Path) -> int:
    return path.stat().st_size // 2


# --- the clock -----------------------------------------------------------------------------------------------------

CLOCK = """
import os, time
_real, _file = time.time, os.environ["CLOCK_FILE"]
def _shifted():
    with open(_file) as file:
        return _real() + float(file.read() or 0)
time.time = _shifted
"""


def test_a_clock_that_is_set_back_hides_nothing_and_keeps_nothing_for_ever(tmp_path: Path) -> None:
    """A board without a battery: it was in the future, and is set right while it runs."""
    clock, code = tmp_path / "clock", tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(CLOCK)
    clock.write_text(str(3 * 365 * 86_400))
    environ = {"PYTHONPATH": str(code), "CLOCK_FILE": str(clock)}
    with ServerProcess(["--demo", "--data-dir", str(tmp_path / "data")], environ=environ) as server:
        person = Person(server)
        old, gone = person.ask_in(None, "Hello!"), person.ask_in(None, "My name is Ana.")
        person.browser.post(f"/conversations/{gone}/delete", {})
        clock.write_text("0")
        new = person.ask_in(None, COUNT)
        assert person.said[-1][2] == HUNDRED
        assert listed(person.browser) == [new, old], "what changed last stands first"
        person.ask_in(old, "What is my name?")
        assert listed(person.browser) == [old, new]
        person.browser.post(f"/conversations/{gone}/restore", {})
        assert gone in listed(person.browser)
        for chat, shift in ((old, 3 * 365 * 86_400), (new, 0)):
            clock.write_text(str(shift))
            person.browser.post(f"/conversations/{chat}", {"pinned": True})
        assert listed(person.browser)[:2] == [new, old], "what was pinned last stands first"
        person.finds_all()
        assert_well(server)


def listed(browser: Browser) -> list[Any]:
    with browser.open("/conversations") as reply:
        return [entry["id"] for entry in json.loads(reply.read())["conversations"]]
