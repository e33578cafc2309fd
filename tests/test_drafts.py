"""What stands in the box is read before it is sent, in nobody's way, and leaves no trace."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.chat import ChatMessage
from server.drafts import MAX_DRAFTS
from server.engine.loader import open_engine
from server.settings import Settings
from tests.event_source import Browser, EventSource
from tests.server_process import ServerProcess

N_CTX = 1024
LONG = "The quick brown fox jumps over the lazy dog, and then over it once more. " * 5


@pytest.fixture
def client(tiny_path: Path, tmp_path: Path) -> Iterator[TestClient]:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=2, n_threads=1)
    engine.sampling_defaults = replace(engine.sampling_defaults, ignore_eos=True, max_tokens=100)
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), base_url="http://127.0.0.1") as client:
        client.get("/")
        yield client


def draft(client: TestClient, text: object, conversation: object = None, **headers: str) -> int:
    body = {"text": text, "conversation": conversation}
    return client.post("/drafts", json=body, headers=headers).status_code


def is_reading(client: TestClient) -> bool:
    return bool(client.app_state["answers"]._drafts._drafts)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ask(client: TestClient, text: str, conversation: str | None = None) -> Any:
    body = {"text": text, "key": secrets.token_hex(16), "conversation": conversation}
    return client.post("/messages", json=body).json()


def answered(client: TestClient, text: str, conversation: str | None = None) -> Any:
    """Ask, and wait for the end of the answer and of what is read behind it."""
    asked = ask(client, text, conversation)
    client.get(f"/answers/{asked['answer']}/events")
    wait_until(lambda: not client.app_state["answers"]._keepers and not is_reading(client))
    return asked


def usage(folder: Path, answer: int) -> tuple[int, int]:
    """(prompt tokens, how many of them were read before), as they are stored with the message."""
    with closing(sqlite3.connect(folder / "sparrow.db")) as db:
        found: tuple[int, int] = db.execute(
            "SELECT n_prompt, n_reused FROM messages WHERE id = ?", (answer,)
        ).fetchone()
    return found


def test_a_question_that_was_typed_before_it_was_sent_is_read_already(client: TestClient, tmp_path: Path) -> None:
    conversation = answered(client, "Hello")["conversation"]["id"]
    assert draft(client, LONG, conversation) == 204
    wait_until(lambda: not is_reading(client))
    n_prompt, n_reused = usage(tmp_path, answered(client, LONG, conversation)["answer"])
    assert n_prompt > 400 and n_reused == n_prompt - 1, "one token has to be computed to have logits"


def test_a_draft_that_grew_reuses_what_was_read_of_it(client: TestClient, tmp_path: Path) -> None:
    for n in (100, 200, 300):
        draft(client, LONG[:n])
        wait_until(lambda: not is_reading(client))
    n_prompt, n_reused = usage(tmp_path, answered(client, LONG[:310])["answer"])
    assert n_prompt - n_reused < 40


def test_after_an_answer_the_next_questions_prefix_is_read(client: TestClient, tmp_path: Path) -> None:
    """A random model's tokens are not those in which its text is written: otherwise the answer would be read again."""
    asked = answered(client, "Hello")
    conversation = asked["conversation"]
    written = client.get(f"/messages/{asked['answer']}/text").content.decode()  # as HTML, a NUL would be another letter
    said = [ChatMessage("user", "Hello"), ChatMessage("assistant", written)]
    chat = client.app_state["chat"]
    n_before = len(chat.tokenize(chat.render(said, opening=False) + "<|im_start|>user\n"))
    _, n_reused = usage(tmp_path, answered(client, "And?", conversation["id"])["answer"])
    assert n_reused == n_before, "all but the question itself"


def test_no_draft_is_read_while_an_answer_is_written(client: TestClient, tmp_path: Path) -> None:
    engine = client.app_state["engine"]
    engine.sampling_defaults = replace(engine.sampling_defaults, max_tokens=None)
    asked = ask(client, "Hello")
    assert draft(client, "my own next question", asked["conversation"]["id"]) == 204
    assert not is_reading(client), "its own author's answer is being written: the box tries again when it has ended"
    mine = dict(client.cookies)
    client.cookies.clear()
    client.get("/")
    assert draft(client, LONG) == 204
    time.sleep(0.3)
    assert is_reading(client), "it waits"
    client.cookies.clear()
    client.cookies.update(mine)
    assert client.get(asked["conversation"]["url"]).text.count('aria-busy="true"') == 2, (
        "that of the answer, and the <template>"
    )
    client.post(f"/answers/{asked['answer']}/stop", json={})
    wait_until(lambda: not is_reading(client))


def test_a_newer_draft_and_a_question_take_the_older_ones_place(client: TestClient) -> None:
    cancelled: list[object] = []
    drafts = client.app_state["answers"]._drafts
    blocker = ask(client, "Hello")  # nothing is read meanwhile
    client.cookies.clear()
    client.get("/")
    for text in ("one", "one two", "one two three"):
        draft(client, text)
        assert len(drafts._drafts) == 1
        cancelled.append(*drafts._drafts.values())
    assert len(set(map(id, cancelled))) == 3
    assert draft(client, " ") == 204 and not is_reading(client), "what was deleted is forgotten"
    draft(client, "one")
    second = ask(client, "one")
    assert not is_reading(client)
    for asked in (blocker, second):
        client.get(f"/answers/{asked['answer']}/events")


def test_drafts_of_many_do_not_fill_the_queue(client: TestClient) -> None:
    ask(client, "Hello")
    for _ in range(MAX_DRAFTS + 3):
        client.cookies.clear()
        client.get("/")
        assert draft(client, "Hello") == 204
    assert len(client.app_state["answers"]._drafts._drafts) <= MAX_DRAFTS


@pytest.mark.parametrize("text, conversation", [("x" * 5_000, None), ("x" * 200_000, None), ("hi", "none"), ("", None)])
def test_what_cannot_be_read_is_nobodys_trouble(client: TestClient, text: str, conversation: str | None) -> None:
    assert draft(client, text, conversation) == 204
    assert not is_reading(client)


@pytest.mark.parametrize("text, conversation", [(None, None), (7, None), ("hi", 7)])
def test_what_is_no_draft_is_refused(client: TestClient, text: object, conversation: object) -> None:
    assert draft(client, text, conversation) == 400


def test_a_form_of_another_site_can_not_send_one(client: TestClient) -> None:
    reply = client.post("/drafts", content=b'{"text": "hi"}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 400


def test_a_draft_leaves_no_trace(tmp_path: Path) -> None:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path)]) as server:
        browser = Browser(server.url)
        answer = browser.ask("Count from 1 to 3.")
        with EventSource(browser, answer["answer"]) as reader:
            assert reader.whole() == "1, 2, 3"
        with browser.open(
            "/drafts", {"text": "Quetzalcoatl " * 30, "conversation": answer["conversation"]["id"]}
        ) as sent:
            assert sent.status == 204
        time.sleep(0.5)
        log = server.output
        server.stop()
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept and any(b"Count from 1 to 3." in content for content in kept)
    assert not any(b"Quetzalcoatl" in content for content in [*kept, log.encode()])
