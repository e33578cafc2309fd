"""The page and its conversations over HTTP, on the real engine with a random model whose answers are long."""

from __future__ import annotations

import re
import secrets
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.loader import open_engine
from server.markdown import render
from server.settings import Settings
from server.streams import RUN
from tests.answer_page import AnswerPage
from tests.page_reader import Article, articles, events, page_of, text_of

N_CTX = 1024
ENDED = {"status": "done", "reason": "stop", "error": None, "dropped": 0, "stats": None}
Open = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def open_app(tiny_path: Path, tmp_path: Path) -> Open:
    """A new life of the server on the same data; answers never end by themselves before the context is full."""

    def open(n_ctx: int = N_CTX) -> AbstractContextManager[TestClient]:
        engine = open_engine(tiny_path, n_ctx=n_ctx, n_slots=1, n_threads=1)
        engine.sampling_defaults = replace(engine.sampling_defaults, ignore_eos=True)
        return TestClient(create_app(Settings(data_dir=tmp_path), engine), base_url="http://127.0.0.1")

    return open


@pytest.fixture
def client(open_app: Open) -> Iterator[TestClient]:
    with open_app() as client:
        yield client


def ask(client: TestClient, text: str = "Hello", conversation: str | None = None) -> Any:
    reply = client.post("/messages", json={"text": text, "key": secrets.token_hex(16), "conversation": conversation})
    assert reply.status_code == 201, reply.text
    return reply.json()


def listen(client: TestClient, answer: int, after: int = 0, **headers: str) -> str:
    return client.get(f"/answers/{answer}/events?after={after}", headers=headers).text


def stop(client: TestClient, answer: int) -> None:
    assert client.post(f"/answers/{answer}/stop", json={}).status_code == 204
    listen(client, answer)


def wait_for_text(client: TestClient, url: str) -> Article:
    """The page in the middle of its last answer."""
    deadline = time.monotonic() + 10
    while not (last := articles(client.get(url).text)[-1]).text:
        assert time.monotonic() < deadline
    return last


def test_the_first_visit_gets_a_session_that_scripts_and_other_sites_cannot_use(client: TestClient) -> None:
    reply = client.get("/")
    cookie = reply.headers["set-cookie"]
    assert re.match(r"sparrow=[\w-]{22}; HttpOnly; .*SameSite=lax", cookie), cookie
    assert reply.headers["cache-control"] == "no-store"
    again = client.get("/").headers["set-cookie"]
    assert again == cookie and "Max-Age=34560000" in again, "who comes again keeps it for as long as from today"


def test_a_forged_session_is_replaced(client: TestClient) -> None:
    client.cookies.set("sparrow", "x" * 500)
    assert "set-cookie" in client.get("/").headers


def test_the_page_needs_nothing_that_the_content_security_policy_forbids(client: TestClient) -> None:
    asked = ask(client)
    stop(client, asked["answer"])
    for page in (client.get("/").text, client.get(asked["conversation"]["url"]).text, client.get("/c/none").text):
        assert not re.search(r"<style|<script(?![^>]* src=)| style=| on\w+=|javascript:|https?://", page)


def test_an_answer_streams_to_its_end_and_comes_back_on_reload(client: TestClient) -> None:
    asked = ask(client, "  Hello\nthere ")
    stream = listen(client, asked["answer"])
    *deltas, (event, _, end) = events(stream)
    assert deltas and all(event == "delta" for event, _, _ in deltas)
    assert [int(id) for _, id, _ in deltas] == list(range(1, len(deltas) + 1))
    assert (event, {**end, "stats": None}) == ("end", {**ENDED, "reason": "length"})
    assert end["stats"]["n_completion"] > 100 and end["stats"]["tokens_per_s"] > 0
    page = client.get(asked["conversation"]["url"]).text
    question, answer = articles(page)
    assert question.text == "Hello\nthere" and answer.text == text_of(stream)
    assert not answer.is_busy and "memory is full" in answer.note and not answer.can_retry
    assert "<title>Hello there · Sparrow</title>" in page
    assert f'href="{asked["conversation"]["url"]}" dir="auto" aria-current="page">Hello there</a>' in page


@pytest.mark.parametrize("seen", [0, 1, 17])
def test_who_comes_back_misses_nothing_and_gets_nothing_twice(client: TestClient, seen: int) -> None:
    answer = ask(client)["answer"]
    whole = events(listen(client, answer))
    for stream in (
        listen(client, answer, after=seen),
        listen(client, answer, after=0, **{"Last-Event-ID": str(seen)}),
    ):
        page = AnswerPage()
        for event, _, data in whole[:seen] + events(stream):
            page.take(event, data)
        assert (page.settled, page.open) == (page_of(listen(client, answer)).settled, "")
        assert events(stream)[-1] == whole[-1]
    reply = client.get(f"/answers/{answer}/events", headers={"Last-Event-ID": whole[-1][1]})
    assert reply.status_code == 204


