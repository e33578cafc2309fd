"""The list on real files: search that finds Chinese, pages, pins, undo; and the tree of messages below it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server import branches, conversations, migrations, rows, search
from server.conversations import N_PAGE, UNDO_S, change, delete, found, listed, prefer, preferences, purge, restore
from server.errors import InvalidField, NotFound
from server.preferences import ChatSettings, Preferences
from server.records import Ending

PLAIN = ChatSettings()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(tmp_path / "sparrow.db", isolation_level=None)
    db.executescript("PRAGMA foreign_keys = ON; PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY")
    migrations.migrate(db)
    yield db
    db.close()


def turn(db: sqlite3.Connection, text: str, answer: str = "ok", conversation: str | None = None) -> str:
    """A finished question and answer; returns the conversation's id."""
    key = str(time.perf_counter_ns())
    exchange = rows.begin(db, "ana", conversation, text, key, 0, "shown", PLAIN)
    rows.finish(db, exchange.answer.id, Ending(answer, "done", "stop"))
    return exchange.conversation.id


def titles(db: sqlite3.Connection, query: str = "") -> list[str]:
    page = found(db, "ana", query) if query else listed(db, "ana")
    return [entry.title for entry in page.conversations]


@pytest.mark.parametrize(
    ("query", "finds"),
    [
        ("麻雀", True),
        ("雀", True),
        ("雀麻", False),
        ("五脏俱全", True),
        ("五脏 麻雀", True),
        ("五脏 老虎", False),
        ("GPT模型", True),
        ("gpt", True),
        ("PT", False),
        ("CAFÉ", True),
        ("cafe", True),
        ("cafe\u0301", True),
        ("hauptstraß", True),
        ("すずめ", True),
        ("참새", True),
        ("นก", True),
        ("🐦", True),
        ("🐧", False),
        ("c++", True),
        ("it's", True),
        ('"', False),
        ("* OR NOT (", False),
        ("NEAR(", False),
        ("content:cafe", False),
        ("", False),
        ("\u200b", False),
        ("x" * 10_000, False),
        (" ".join(["cafe"] * 500), True),
    ],
)
def test_what_a_search_finds(db: sqlite3.Connection, query: str, finds: bool) -> None:
    turn(db, "麻雀虽小，五脏俱全", "GPT模型 at the Café in Hauptstraße: it's C++. すずめ 참새는 นกกระจอก 🐦🐦")
    turn(db, "something else", "nothing")
    assert bool(found(db, "ana", query).conversations) is finds


def test_a_citation_shows_what_was_found_in_one_line(db: sqlite3.Connection) -> None:
    turn(db, "Tell me", "Long " * 50 + "before\nthe little 麻雀 sings <b>loudly</b>" + " after" * 50)
    (entry,) = found(db, "ana", "麻雀").conversations
    assert ("麻雀", True) in entry.snippet and entry.title == "Tell me"
    text = "".join(part for part, _ in entry.snippet)
    assert "before the little 麻雀 sings <b>loudly</b>" in text and "\u200b" not in text and len(text) < 200
    assert found(db, "ana", "tell").messages == (1,)


def test_titles_are_found_and_forgotten_with_their_name(db: sqlite3.Connection) -> None:
    id = turn(db, "hello")
    change(db, "ana", id, title="鸟类 Ornithology")
    assert titles(db, "鸟类") == titles(db, "orni") == ["鸟类 Ornithology"]
    assert found(db, "ana", "鸟类").conversations[0].snippet == ()
    change(db, "ana", id, title="Cars")
    assert titles(db, "orni") == [] and titles(db, "cars") == ["Cars"]


def test_nothing_of_others_is_found(db: sqlite3.Connection) -> None:
    turn(db, "my secret")
    assert found(db, "ben", "secret").conversations == listed(db, "ben").conversations == ()


