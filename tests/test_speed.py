"""A long life of the server: 1,000 conversations, one of them with 500 messages, and everything still opens at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.loader import open_engine
from server.settings import Settings
from tests.page_reader import articles

N_CONVERSATIONS = 1_000
N_MESSAGES = 500
LIMIT_S = 1.0
"""0.3 s is what is promised and what it takes here with room; a machine under a test run may be slow for a moment."""

ANSWER = """The **house sparrow** number {n} lives near people:

- it nests under roofs, 麻雀 in Chinese
- it eats seeds, `grain` and insects

| bird | length |
|---|---|
| sparrow | 16 cm |

```python
def sing(n: int) -> str:
    return "chirp " * n
```

It is found on all continents but one. """


def conversation(at: int, n_messages: int) -> dict[str, Any]:
    messages = [
        {
            "id": n,
            "parent": n - 1 if n else None,
            "role": "assistant" if n % 2 else "user",
            "content": ANSWER.format(n=n * at) if n % 2 else f"Question {n} about the birds of chapter {at}?",
        }
        for n in range(n_messages)
    ]
    return {"id": at, "title": f"Birds of chapter {at}", "created_at": 1e9 + at, "messages": messages}


@pytest.fixture(scope="module")
def client(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    engine = open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1)
    data = tmp_path_factory.mktemp("data")
    with TestClient(create_app(Settings(data_dir=data), engine), base_url="http://127.0.0.1") as client:
        yield client


def measured(client: TestClient, path: str) -> tuple[float, str]:
    began = time.perf_counter()
    reply = client.get(path)
    assert reply.status_code == 200
    return time.perf_counter() - began, reply.text


def test_a_thousand_conversations_and_a_chat_of_500_messages_open_at_once(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = [conversation(at, N_MESSAGES if at == 500 else 4) for at in range(N_CONVERSATIONS)]
    file = json.dumps({"format": "sparrow", "conversations": chats})
    began = time.perf_counter()
    reply = client.post("/import", content=file, headers={"Content-Type": "application/json"})
    assert reply.json()["imported"] == N_CONVERSATIONS, reply.text
    figures = [("import of all", time.perf_counter() - began)]
    (found,) = client.get("/conversations?q=%22chapter 500%3F%22").json()["conversations"]
    for name, path in (
        ("a new chat and the list", "/"),
        ("the list as JSON", "/conversations"),
        ("a chat of 500 messages, first time", found["url"]),
        ("the same, again", found["url"]),
        ("a search that finds all", "/conversations?q=birds"),
        ("a search by one letter", "/conversations?q=b"),
        ("麻雀", "/conversations?q=麻雀"),
        ("a search that finds one", "/?q=chapter+777"),
    ):
        took, text = measured(client, path)
        figures.append((name, took))
        assert took < LIMIT_S, (name, took)
        if path == found["url"]:
            assert len(articles(text)) == N_MESSAGES
    with capsys.disabled():
        print(
            f"\n{N_CONVERSATIONS} conversations:",
            *(f"{took * 1000:5.0f} ms  {name}" for name, took in figures),
            sep="\n",
        )
