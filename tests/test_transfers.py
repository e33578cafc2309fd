"""Conversations as files: ours comes back as it was, others' as far as they go, and nothing in a file is trusted."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.loader import open_engine
from server.errors import InvalidRequest
from server.imports import Problem, parse
from server.portable import Portable, attachment
from server.settings import Settings

JSON = {"Content-Type": "application/json"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def app(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    engine = open_engine(tiny_path, n_ctx=1024, n_slots=1, n_threads=1)
    engine.sampling_defaults = replace(engine.sampling_defaults, ignore_eos=True, max_tokens=8)
    data = tmp_path_factory.mktemp("data")
    with TestClient(create_app(Settings(data_dir=data), engine), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def client(app: TestClient) -> TestClient:
    """A browser that comes for the first time."""
    app.cookies.clear()
    app.get("/")
    return app


def ask(client: TestClient, text: str, **more: Any) -> Any:
    asked = client.post("/messages", json={"text": text, "key": secrets.token_hex(16), **more}).json()
    client.get(f"/answers/{asked['answer']}/events")
    return asked


def bring(client: TestClient, file: object) -> Any:
    content = file if isinstance(file, (str, bytes)) else json.dumps(file)
    reply = client.post("/import", content=content, headers=JSON)
    assert reply.status_code == 200, reply.text
    return reply.json()


def titles(client: TestClient, query: str = "") -> list[str]:
    return [entry["title"] for entry in client.get(f"/conversations?q={query}").json()["conversations"]]


def exported(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/export").json()["conversations"]
    return found


def numbered(conversation: dict[str, Any]) -> dict[str, Any]:
    """With the places of the messages instead of their ids."""
    at = {message["id"]: n for n, message in enumerate(conversation["messages"])}
    messages = [m | {"id": at[m["id"]], "parent": at.get(m["parent"])} for m in conversation["messages"]]
    return conversation | {"id": "", "leaf": at[conversation["leaf"]], "messages": messages}


def test_our_own_file_comes_back_with_branches_settings_and_the_shown_one(client: TestClient) -> None:
    first = ask(client, "麻雀 one", settings={"temperature": 0.5, "system_prompt": "你好"})
    id = first["conversation"]["id"]
    ask(client, "two", conversation=id)
    ask(client, "eins", conversation=id, edits=first["question"])
    client.post(f"/conversations/{id}", json={"pinned": True, "title": "名字", "leaf": first["question"]})
    ask(client, "another")
    before = exported(client)
    assert len(before) == 2 and len(before[0]["messages"]) == 6
    assert bring(client, client.get("/export").text) == {"imported": 0, "skipped": 2, "problems": []}
    file = client.get("/export").text
    client.cookies.clear()
    assert bring(client, file) == {"imported": 2, "skipped": 0, "problems": []}
    assert bring(client, file) == {"imported": 0, "skipped": 2, "problems": []}
    after = exported(client)
    assert [after_one["messages"][2]["content"] for after_one in after[:1]] == ["two"], "a branch stands together"
    for old, new in zip(before, after, strict=True):
        assert numbered(new) == numbered(old)
        assert new["id"] != old["id"], "the other browser's stays its own"
    assert titles(client, "麻雀") == ["名字"]
    shown = client.get(f"/c/{after[0]['id']}").text
    assert "two" in shown and "eins" not in shown.partition("<template")[0].partition('id="messages"')[2]


def test_one_conversation_as_a_file(client: TestClient) -> None:
    asked = ask(client, "# 麻雀: 1/2 \\ ..\u202e?")
    url = f"/c/{asked['conversation']['id']}/export"
    reply = client.get(url)
    assert reply.headers["content-type"] == "text/markdown; charset=utf-8"
    said = client.get(f"/messages/{asked['answer']}/text").text
    question = client.get(f"/messages/{asked['question']}/text").text
    assert reply.text == f"# {asked['conversation']['title']}\n\n## You\n\n{question}\n\n## Answer\n\n{said}\n"
    disposition = reply.headers["content-disposition"]
    assert unquote(disposition.partition("UTF-8''")[2]) == "# 麻雀 1 2.md"
    assert "## 你" in client.get(url, headers={"Accept-Language": "zh"}).text
    file = client.get(url + "?form=json")
    assert file.json()["conversations"][0]["id"] == asked["conversation"]["id"]
    assert client.get(url + "?form=pdf").json()["error"]["param"] == "form"
    client.cookies.clear()
    assert client.get(url).status_code == client.get("/c/none/export?form=json").status_code == 404
    assert exported(client) == []


@pytest.mark.parametrize(
    "title", ["", "...", "../../etc/passwd", 'a"b\r\nX: y', "麻雀", "\u202egpj.exe", "x" * 500, "CON|<>%00"]
)
def test_a_files_name_is_harmless(title: str) -> None:
    value = attachment(title, ".md")
    value.encode("ascii")
    assert re.fullmatch(r"attachment; filename=\"[^\"/\\\r\n]{4,90}\"; filename\*=UTF-8''[\w.~%-]+", value), value
    assert not re.search(r"%(2F|5C|0D|0A|E2%80%AE)|=\"\.", value)


def theirs(id: str, parent: str | None, role: str, content: object, second: int, **more: Any) -> dict[str, Any]:
    """As llama-server's web page writes a message."""
    time_ms = 1_750_000_000_000 + second * 1000
    message: dict[str, Any] = {"convId": "7f", "id": id, "parent": parent, "children": [], "type": "text", "role": role}
    return message | {"content": content, "timestamp": time_ms, **more}


