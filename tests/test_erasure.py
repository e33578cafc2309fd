"""What was deleted is in no slot and in no snapshot either; what others said is still there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server import app, conversations
from server.app import create_app
from server.chat import CHATML, Chat, ChatMessage
from server.engine import snapshots as module
from server.engine.erasure import N_OWN, Deleted
from server.engine.llama import Model
from server.engine.loader import open_engine
from server.engine.prefix import Ids, SlotTable
from server.settings import Settings
from tests.fakes import FakeMemory
from tests.test_drafts import ask

LONG = "A sentence that is long enough to be its author's own, and by nobody else's hand in just these words."
TEXTS = st.lists(st.text(min_size=1, max_size=12).filter(lambda text: text.strip()), min_size=1, max_size=6)


def held(model: Model, texts: list[str], n_cut: int = 0, system: str = "Be kind.") -> Ids:
    """A slot's tokens in the middle of a conversation: the last answer has no end, and n_cut tokens less."""
    said = [ChatMessage("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts)]
    tokens = Chat(CHATML, model.vocab).prompt([ChatMessage("system", system), *said])
    if len(said) % 2 == 0:
        tokens = tokens[: -len(model.vocab.tokenize("\nassistant\n")) - 2]  # it ends with the last answer's last word
    return np.array(tokens[: len(tokens) - n_cut], dtype=np.int32)


@settings(deadline=None)
@given(TEXTS, st.text(max_size=8))
def test_a_conversation_is_found_whatever_was_said_in_it(tiny_model: Model, texts: list[str], system: str) -> None:
    assert Deleted(texts).first(held(tiny_model, texts, system=system), tiny_model.vocab) == 0, "the system prompt, too"


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_others_stay(tiny_model: Model, texts: list[str], others: list[str]) -> None:
    """Unless all that they said was said in the conversation that is gone."""
    said = {text.replace("\ufffd", "").strip() for text in others[: len(others) // 2 * 2 - 1 or 1]}
    if not said <= {text.replace("\ufffd", "").strip() for text in texts}:
        assert Deleted(texts).first(held(tiny_model, [*others, "end"]), tiny_model.vocab) is None


def test_a_greeting_is_many_peoples_and_a_long_sentence_one_persons(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    mine, yours = held(tiny_model, ["Hi", "Hello!", "I am Ana."]), held(tiny_model, ["Hi", "Hello!", "I am Ben."])
    gone = Deleted(["Hi", "Hello!", "I am Ana."])
    assert gone.first(mine, vocab) is not None and gone.first(yours, vocab) is None
    assert len(LONG) >= N_OWN and Deleted([LONG]).first(held(tiny_model, ["Hi", "Ho", LONG, "x", "y"]), vocab)
    assert Deleted([]).first(mine, vocab) is None and not Deleted(["", " "])


def test_of_a_message_the_place_is_given_and_what_stays_is_known(tiny_model: Model) -> None:
    vocab, texts = tiny_model.vocab, ["Hi", "Hello!", "My PIN is 1234.", "Good."]
    tokens = held(tiny_model, texts)
    kept = held(tiny_model, texts[:2])
    place = Deleted(texts[2:], texts).first(tokens, vocab)
    assert place is not None and tokens[: len(kept)].tolist() == kept.tolist()
    assert vocab.special["<|im_start|>"] == tokens[place] and place - len(kept) <= 2, (
        "only the end of the answer before"
    )
    assert Deleted(texts[2:]).first(tokens, vocab) is None, "the rest could be anybody's"


def test_an_answer_that_was_cut_off_is_an_answer(tiny_model: Model) -> None:
    texts = ["Hi", "Grüße, 麻雀"]
    for n_cut in range(1, 4):
        assert Deleted(texts).first(held(tiny_model, texts, n_cut), tiny_model.vocab) is not None


def test_idle_slots_forget_from_the_place_on_and_busy_ones_nothing() -> None:
    memory = FakeMemory(3, can_truncate=True)
    slots = SlotTable(3, 100, memory)
    for first, is_draft in ((0, False), (50, False), (70, True)):
        slot, _ = slots.claim([*range(first, first + 20)])
        memory.tokens[slot] += range(first, first + 20)
        slots.extend(slot, [*range(first, first + 20)])
        if first != 50:
            slots.release(slot, is_draft)
    seen: list[list[int]] = []

    def find(tokens: Ids) -> int | None:
        seen.append(tokens.tolist())
        return 5 if len(tokens) else None

    slots.erase(find)
    slots.check_integrity()
    assert [info.n_tokens for info in slots.infos()] == [5, 20, 20]
    assert seen == [[*range(20)], []], "a draft is its author's until it is sent"
    slots.erase(lambda _: 0)
    assert [info.n_tokens for info in slots.infos()] == [0, 20, 0]


# --- as a person meets it ------------------------------------------------------------------------------------------


@pytest.fixture
def client(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    for name, seconds in (("SETTLED_S", 0.05), ("POLL_S", 0.01)):
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(app, "PURGE_S", 0.05)
    engine = open_engine(tiny_path, n_ctx=512, n_slots=4, n_threads=1, snapshots=tmp_path / "kv", snapshot_bytes=10**8)
    engine.sampling_defaults = replace(engine.sampling_defaults, ignore_eos=True, max_tokens=20)
    with TestClient(create_app(Settings(data_dir=tmp_path), engine), base_url="http://127.0.0.1") as client:
        client.get("/")
        yield client


def answered(client: TestClient, text: str, conversation: str | None = None) -> Any:
    asked = ask(client, text, conversation)
    client.get(f"/answers/{asked['answer']}/events")
    wait_until(lambda: not client.app_state["answers"]._keepers and not client.app_state["answers"]._drafts._drafts)
    return asked


def keeps(client: TestClient, text: str) -> tuple[bool, bool]:
    """Is it in a slot; is it in a snapshot?"""
    engine = client.app_state["engine"]
    wanted = np.array(engine.vocab.tokenize(text), dtype=np.int32).tobytes()
    slots = [np.array(slot, dtype=np.int32).tobytes() for slot in map(engine.scheduler.slots.held, range(4))]
    archive = engine._snapshots._archive
    files = [] if archive is None else [path.read_bytes() for path in archive._folder.glob("*.kv")]
    return any(wanted in slot for slot in slots), any(wanted in file for file in files)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_deleted_conversation_leaves_slots_and_disk_when_it_can_not_be_brought_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = answered(client, f"My secret: {LONG}")
    answered(client, "It is a short one.", mine["conversation"]["id"])
    answered(client, f"Nothing to hide. {LONG.upper()}")
    wait_until(lambda: keeps(client, "My secret") == keeps(client, "Nothing to hide") == (True, True))
    assert client.post(f"/conversations/{mine['conversation']['id']}/delete", json={}).status_code == 200
    time.sleep(0.3)
    assert keeps(client, "My secret") == (True, True), "it can be brought back"
    monkeypatch.setattr(conversations, "UNDO_S", 0.0)
    wait_until(lambda: keeps(client, "My secret") == (False, False))
    assert keeps(client, "Nothing to hide") == (True, True)


def test_a_mistake_of_ours_keeps_nothing_in_the_database(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = answered(client, f"My secret: {LONG}")
    monkeypatch.setattr(client.app_state["engine"]._snapshots, "erase", lambda _: 1 / 0)
    monkeypatch.setattr(client.app_state["engine"]._slots, "erase", lambda _: 1 / 0)
    client.post(f"/conversations/{mine['conversation']['id']}/delete", json={})
    monkeypatch.setattr(conversations, "UNDO_S", 0.0)
    store, portal = client.app_state["store"], client.portal
    assert portal is not None
    wait_until(
        lambda: portal.call(store.read, lambda db: db.execute("SELECT count(*) FROM messages").fetchone()) == (0,)
    )


def test_a_deleted_message_leaves_at_once_and_what_stood_before_it_is_not_read_again(client: TestClient) -> None:
    asked = answered(client, f"My name is Ana. {LONG[:60]}")
    conversation = asked["conversation"]["id"]
    second = answered(client, "My PIN is 1234.", conversation)
    wait_until(lambda: keeps(client, "PIN is 1234") == (True, True))
    assert client.post(f"/messages/{second['question']}/delete", json={}).status_code == 200
    wait_until(lambda: keeps(client, "PIN is 1234") == (False, False))
    assert keeps(client, "My name is Ana")[0]
    third = answered(client, "Hello", conversation)
    before = client.app_state["chat"].prompt([ChatMessage("user", f"My name is Ana. {LONG[:60]}")])
    store = client.app_state["store"]
    assert client.portal is not None
    usage = client.portal.call(
        store.read, lambda db: db.execute("SELECT n_reused FROM messages WHERE id = ?", (third["answer"],)).fetchone()
    )
    assert usage[0] > len(before)
