"""Answers outlive the server: it ends in the middle of a text whose every word is known, and is started again."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from server.engine.sequence import Usage
from server.runs import NOTHING, whole
from tests.event_source import Browser, EventSource
from tests.server_process import ServerProcess, slow_motion

HUNDRED = ", ".join(map(str, range(1, 101)))
COUNT = "Count from 1 to 100."


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        yield server


def row(folder: Path, answer: int) -> Any:
    """(status, text, how often it went on, tokens) as the database has it."""
    with closing(sqlite3.connect(folder / "sparrow.db")) as db:
        query = "SELECT status, content, n_resumed, tokens FROM messages WHERE id = ?"
        return db.execute(query, (answer,)).fetchone()


def seconds(folder: Path, answer: int) -> float:
    """How long its tokens took."""
    with closing(sqlite3.connect(folder / "sparrow.db")) as db:
        return float(db.execute("SELECT decode_s FROM messages WHERE id = ?", (answer,)).fetchone()[0])


def break_off(server: ServerProcess, reader: EventSource, n_seen: int) -> str:
    """Kill the server as soon as so many letters are seen; returns them."""
    with slow_motion(server):
        reader.wait(lambda: len(reader.text) >= n_seen)
        os.kill(server.pid, signal.SIGKILL)
    server.kill()
    assert reader.end is None and reader.text != HUNDRED, "the answer was over too early"
    return reader.text


@pytest.mark.parametrize("n_seen", [1, 120, 300])
def test_a_reader_that_stays_sees_the_answer_whole(server: ServerProcess, tmp_path: Path, n_seen: int) -> None:
    browser = Browser(server.url)
    asked = browser.ask(COUNT)
    with EventSource(browser, asked["answer"]) as reader:
        seen = break_off(server, reader, n_seen)
        saved = row(tmp_path, asked["answer"])[1]
        assert seen.startswith(saved.strip())
        server.start()
        assert reader.whole() == HUNDRED
    assert reader.n_resets == 1 and all(HUNDRED.startswith(state) for state in reader.states)
    assert {**reader.end, "stats": None} == {
        "status": "done",
        "reason": "stop",
        "error": None,
        "dropped": 0,
        "stats": None,
    }
    assert reader.end["stats"]["n_completion"] > 100 and reader.end["stats"]["first_token_s"] > 0
    (_, answer) = browser.page(asked["conversation"]["url"])
    assert answer.text == HUNDRED and not answer.note
    assert row(tmp_path, asked["answer"]) == ("done", HUNDRED, 1, None)


def test_killed_twice_and_read_by_two_it_is_written_once(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(server.url)
    answer = browser.ask(COUNT)["answer"]
    with EventSource(browser, answer) as one, EventSource(browser, answer) as other:
        for n_seen, n_killed in ((50, 1), (200, 2)):
            break_off(server, one, n_seen)
            server.start()
            one.wait(lambda n=n_killed: one.n_resets == n)  # type: ignore[misc]
        assert one.whole() == other.whole() == HUNDRED
    assert one.n_resets == other.n_resets == 2
    assert row(tmp_path, answer) == ("done", HUNDRED, 2, None)


def test_it_waits_as_far_as_it_came_for_who_opens_the_page_later(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(server.url)
    asked = browser.ask(COUNT)
    with EventSource(browser, asked["answer"]) as reader:
        break_off(server, reader, 150)
    server.start()
    (_, answer) = browser.page(asked["conversation"]["url"])
    assert answer.is_busy and HUNDRED.startswith(answer.text) and answer.text != HUNDRED
    assert row(tmp_path, answer.id)[0] == "interrupted", "a look at the page alone computes nothing"
    with EventSource(browser, answer.id, answer.after, answer.page) as reader:
        assert reader.whole() == HUNDRED


def test_the_same_after_a_normal_stop_and_nothing_is_lost(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(server.url)
    answer = browser.ask(COUNT)["answer"]
    with EventSource(browser, answer) as reader:
        with slow_motion(server):
            reader.wait(lambda: len(reader.text) >= 100)
            os.kill(server.pid, signal.SIGTERM)
            server.wait()
        assert row(tmp_path, answer)[0] == "interrupted"
        assert row(tmp_path, answer)[1].startswith(reader.text)
        server.start()
        assert reader.whole() == HUNDRED


def test_with_another_model_it_goes_on_behind_the_text(server: ServerProcess, tmp_path: Path, tiny_path: Path) -> None:
    """Its tokens mean nothing to that model."""
    browser = Browser(server.url)
    answer = browser.ask(COUNT)["answer"]
    with EventSource(browser, answer) as reader:
        seen = break_off(server, reader, 150)
        saved = row(tmp_path, answer)[1]
        if not saved:  # a fast machine was killed before its first save: what a slower one would have kept
            saved = seen[:100]
            with closing(sqlite3.connect(tmp_path / "sparrow.db")) as db:
                db.execute("UPDATE messages SET content = ? WHERE id = ?", (saved, answer))
                db.commit()
        flags = ["--model", str(tiny_path), "--data-dir", str(tmp_path), "--ctx", "512"]
        with ServerProcess(flags, port=int(server.url.rpartition(":")[2])):
            text = reader.whole()
    assert reader.n_resets == 1 and seen.startswith(saved)
    assert text.startswith(saved) and len(text) > len(saved), "the random model says something"
    assert saved[:10] not in text[len(saved) :]


def test_an_answer_that_always_ends_the_server_stops_going_on_by_itself(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(server.url)
    asked = browser.ask(COUNT)
    with EventSource(browser, asked["answer"]) as reader:
        break_off(server, reader, 100)
    with closing(sqlite3.connect(tmp_path / "sparrow.db")) as db:
        db.execute("UPDATE messages SET n_resumed = 3")
        db.commit()
    server.start()
    (_, answer) = browser.page(asked["conversation"]["url"])
    assert "server stopped" in answer.note and answer.can_retry and answer.can_continue and not answer.is_busy
    with EventSource(browser, answer.id) as reader:
        assert reader.whole() == answer.text
    assert reader.end["status"] == "interrupted"
    assert browser.post(f"/answers/{answer.id}/continue", {}) == {"answer": answer.id}
    with EventSource(browser, answer.id) as reader:
        assert reader.whole() == HUNDRED


def test_what_was_stopped_goes_on_when_asked_to(server: ServerProcess, tmp_path: Path) -> None:
    browser = Browser(server.url)
    asked = browser.ask(COUNT)
    with EventSource(browser, asked["answer"]) as reader, slow_motion(server):
        reader.wait(lambda: len(reader.text) >= 50)
        browser.post(f"/answers/{asked['answer']}/stop", {})
        stopped = reader.whole()
    assert reader.end["status"] == "stopped" and stopped != HUNDRED
    (_, answer) = browser.page(asked["conversation"]["url"])
    assert answer.can_continue and answer.can_retry and not answer.is_busy
    until_then = seconds(tmp_path, answer.id)
    browser.post(f"/answers/{answer.id}/continue", {})
    with EventSource(browser, answer.id) as reader:
        assert reader.whole() == HUNDRED
    assert seconds(tmp_path, answer.id) > until_then, "all of its tokens in the time of all of them"
    with pytest.raises(HTTPError) as refused:
        browser.post(f"/answers/{answer.id}/continue", {})
    assert refused.value.code == 409
    refused.value.close()


@pytest.mark.parametrize(
    ("n_said", "earlier", "decode_s"),
    [
        (0, None, 2.0),
        (30, (30, 3.0), 5.0),  # stopped, and gone on
        (30, None, 5.0),  # a crash took the first run's numbers: as fast as the second's
        (30, (10, 2.0), 5.0 * 4 / 3),  # stopped after 10, killed after 30
        (30, (0, 0.0), 5.0),
    ],
)
def test_the_speed_is_of_all_its_runs(n_said: int, earlier: tuple[int, float] | None, decode_s: float) -> None:
    known = earlier and Usage(100, earlier[0], 0, 0.0, 1.0, earlier[1])
    found = whole(Usage(100 + n_said, 20, 90 + n_said, 0.5, 0.1, 2.0), n_said, known or None)
    assert (found.n_prompt, found.n_completion, found.n_reused) == (100, 20 + n_said, min(100, 90 + n_said))
    assert found.decode_s == pytest.approx(decode_s)


def test_an_answer_that_could_not_go_on_keeps_its_numbers() -> None:
    known = Usage(100, 30, 0, 0.0, 1.0, 3.0)
    assert whole(NOTHING, 30, known) == known