LLAMA_SERVER = {
    "conv": {"id": "7f", "name": "Birds", "lastModified": 1_750_000_003_000, "currNode": "4"},
    "messages": [
        theirs("0", None, "system", "", 0, type="root", children=["1"]),
        theirs("1", "0", "system", "Be brief.", 0, children=["2"]),
        theirs("2", "1", "user", "Which bird?", 1, children=["3", "4"], extra=[{"type": "TEXT", "name": "a.txt"}]),
        theirs("3", "2", "assistant", "A **sparrow**.", 2),
        theirs("4", "2", "assistant", "A wren.", 3),
    ],
}


def test_a_file_of_llama_server(client: TestClient) -> None:
    said = "Conversation 1 (Birds): attached files were left out (1)."
    assert bring(client, LLAMA_SERVER) == {"imported": 1, "skipped": 0, "problems": [said]}
    assert bring(client, [LLAMA_SERVER])["skipped"] == 1, "alone or in a list, it is the same"
    (found,) = exported(client)
    assert (found["title"], found["settings"], found["updated_at"]) == (
        "Birds",
        {"system_prompt": "Be brief."},
        1_750_000_003.0,
    )
    assert [(m["role"], m["content"]) for m in found["messages"]] == [
        ("user", "Which bird?"), ("assistant", "A **sparrow**."), ("assistant", "A wren."),
    ]  # fmt: skip
    assert [m["parent"] for m in numbered(found)["messages"]] == [None, 0, 0] and numbered(found)["leaf"] == 2
    ask(client, "And now?", conversation=found["id"])
    assert titles(client, "wren") == ["Birds"]


def webui(parent: str | None, role: str, content: object, second: int) -> dict[str, Any]:
    """As Open WebUI writes a message."""
    return {
        "parentId": parent,
        "childrenIds": [],
        "role": role,
        "content": content,
        "timestamp": 1_750_000_000 + second,
    }


OPEN_WEBUI = {
    "id": "c1",
    "user_id": "u",
    "title": "Vögel",
    "created_at": 1_750_000_000,
    "updated_at": 1_750_000_009,
    "pinned": True,
    "chat": {
        "title": "Vögel",
        "params": {"system": "Sei kurz."},
        "history": {
            "currentId": "c",
            "messages": {
                "a": webui(None, "user", "Welcher?", 1),
                "b": webui("a", "assistant", "Spatz.", 2),
                "c": webui("a", "assistant", [{"type": "text", "text": "Zaunkönig."}], 3),
                "d": webui("c", "user", "Und?", 4),
            },
        },
        "messages": [],
    },
}


def test_a_file_of_open_webui(client: TestClient) -> None:
    old = {
        "title": "Alt",
        "chat": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    }
    assert bring(client, [OPEN_WEBUI, old]) == {"imported": 2, "skipped": 0, "problems": []}
    found = numbered(exported(client)[0])
    assert (found["title"], found["pinned"], found["created_at"]) == ("Vögel", True, 1_750_000_000.0)
    assert found["settings"] == {"system_prompt": "Sei kurz."}
    assert [(m["parent"], m["content"]) for m in found["messages"]] == [
        (None, "Welcher?"),
        (0, "Spatz."),
        (0, "Zaunkönig."),
        (2, "Und?"),
    ]
    assert found["leaf"] == 3, "down to the newest"
    assert [m["parent"] for m in numbered(exported(client)[1])["messages"]] == [None, 0]


def mini(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"title": "T", "messages": list(messages), **more}