def test_pinned_ones_come_first_and_all_come_once_over_the_pages(db: sqlite3.Connection) -> None:
    ids = [turn(db, f"number {n}") for n in range(2 * N_PAGE + 50)]
    for id in ids[:120]:
        change(db, "ana", id, pinned=True)
    assert change(db, "ana", ids[0], pinned=True).pinned, "pinned again it stays where it is"
    for query in ("", "number"):
        seen: list[str] = []
        before = ""
        while True:
            page = found(db, "ana", query, before) if query else listed(db, "ana", before)
            seen += [entry.id for entry in page.conversations]
            before = page.before
            if not before:
                break
        expected = ids[::-1] if query else [*ids[119::-1], *ids[:119:-1]]
        assert seen == expected
    assert not change(db, "ana", ids[0], pinned=False).pinned
    with pytest.raises(InvalidField, match="before"):
        listed(db, "ana", "nonsense")


def test_a_deleted_one_is_gone_at_once_and_comes_back_whole(
    db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = turn(db, "one bird", "sings")
    delete(db, "ana", id)
    assert titles(db) == titles(db, "bird") == []
    for reads in (lambda: rows.conversation(db, "ana", id), lambda: rows.message(db, "ana", 1)):
        with pytest.raises(NotFound):
            reads()
    purge(db)
    with pytest.raises(NotFound):
        restore(db, "ben", id)
    assert restore(db, "ana", id).title == "one bird"
    assert titles(db, "sings") == ["one bird"]
    delete(db, "ana", id)
    now = time.time()
    monkeypatch.setattr(conversations, "time", lambda: now + UNDO_S + 1)
    with pytest.raises(NotFound):
        restore(db, "ana", id)
    purge(db)
    for table in ("conversations", "messages", "message_index", "title_index"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_chain_longer_than_sqlite_follows_can_be_deleted(db: sqlite3.Connection) -> None:
    """Cascades end at 1,000 levels with an error."""
    db.execute("BEGIN")
    first, second = turn(db, "x"), turn(db, "y")
    for conversation in (first, second):
        for _ in range(700):
            turn(db, "again", "yes", conversation)
    root = rows.branch(db, rows.shown_leaf(db, first))[0]
    assert branches.delete(db, root) is None
    assert rows.shown_leaf(db, first) is None and listed(db, "ana").conversations[1].id == first
    delete(db, "ana", second)
    db.execute("UPDATE conversations SET deleted_at = 1 WHERE id = ?", (second,))
    purge(db)
    assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)


def test_an_older_database_is_searchable(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    db.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    for step in migrations.MIGRATIONS[:2]:
        step(db)
        db.execute("INSERT INTO migrations VALUES (?, 'then')", (step.__name__,))
    db.execute("INSERT INTO conversations VALUES ('c', 'ana', '旧的', 1.0, 2.0)")
    db.execute(
        "INSERT INTO messages (conversation_id, role, content, status, created_at)"
        " VALUES ('c', 'user', '麻雀', 'done', 1)"
    )
    migrations.migrate(db)
    assert titles(db, "麻雀") == titles(db, "旧的") == titles(db) == ["旧的"]
    db.close()


def test_preferences_are_an_owners_and_settings_a_conversations(db: sqlite3.Connection) -> None:
    chosen = Preferences(temperature=0.2, system_prompt="你是麻雀。", theme="dark", language="zh", reads_drafts=False)
    prefer(db, "ana", chosen.as_json(), frozenset(["zh"]))
    assert preferences(db, "ana") == chosen and preferences(db, "ben") == Preferences()
    mine = ChatSettings(system_prompt="", top_k=7)
    assert mine.over(chosen) == ChatSettings(system_prompt="", temperature=0.2, top_k=7)
    id = turn(db, "x")
    assert change(db, "ana", id, settings=mine.as_json()).settings == mine
    assert change(db, "ana", id, settings={"top_k": None}).settings == ChatSettings(system_prompt="")
    assert prefer(db, "ana", {"top_p": 0.5}, reset=True) == Preferences(
        top_p=0.5, theme="dark", language="zh", reads_drafts=False
    )


class Tree:
    """One conversation's messages, drawn by their ids."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.id = turn(db, "q1", "a1")
        turn(db, "q2", "a2", self.id)

    def shown(self) -> list[int]:
        return [message.id for message in rows.branch(self.db, rows.shown_leaf(self.db, self.id))]

    def edit(self, question: int) -> None:
        below = branches.parent_of_edit(self.db, self.id, question)
        rows.begin(self.db, "ana", self.id, "edited", str(time.perf_counter_ns()), 0, below, PLAIN)

    def siblings(self) -> list[tuple[int, ...]]:
        thread = rows.branch(self.db, rows.shown_leaf(self.db, self.id))
        return branches.siblings(self.db, self.id, thread)

    def delete(self, message: int) -> int | None:
        return branches.delete(self.db, rows.message(self.db, "ana", message))


@pytest.fixture
def tree(db: sqlite3.Connection) -> Tree:
    """1 ─ 2 ─ 3 ─ 4"""
    return Tree(db)


def test_an_edit_is_a_branch_that_is_shown_and_the_old_one_stays(tree: Tree) -> None:
    assert tree.shown() == [1, 2, 3, 4] and tree.siblings() == [(1,), (2,), (3,), (4,)]
    tree.edit(3)
    assert tree.shown() == [1, 2, 5, 6] and tree.siblings() == [(1,), (2,), (3, 5), (6,)]
    tree.edit(1)
    assert tree.shown() == [7, 8] and tree.siblings() == [(1, 7), (8,)]
    branches.show(tree.db, tree.id, 2)
    assert tree.shown() == [1, 2, 5, 6], "down to the newest leaf"
    branches.show(tree.db, tree.id, 3)
    assert tree.shown() == [1, 2, 3, 4]
    assert [message.id for message in branches.branch_through(tree.db, tree.id, 7)] == [7, 8]
    assert tree.shown() == [1, 2, 3, 4], "looking changes nothing"
    turn(tree.db, "q3", "a3", tree.id)
    assert tree.shown() == [1, 2, 3, 4, 9, 10], "a question follows what is shown"


def test_a_deleted_message_takes_all_below_it_and_its_neighbour_is_shown(tree: Tree) -> None:
    tree.edit(3)
    tree.edit(3)
    assert tree.shown() == [1, 2, 7, 8]
    assert tree.delete(7) == 6 and tree.shown() == [1, 2, 5, 6]
    assert tree.delete(6) == 5 and tree.shown() == [1, 2, 5]
    assert tree.delete(3) == 5 and tree.siblings()[-1] == (5,)
    assert tree.delete(5) == 2 and tree.shown() == [1, 2]
    assert titles(tree.db, "edited") == [] and titles(tree.db, "q1") == ["q1"]
    assert tree.delete(1) is None and tree.shown() == []
    turn(tree.db, "new", "beginning", tree.id)
    assert len(tree.shown()) == 2, "an empty conversation stays and can be used"


def test_only_questions_of_this_conversation_are_edited_and_only_its_messages_shown(tree: Tree) -> None:
    other = turn(tree.db, "other")
    for id in (2, 5, 99, -1):
        with pytest.raises(InvalidField, match="edits"):
            branches.parent_of_edit(tree.db, tree.id, id)
    for id in (5, 99):
        with pytest.raises(NotFound):
            branches.show(tree.db, tree.id, id)
        with pytest.raises(NotFound):
            branches.branch_through(tree.db, tree.id, id)
    with pytest.raises(NotFound):
        change(tree.db, "ana", other, leaf=1)
    with pytest.raises(NotFound):
        change(tree.db, "ben", tree.id, title="mine now")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_k", -1),
        ("repeat_penalty", 0.0),
        ("max_tokens", 0),
        ("seed", 2**64),
    ],
)
def test_settings_that_cannot_be_name_their_field(field: str, value: float) -> None:
    with pytest.raises(InvalidField, match=field):
        replace(PLAIN, **{field: value})  # type: ignore[arg-type]


def test_marks_of_the_index_cannot_come_from_a_text(db: sqlite3.Connection) -> None:
    turn(db, "a \x02bird\x03 that\u200bsings")
    (entry,) = found(db, "ana", "bird").conversations
    assert [part for part, is_match in entry.snippet if is_match] == ["bird"]
    assert search.match("\x02\x03") is None
