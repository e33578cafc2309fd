"""Conversations and messages over HTTP: edited, searched, pinned, undone, set, kept from others."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.loader import open_engine
from server.places import Place
from server.records import Exchange
from server.settings import Settings
from tests.page_reader import Article, articles

N_CTX = 1024


@pytest.fixture(scope="module")
def app(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=2, n_threads=1)
    engine.sampling_defaults = replace(engine.sampling_defaults, ignore_eos=True)
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with TestClient(create_app(settings, engine), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def client(app: TestClient) -> TestClient:
    """A browser that comes for the first time; answers are short unless a test says otherwise."""
    app.cookies.clear()
    assert app.post("/preferences", json={"max_tokens": 8}).status_code == 200
    return app


def ask(client: TestClient, text: str, **more: Any) -> Any:
    """The reply to a question, once its answer has ended."""
    asked = begin(client, text, **more)
    client.get(f"/answers/{asked['answer']}/events")
    return asked


def begin(client: TestClient, text: str, **more: Any) -> Any:
    reply = client.post("/messages", json={"text": text, "key": secrets.token_hex(16), **more})
    assert reply.status_code == 201, reply.text
    return reply.json()


def post(client: TestClient, path: str, body: object = None) -> Any:
    reply = client.post(path, json={} if body is None else body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(client: TestClient, path: str, body: object) -> tuple[int, str, str | None]:
    reply = client.post(path, json=body)
    error = reply.json()["error"]
    assert len(error["message"].splitlines()) == 1
    return reply.status_code, error["code"], error["param"]


def shown(client: TestClient, conversation: str, query: str = "") -> list[int]:
    return [article.id for article in articles(client.get(f"/c/{conversation}{query}").text)]


def titles(client: TestClient, query: str = "") -> list[str]:
    return [entry["title"] for entry in client.get("/conversations", params={"q": query}).json()["conversations"]]


def test_an_edited_question_is_a_branch_of_its_own_and_both_can_be_shown(client: TestClient) -> None:
    first = ask(client, "one")
    id = first["conversation"]["id"]
    second = ask(client, "two", conversation=id)
    edited = ask(client, "zwei", conversation=id, edits=second["question"])
    assert edited["parent"] == second["parent"] == first["answer"]
    above = [first["question"], first["answer"]]
    assert shown(client, id) == [*above, edited["question"], edited["answer"]]
    old = [*above, second["question"], second["answer"]]
    assert shown(client, id, f"?leaf={second['question']}") == old
    assert shown(client, id)[2] == edited["question"], "to look at a branch does not choose it"
    post(client, f"/conversations/{id}", {"leaf": second["question"]})
    assert shown(client, id) == old
    third = ask(client, "three", conversation=id)
    assert third["parent"] == second["answer"]
    for leaf in ("0", "-1", "x", "9" * 30, str(third["answer"] + 1000)):
        assert shown(client, id, f"?leaf={leaf}")[-1] == third["answer"], "a message that is gone leads nowhere else"


def test_a_double_click_in_an_old_conversation_asks_once(client: TestClient) -> None:
    id, owner = ask(client, "one")["conversation"]["id"], client.cookies["sparrow"]

    async def twice() -> list[Exchange]:
        both = (client.app_state["answers"].ask(owner, Place(id), "two", "k" * 16) for _ in range(2))
        return list(await asyncio.gather(*both))

    assert client.portal is not None
    first, second = client.portal.call(twice)
    assert first.is_new and not second.is_new and first.answer.id == second.answer.id
    client.get(f"/answers/{first.answer.id}/events")
    assert len(shown(client, id)) == 4


def test_the_first_question_can_be_edited_too(client: TestClient) -> None:
    first = ask(client, "one")
    id = first["conversation"]["id"]
    edited = ask(client, "eins", conversation=id, edits=first["question"])
    assert edited["parent"] is None and shown(client, id) == [edited["question"], edited["answer"]]


def test_a_deleted_message_is_gone_with_all_below_it(client: TestClient) -> None:
    first = ask(client, "the sparrow")
    id = first["conversation"]["id"]
    second = ask(client, "the blackbird", conversation=id)
    assert post(client, f"/messages/{second['question']}/delete") == {"leaf": first["answer"]}
    assert shown(client, id) == [first["question"], first["answer"]] and titles(client, "blackbird") == []
    assert client.get(f"/messages/{second['answer']}/text").status_code == 404
    assert client.get(f"/answers/{second['answer']}/events").status_code == 404
    assert post(client, f"/messages/{first['answer']}/delete") == {"leaf": first["question"]}
    again = client.post(f"/answers/{first['question']}/retry", json={})
    assert again.status_code == 201, "a question without an answer can be answered"
    client.get(f"/answers/{again.json()['answer']}/events")
    assert post(client, f"/messages/{first['question']}/delete") == {"leaf": None}
    assert shown(client, id) == [] and titles(client) == ["the sparrow"]


def test_nothing_is_deleted_under_an_answer_that_is_being_written(client: TestClient) -> None:
    post(client, "/preferences", {"max_tokens": None})
    asked = begin(client, "long")
    assert refused(client, f"/messages/{asked['question']}/delete", {})[:2] == (409, "conflict")
    client.post(f"/answers/{asked['answer']}/stop", json={})
    client.get(f"/answers/{asked['answer']}/events")
    post(client, f"/messages/{asked['question']}/delete")
    ask(client, "and now", conversation=asked["conversation"]["id"], edits=None)


def test_regenerated_answers_stand_side_by_side(client: TestClient) -> None:
    asked = ask(client, "one")
    again = client.post(f"/answers/{asked['answer']}/retry", json={}).json()["answer"]
    client.get(f"/answers/{again}/events")
    id = asked["conversation"]["id"]
    assert shown(client, id) == [asked["question"], again]
    page = client.get(f"/c/{id}").text
    assert f"?leaf={asked['answer']}" in page and "2/2" in page


def test_an_answer_that_ended_by_its_length_goes_on(client: TestClient) -> None:
    asked = ask(client, "one")
    path = f"/messages/{asked['answer']}/text"
    first = client.get(path)
    assert first.headers["content-type"] == "text/plain; charset=utf-8"
    assert post(client, f"/answers/{asked['answer']}/continue") == {"answer": asked["answer"]}
    client.get(f"/answers/{asked['answer']}/events")
    second = client.get(path).text
    assert second.startswith(first.text.rstrip("\ufffd")) and len(second) > len(first.text)


def last(client: TestClient, conversation: str) -> Article:
    return articles(client.get(f"/c/{conversation}").text)[-1]


def test_going_on_with_a_full_memory_forgets_the_oldest_or_says_that_it_can_not(client: TestClient) -> None:
    id = ask(client, "x" * 450)["conversation"]["id"]
    post(client, "/preferences", {"max_tokens": None})
    asked = ask(client, "and on", conversation=id)
    before = len(client.get(f"/messages/{asked['answer']}/text").text)
    assert '"dropped":0' in client.get(f"/answers/{asked['answer']}/events").text
    assert "To go on, it forgets" in last(client, id).note and last(client, id).can_continue
    plain = client.get(f"/c/{id}?plain=1").text
    assert "To go on, it forgets" in plain and "/plain/continue" in plain
    post(client, f"/answers/{asked['answer']}/continue")
    events = client.get(f"/answers/{asked['answer']}/events").text
    assert '"reason":"length"' in events and '"dropped":2' in events
    assert "Start a new chat" in last(client, id).note and not last(client, id).can_continue
    plain = client.get(f"/c/{id}?plain=1").text
    assert "Start a new chat" in plain and "/plain/continue" not in plain
    assert len(client.get(f"/messages/{asked['answer']}/text").text) > before
    assert refused(client, f"/answers/{asked['answer']}/continue", {})[:2] == (400, "context_length_exceeded")
    post(client, f"/messages/{asked['question']}/delete")  # the refusal has let the conversation go


def test_the_list_is_searched_renamed_pinned_and_undone(client: TestClient) -> None:
    first, second = (ask(client, text)["conversation"] for text in ("麻雀虽小", "the sparrow"))
    assert titles(client) == ["the sparrow", "麻雀虽小"]
    assert titles(client, "麻雀") == ["麻雀虽小"] and titles(client, "SPARR") == ["the sparrow"]
    (entry,) = client.get("/conversations?q=麻雀").json()["conversations"]
    assert entry["snippet"] == [["麻雀", True], ["虽小", False]] and entry["url"] == first["url"]
    changed = post(client, f"/conversations/{first['id']}", {"title": "  Spatzen \n klein ", "pinned": True})
    assert (changed["title"], changed["pinned"]) == ("Spatzen klein", True)
    assert titles(client) == ["Spatzen klein", "the sparrow"]
    assert post(client, f"/conversations/{first['id']}/delete") == {} and titles(client) == ["the sparrow"]
    assert client.get(first["url"]).status_code == 404
    assert refused(client, f"/conversations/{first['id']}/delete", {})[0] == 404
    assert post(client, f"/conversations/{first['id']}/restore") == {}
    assert titles(client, "klein") == ["Spatzen klein"]
    found = client.get("/?q=klein").text
    assert "Spatzen klein" in found and "the sparrow" not in found.partition('id="messages"')[0]


def test_a_deleted_conversation_stops_talking(client: TestClient) -> None:
    post(client, "/preferences", {"max_tokens": None})
    asked = begin(client, "long")
    post(client, f"/conversations/{asked['conversation']['id']}/delete")
    wait_until(lambda: not client.app_state["answers"]._running)
    post(client, f"/conversations/{asked['conversation']['id']}/restore")
    assert articles(client.get(asked["conversation"]["url"]).text)[-1].note == "Stopped."


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_settings_decide_the_answer_and_the_prompt(client: TestClient) -> None:
    post(client, "/preferences", {"seed": 5, "max_tokens": 60})
    ask(client, "same")  # what is read beside other tokens is rounded otherwise: from here on all is read
    texts = set()
    for _ in range(3):
        texts.add(client.get(f"/messages/{ask(client, 'same')['answer']}/text").text)
    assert len(texts) == 1, "one seed, one answer"
    asked = ask(client, "same", settings={"seed": 6, "system_prompt": "You are a sparrow."})
    id = asked["conversation"]["id"]
    assert client.get(f"/messages/{asked['answer']}/text").text not in texts
    n_prompt = usage(client, asked["answer"])
    assert n_prompt > usage(client, ask(client, "same")["answer"]) + len("You are a sparrow.") / 2
    post(client, f"/conversations/{id}", {"settings": {"system_prompt": ""}})
    again = client.post(f"/answers/{asked['answer']}/retry", json={}).json()["answer"]
    client.get(f"/answers/{again}/events")
    assert usage(client, again) < n_prompt
    found = post(client, f"/conversations/{id}", {"settings": {"seed": None}})
    assert found["settings"] == {"system_prompt": ""}


def usage(client: TestClient, answer: int) -> int:
    """Prompt tokens."""
    assert client.portal is not None
    store = client.app_state["store"]
    row = client.portal.call(
        store.read, lambda db: db.execute("SELECT n_prompt FROM messages WHERE id=?", (answer,)).fetchone()
    )
    return int(row[0])


def test_a_draft_with_a_system_prompt_is_what_will_be_asked(client: TestClient) -> None:
    settings = {"system_prompt": "Answer like a sparrow would, please. " * 5}
    assert client.post("/drafts", json={"text": "Hello there", "settings": settings}).status_code == 204
    wait_until(lambda: not client.app_state["answers"]._drafts._drafts)
    asked = ask(client, "Hello there", settings=settings)
    store = client.app_state["store"]
    assert client.portal is not None
    query = "SELECT n_prompt - n_reused FROM messages WHERE id = ?"
    left = client.portal.call(store.read, lambda db: db.execute(query, (asked["answer"],)).fetchone())
    assert left == (1,), "all but the last token were read before"


def test_no_draft_is_read_when_its_author_does_not_want_it(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    async def draft(*given: Any) -> None:
        read.append(given[-1])

    monkeypatch.setattr(client.app_state["answers"], "draft", draft)
    client.post("/drafts", json={"text": "one"})
    post(client, "/preferences", {"reads_drafts": False})
    client.post("/drafts", json={"text": "two"})
    assert read == ["one"]


def test_preferences_are_set_field_by_field_and_reset(client: TestClient) -> None:
    before = client.get("/preferences").json()
    assert before == {
        "system_prompt": None, "temperature": None, "top_p": None, "top_k": None, "repeat_penalty": None,
        "max_tokens": 8, "seed": None, "theme": "auto", "language": "", "reads_drafts": True,
    }  # fmt: skip
    post(client, "/preferences", {"theme": "dark", "language": "zh", "temperature": 0.3, "system_prompt": "你好"})
    assert 'lang="zh' in client.get("/").text
    after = post(client, "/preferences", {"reset": True, "seed": 3})
    assert after == before | {"theme": "dark", "language": "zh", "max_tokens": None, "seed": 3}
    client.cookies.clear()
    assert client.get("/preferences").json()["theme"] == "auto"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/preferences", {"temperature": 9}, "temperature"),
        ("/preferences", {"temperature": "hot"}, "temperature"),
        ("/preferences", {"top_k": 1.5}, "top_k"),
        ("/preferences", {"top_p": float("inf")}, "top_p"),
        ("/preferences", {"max_tokens": 0}, "max_tokens"),
        ("/preferences", {"seed": 10**29}, "seed"),
        ("/preferences", {"theme": "pink"}, "theme"),
        ("/preferences", {"theme": []}, "theme"),
        ("/preferences", {"language": "../zh"}, "language"),
        ("/preferences", {"reads_drafts": "yes"}, "reads_drafts"),
        ("/preferences", {"system_prompt": "x" * 20_001}, "system_prompt"),
        ("/preferences", {"nonsense": 1}, "nonsense"),
        ("/preferences", {"reset": 1}, "reset"),
        ("/conversations/{id}", {"title": " "}, "title"),
        ("/conversations/{id}", {"title": "x" * 201}, "title"),
        ("/conversations/{id}", {"title": None}, "title"),
        ("/conversations/{id}", {"pinned": 1}, "pinned"),
        ("/conversations/{id}", {"leaf": "1"}, "leaf"),
        ("/conversations/{id}", {"settings": []}, "settings"),
        ("/conversations/{id}", {"settings": {"theme": "dark"}}, "theme"),
        ("/conversations/{id}", {"settings": {"top_k": -1}, "title": "never"}, "top_k"),
        ("/conversations/{id}", {"owner": "me"}, "owner"),
        ("/messages", {"text": "hi", "edits": 1}, "edits"),
        ("/messages", {"text": "hi", "conversation": "{id}", "edits": "1"}, "edits"),
        ("/messages", {"text": "hi", "conversation": "{id}", "edits": 2**70}, "edits"),
        ("/messages", {"text": "hi", "conversation": "{id}", "settings": {}}, "settings"),
        ("/messages", {"text": "hi", "settings": {"top_p": 0}}, "top_p"),
        ("/drafts", {"text": "hi", "settings": "x"}, "settings"),
    ],
)
def test_what_can_not_be_names_its_field_and_changes_nothing(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    id = ask(client, "one")["conversation"]["id"]
    before = client.get("/preferences").json(), client.get("/conversations").json()
    if "conversation" in body:
        body = body | {"conversation": id}
    reply = client.post(path.format(id=id), content=to_json(body), headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert (client.get("/preferences").json(), client.get("/conversations").json()) == before


def to_json(body: object) -> bytes:
    """With Infinity, which Python reads as well."""
    return json.dumps(body).encode()


PATHS = (
    "/messages",
    "/messages/{answer}/delete",
    "/answers/{answer}/stop",
    "/answers/{answer}/continue",
    "/answers/{answer}/retry",
    "/conversations/{id}",
    "/conversations/{id}/delete",
    "/conversations/{id}/restore",
    "/preferences",
    "/drafts",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[broken"}, 403),
        ({"Content-Type": "text/plain"}, 400),
    ],
)
def test_pages_of_other_sites_can_post_nothing(
    app: TestClient, path: str, headers: dict[str, str], status: int
) -> None:
    reply = app.post(
        path.format(id="x", answer=1), content=b"{}", headers={"Content-Type": "application/json"} | headers
    )
    assert reply.status_code == status


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "http://127.0.0.1"}, {"Sec-Fetch-Site": "same-origin", "Origin": "x"}]
)
def test_the_own_page_and_programs_can(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/preferences", json={"theme": "dark"}, headers=headers).status_code == 200


def test_nobody_touches_what_is_not_theirs(client: TestClient) -> None:
    asked = ask(client, "secret")
    client.cookies.clear()
    client.get("/")
    names = {"id": asked["conversation"]["id"], "answer": asked["answer"]}
    for path in PATHS[1:8]:
        assert refused(client, path.format(**names), {})[:2] == (404, "not_found")
    assert client.get(f"/messages/{asked['answer']}/text").status_code == 404
    assert titles(client, "secret") == titles(client) == []


def test_the_cursor_of_the_list_is_checked(client: TestClient) -> None:
    for before in ("x", "W10", "e30", "WzEsMl0", "A" * 5000, cursor(f'[1{"0" * 400}, 0, "a"]')):
        assert client.get("/conversations", params={"before": before}).status_code == 400
    lone_surrogate = cursor(r'[0, 0, "\ud800"]')
    assert client.get("/conversations", params={"before": lone_surrogate}).json()["conversations"] == []


def cursor(content: str) -> str:
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def test_single_user_is_one_list_in_all_browsers(tiny_path: Path, tmp_path: Path) -> None:
    engine = open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1)
    engine.sampling_defaults = replace(engine.sampling_defaults, max_tokens=4)
    settings = Settings(data_dir=tmp_path, single_user=True)
    with TestClient(create_app(settings, engine), base_url="http://127.0.0.1") as client:
        assert "set-cookie" not in client.get("/").headers
        asked = ask(client, "for all devices")
        client.cookies.clear()
        assert titles(client) == ["for all devices"] and len(shown(client, asked["conversation"]["id"])) == 2


def test_what_was_deleted_is_gone_for_good_in_time(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.app.PURGE_S", 0.02)
    engine = open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1)
    engine.sampling_defaults = replace(engine.sampling_defaults, max_tokens=4)
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), base_url="http://127.0.0.1") as client:
        client.get("/")
        other = ask(client, "to be kept")["conversation"]["id"]
        asked = ask(client, "Whisperword is a word", conversation=other)
        id = ask(client, "Geheimwort is a secret")["conversation"]["id"]
        post(client, f"/conversations/{id}/delete")
        time.sleep(0.1)
        post(client, f"/conversations/{id}/restore")
        post(client, f"/conversations/{id}/delete")
        monkeypatch.setattr("server.conversations.UNDO_S", 0.0)
        store, portal = client.app_state["store"], client.portal
        assert portal is not None
        query = "SELECT count(*) FROM messages"
        wait_until(lambda: portal.call(store.read, lambda db: db.execute(query).fetchone()) == (4,))
        assert refused(client, f"/conversations/{id}/restore", {})[0] == 404
        wait_until(lambda: b"eheimwort" not in portal.call(store.read, indexes))
        post(client, f"/messages/{asked['question']}/delete")
    left = b"".join(path.read_bytes() for path in tmp_path.glob("sparrow.db*")).lower()
    assert b"kept" in left and not [word for word in (b"eheimwort", b"hisperword") if word in left]


def indexes(db: sqlite3.Connection) -> bytes:
    """All that the search keeps, deleted or not. A word's first letter may be shared with the one before it."""
    query = "SELECT block FROM message_index_data UNION ALL SELECT block FROM title_index_data"
    return b"".join(block for (block,) in db.execute(query))