def said(id: object = 1, parent: object = None, **more: Any) -> dict[str, Any]:
    return {"id": id, "parent": parent, "role": "user", "content": "hi", **more}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (7, "this is no conversation"),
        ({"title": "T"}, "this is no conversation"),
        (mini(), "no messages"),
        (mini(said(role="tool")), "no messages"),
        ({"messages": {}}, "no list of messages"),
        (mini("x"), "no object"),  # type: ignore[arg-type]
        (mini(said(content=7)), "no text"),
        (mini(said(content="x" * 1_000_001)), "1,000,001 characters"),
        (mini(said(), said()), "same id"),
        (mini(said(1, 2), said(2, 1)), "circle"),
        (mini(said(1, 1)), "circle"),
        (mini(said(1, 2, role="tool"), said(2, 1, role="tool"), said(3, 2)), "circle"),
        (mini(said(), settings={"temperature": 99}), "temperature"),
        (mini(said(), settings=[1]), "settings"),
        (mini(*(said(n) for n in range(20_001))), "20,001 messages"),
        ({"conv": {}, "messages": None}, "no list of messages"),
        ({"chat": {"history": {"messages": []}}}, "no messages by their ids"),
        ({"chat": {"messages": [], "params": 7}}, "no messages"),
        ({"chat": {"messages": [said()], "system": 5}}, "system_prompt"),
    ],
)  # fmt: skip
def test_a_half_bad_file_imports_what_is_good_and_names_what_is_not(client: TestClient, bad: object, why: str) -> None:
    good = mini(said(content="good one"), title="Good")
    answer = bring(client, {"format": "sparrow", "conversations": [bad, good]})
    assert (answer["imported"], answer["skipped"]) == (1, 0) and titles(client) == ["Good"]
    (problem,) = answer["problems"]
    assert problem.startswith("Conversation 1") and why in problem


@pytest.mark.parametrize(
    "file",
    ["", "{", "[1, 2]", '"x"', "null", '{"a": 1}', b"\xff\xfe\x00", "[" * 100_000, '{"format": "sparrow"}', "9" * 5000],
)
def test_what_is_no_file_of_conversations_is_refused(client: TestClient, file: str | bytes) -> None:
    reply = client.post("/import", content=file, headers=JSON)
    assert reply.status_code == 400 and "file" in reply.json()["error"]["message"]
    assert bring(client, "[]") == {"imported": 0, "skipped": 0, "problems": []}


def test_odd_values_are_taken_as_far_as_they_make_sense(client: TestClient) -> None:
    odd = mini(
        said(1, None, content="a\ud800b\0c", created_at=1e300, status="interrupted"),
        said(2, 99, role="assistant", content=None, created_at="yesterday", status="interrupted", finish_reason=["x"]),
        said(3.5, True, role="assistant", created_at=-5),
        title=" \n ", pinned="yes", leaf=["x"], created_at=float("inf"), updated_at=time.time() * 2,
    )  # fmt: skip
    assert bring(client, {"format": "sparrow", "version": 99, "conversations": [odd]})["imported"] == 1
    (found,) = exported(client)
    assert (
        found["title"] == "a?bc"
        and found["messages"][0]["content"] == "a?b\0c"
        and found["pinned"] is False
        and found["updated_at"] <= time.time()
    )
    assert {m["status"] for m in found["messages"]} == {"done", "stopped"}
    assert client.get(f"/c/{found['id']}").status_code == 200


def test_nothing_of_a_file_runs(client: TestClient) -> None:
    text = EVIL + "\n\n[x](javascript:alert(1)) ![x](http://evil.example/x.png)"
    bring(
        client,
        mini(
            said(content=text),
            said(2, 1, role="assistant", content=text),
            title=EVIL,
            id=EVIL,
            settings={"system_prompt": EVIL},
        ),
    )
    (found,) = exported(client)
    for page in (client.get(f"/c/{found['id']}").text, client.get("/?q=alert").text):
        assert "alert(1)" in page and "<script>" not in page and "<img" not in page and 'href="javascript' not in page
    assert re.fullmatch(r"[\w-]{22}", found["id"])


def test_a_file_that_is_too_large_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.transfers.MAX_FILE", 2_000_000)
    reply = client.post("/import", content=b" " * 2_000_001, headers=JSON)
    assert reply.status_code == 413 and "larger than 2 MB" in reply.json()["error"]["message"]


def test_a_page_of_another_site_imports_nothing(client: TestClient) -> None:
    reply = client.post("/import", content="[]", headers=JSON | {"Origin": "http://evil.example"})
    assert reply.status_code == 403
    assert client.post("/import", content="[]", headers={"Content-Type": "text/plain"}).status_code == 400


def test_a_deleted_one_can_be_imported_again(client: TestClient) -> None:
    file = json.dumps(mini(said()))
    bring(client, file)
    id = exported(client)[0]["id"]
    client.post(f"/conversations/{id}/delete", json={})
    assert bring(client, file)["imported"] == 1 and len(exported(client)) == 1


_WORDS = ["", "user", "assistant", "system", "1", "x\ud800"]
_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["conv", "chat", "messages", "history", "id", "parent", "parentId", "role", "content", "title", "settings",
             "leaf", "currNode", "currentId", "type", "timestamp", "created_at", "extra", "files", "params", "system"]
        ),
        inner,
        max_size=8,
    ),
    max_leaves=40,
)  # fmt: skip


@given(st.lists(_values, max_size=4))
@settings(max_examples=400, deadline=None)
def test_no_json_at_all_breaks_the_reader(entries: list[Any]) -> None:
    try:
        for found in parse(json.dumps({"format": "sparrow", "conversations": entries}).encode()):
            assert isinstance(found, Problem) or (isinstance(found, Portable) and found.messages and found.title)
    except InvalidRequest:
        pass