def test_a_reload_in_the_middle_goes_on_where_the_page_ends(client: TestClient) -> None:
    asked = ask(client)
    middle = wait_for_text(client, asked["conversation"]["url"])
    assert middle.is_busy and middle.after > 0
    rest = listen(client, asked["answer"], after=middle.after)
    assert len(events(rest)) > 1, "the answer was over before the page was read"
    page = middle.page
    for event, _, data in events(rest):
        page.take(event, data)
    (_, finished) = articles(client.get(asked["conversation"]["url"]).text)
    assert (page.settled, page.open) == (finished.page.settled, finished.page.open) and page.open == ""


def test_an_answer_is_written_although_nobody_listens(client: TestClient) -> None:
    asked = ask(client)
    with client.stream("GET", f"/answers/{asked['answer']}/events") as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 30
    while articles(client.get(asked["conversation"]["url"]).text)[-1].is_busy:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(articles(client.get(asked["conversation"]["url"]).text)[-1].text) > 100


def test_a_growing_answer_is_saved_before_its_end(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.answers.SAVE_S", 0.02)
    answer = ask(client)["answer"]
    with closing(sqlite3.connect(tmp_path / "sparrow.db")) as db:
        query = "SELECT status, length(content) FROM messages WHERE id = ?"
        while (found := db.execute(query, (answer,)).fetchone()) == ("streaming", 0):
            time.sleep(0.005)
    assert found[0] == "streaming" and found[1] > 0
    stop(client, answer)


def test_where_the_models_memory_begins_is_shown_and_said(client: TestClient) -> None:
    asked = ask(client)
    assert events(listen(client, asked["answer"]))[-1][2]["dropped"] == 0
    url, conversation = asked["conversation"]["url"], asked["conversation"]["id"]
    shown = client.get(url).text.partition("<template")[0]
    assert "memory begins here" not in shown
    second = ask(client, "Do you remember?", conversation)
    assert events(listen(client, second["answer"]))[-1][2]["dropped"] == 2, "the long answer had no room"
    shown = client.get(url).text.partition("<template")[0]
    above, below = shown.split("memory begins here")
    assert [article.role for article in articles(above)] == ["user", "assistant"]
    assert [article.id for article in articles(below)] == [second["question"], second["answer"]]


def test_stop_keeps_what_is_there_and_retry_answers_again(client: TestClient) -> None:
    asked = ask(client)
    wait_for_text(client, asked["conversation"]["url"])
    assert client.post(f"/answers/{asked['answer']}/stop", json={}).status_code == 204
    assert events(listen(client, asked["answer"]))[-1][2]["status"] == "stopped"
    (_, stopped) = articles(client.get(asked["conversation"]["url"]).text)
    assert stopped.text and stopped.note == "Stopped." and stopped.can_retry
    reply = client.post(f"/answers/{stopped.id}/retry", json={})
    assert reply.status_code == 201
    again = reply.json()["answer"]
    assert again != stopped.id and events(listen(client, again))[-1][2]["status"] == "done"
    assert [article.id for article in articles(client.get(asked["conversation"]["url"]).text)][1:] == [again]
    assert client.post(f"/answers/{again}/stop", json={}).status_code == 204, "stopping what has ended is harmless"


def test_the_same_key_is_answered_once(client: TestClient) -> None:
    client.get("/")
    body = {"text": "Hello", "key": secrets.token_hex(16)}
    first, second = (client.post("/messages", json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 200) and first.json() == second.json()
    stop(client, first.json()["answer"])
    assert len(articles(client.get(first.json()["conversation"]["url"]).text)) == 2


def test_one_conversation_answers_one_question_at_a_time(client: TestClient) -> None:
    asked = ask(client)
    conversation = asked["conversation"]["id"]
    second = {"text": "And?", "conversation": conversation}
    for path, body in (("/messages", second), (f"/answers/{asked['answer']}/retry", {})):
        reply = client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    stop(client, asked["answer"])
    stop(client, ask(client, "And?", conversation)["answer"])
    assert [article.role for article in articles(client.get(f"/c/{conversation}").text)] == ["user", "assistant"] * 2


def test_browsers_never_see_each_other(client: TestClient) -> None:
    asked = ask(client, "my secret")
    stop(client, asked["answer"])
    mine = dict(client.cookies)
    client.cookies.clear()
    assert "my secret" not in client.get("/").text
    assert dict(client.cookies) != mine
    assert client.get(asked["conversation"]["url"]).status_code == 404
    assert client.get(f"/answers/{asked['answer']}/events").status_code == 404
    for path, body in (
        ("/messages", {"text": "hi", "conversation": asked["conversation"]["id"]}),
        (f"/answers/{asked['answer']}/stop", {}),
        (f"/answers/{asked['answer']}/retry", {}),
    ):
        reply = client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    client.cookies.clear()
    client.cookies.update(mine)
    assert len(articles(client.get(asked["conversation"]["url"]).text)) == 2


@pytest.mark.parametrize(
    "body, status, code, param",
    [
        ({}, 400, "invalid_value", "text"),
        ({"text": " \n "}, 400, "invalid_value", "text"),
        ({"text": 7}, 400, "invalid_value", "text"),
        ({"text": "x" * 100_001}, 413, "too_large", "text"),
        ({"text": "x" * 1_100_000}, 413, "too_large", None),
        ({"text": "x" * 5_000}, 400, "context_length_exceeded", "messages"),
        ({"text": "hi", "key": "short"}, 400, "invalid_value", "key"),
        ({"text": "hi", "conversation": 5}, 400, "invalid_value", "conversation"),
        ({"text": "hi", "conversation": "none"}, 404, "not_found", None),
    ],
)
def test_what_cannot_be_asked_is_refused_and_not_stored(
    client: TestClient, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    client.get("/")
    reply = client.post("/messages", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert "/c/" not in client.get("/").text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_form_of_another_site_cannot_ask(client: TestClient, kind: str) -> None:
    reply = client.post("/messages", content=b'{"text": "hi"}', headers={"Content-Type": kind})
    assert reply.status_code == 400 and "application/json" in reply.json()["error"]["message"]


def test_what_people_and_models_write_is_never_markup(client: TestClient) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'</title>"
    asked = ask(client, evil)
    stop(client, asked["answer"])
    page = client.get(asked["conversation"]["url"]).text
    assert "alert(1)" in page and "<script>" not in page and "<img" not in page
    assert articles(page)[0].text == evil


def test_a_full_queue_is_an_error_in_place_that_retry_mends(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.app_state["engine"]._admission, "_n_queue", 0)
    first, refused = ask(client, "first"), ask(client, "second")
    assert events(listen(client, refused["answer"]))[-1][2]["error"]["code"] == "queue_full"
    (question, answer) = articles(client.get(refused["conversation"]["url"]).text)
    assert question.text == "second" and "Many are asking" in answer.note and answer.can_retry
    stop(client, first["answer"])
    again = client.post(f"/answers/{answer.id}/retry", json={}).json()["answer"]
    stop(client, again)


def test_an_answer_that_took_too_long_says_so_and_goes_on(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(client.app_state["engine"], "_answer_s", 0.1)
        asked = ask(client)
        assert events(listen(client, asked["answer"]))[-1][2]["reason"] == "time"
    answer = articles(client.get(asked["conversation"]["url"]).text)[1]
    assert "took as long as the settings allow" in answer.note
    assert client.post(f"/answers/{asked['answer']}/continue", json={}).status_code == 200
    stop(client, asked["answer"])
    assert articles(client.get(asked["conversation"]["url"]).text)[1].text.startswith(answer.text[:20])


def test_a_disk_that_turned_read_only_ends_the_answer_with_its_reason(client: TestClient) -> None:
    asked = ask(client)
    wait_for_text(client, asked["conversation"]["url"])
    store = client.app_state["store"]
    assert client.portal is not None
    client.portal.call(store.write, lambda db: db.execute("PRAGMA query_only = ON").fetchall())
    assert events(listen(client, asked["answer"]))[-1][2]["error"]["code"] == "store_failed"


def test_after_a_restart_the_answer_comes_out_of_the_store(open_app: Open) -> None:
    with open_app() as client:
        asked = ask(client)
        settled = page_of(listen(client, asked["answer"])).settled
        cookies = client.cookies
    with open_app() as client:
        client.cookies = cookies
        reset, (event, id, end) = events(listen(client, asked["answer"], after=3))
        assert reset == ("reset", "0", {"settled": settled, "open": ""})
        assert (event, id, {**end, "stats": None}) == ("end", "end", {**ENDED, "reason": "length"})
        assert end["stats"]["n_completion"] > 100
        reply = client.get(f"/answers/{asked['answer']}/events", headers={"Last-Event-ID": "end"})
        assert reply.status_code == 204


def test_a_server_that_goes_down_lets_listeners_go_and_keeps_the_half(open_app: Open, tmp_path: Path) -> None:
    with open_app() as client:
        asked = ask(client)
        half = wait_for_text(client, asked["conversation"]["url"])
        cookies = client.cookies
    with closing(sqlite3.connect(tmp_path / "sparrow.db")) as db:
        (status, text) = db.execute("SELECT status, content FROM messages WHERE id = ?", (half.id,)).fetchone()
    assert status == "interrupted" and render(text).startswith(half.page.settled)
    with open_app() as client:
        client.cookies = cookies
        (_, answer) = articles(client.get(asked["conversation"]["url"]).text)
        assert answer.page.settled == render(text) and answer.is_busy and not answer.note
        (reset, *deltas, end) = events(listen(client, answer.id))
        assert reset[0] == "reset" and render(text).startswith(reset[2]["settled"])
        assert deltas and end[2]["reason"] == "length"


def test_nothing_is_doubled_or_garbled_at_a_seam_even_inside_a_character(client: TestClient, tmp_path: Path) -> None:
    """The random model's tokens are single bytes: most of its cuts are inside of one."""
    vocab = client.app_state["engine"].vocab
    asked = ask(client)
    before: tuple[int, ...] = ()
    for n_runs in range(1, 6):
        wait_for_event(client, asked["answer"], n_runs)
        stop(client, asked["answer"])
        with closing(sqlite3.connect(tmp_path / "sparrow.db")) as db:
            query = "SELECT content, tokens, n_resumed FROM messages WHERE id = ?"
            content, blob, n_resumed = db.execute(query, (asked["answer"],)).fetchone()
        tokens = struct.unpack(f"<{len(blob) // 4}I", blob)
        assert n_resumed == n_runs - 1 and len(tokens) > len(before) and tokens[: len(before)] == before
        assert content == b"".join(map(vocab.piece, tokens)).decode("utf-8", "replace")
        assert articles(client.get(asked["conversation"]["url"]).text)[-1].page.settled == render(content)
        before = tokens
        reply = client.post(f"/answers/{asked['answer']}/continue", json={})
        assert (reply.status_code, reply.json()) == (200, {"answer": asked["answer"]})
    end = events(listen(client, asked["answer"]))[-1][2]
    assert (end["status"], end["reason"]) == ("done", "length")
    n_prompt, n_completion = usage(tmp_path, asked["answer"])
    assert n_prompt + n_completion == N_CTX and n_completion > len(before), "what was said before counts as said"


def wait_for_event(client: TestClient, answer: int, n_runs: int) -> None:
    """Some tokens of this run are there."""
    deadline = time.monotonic() + 10
    while client.app_state["streams"].get(answer).last < (n_runs - 1) * RUN + 5:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def usage(folder: Path, answer: int) -> tuple[int, int]:
    with closing(sqlite3.connect(folder / "sparrow.db")) as db:
        found: tuple[int, int] = db.execute(
            "SELECT n_prompt, n_completion FROM messages WHERE id = ?", (answer,)
        ).fetchone()
    return found


def test_an_answer_that_fills_a_smaller_context_ends_there(open_app: Open) -> None:
    with open_app() as client:
        asked = ask(client)
        wait_for_event(client, asked["answer"], 1)
        while len(client.app_state["streams"].get(asked["answer"]).tokens) < 300:
            time.sleep(0.002)
        cookies = client.cookies
    with open_app(n_ctx=256) as client:
        client.cookies = cookies
        (_, half) = articles(client.get(asked["conversation"]["url"]).text)
        stream = listen(client, asked["answer"])
        (reset, flushed, end) = events(stream)
        assert (reset[0], flushed[2]["open"]) == ("reset", "") and len(half.text) > 50
        assert half.page.settled.startswith(reset[2]["settled"])
        assert (end[2]["status"], end[2]["reason"]) == ("done", "length")


def test_only_a_last_answer_that_was_cut_off_goes_on(client: TestClient) -> None:
    first = ask(client)
    stop(client, first["answer"])
    conversation = first["conversation"]["id"]
    second = ask(client, "And?", conversation)
    stop(client, second["answer"])
    for id in (first["question"], first["answer"]):
        reply = client.post(f"/answers/{id}/continue", json={})
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    assert client.post(f"/answers/{second['answer']}/continue", json={}).status_code == 200
    reply = client.post(f"/answers/{second['answer']}/continue", json={})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    stop(client, second["answer"])
    client.cookies.clear()
    assert client.post(f"/answers/{second['answer']}/continue", json={}).status_code == 404
