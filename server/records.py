"""What a conversation consists of, and the SQL that reads and adds it. Every function here runs on a store thread."""

from __future__ import annotations

import secrets
import sqlite3
import sys
from array import array
from dataclasses import astuple, dataclass, replace
from time import time
from typing import Any, Literal

from server.engine.sequence import FinishReason, Usage
from server.errors import NotFound
from server.preferences import ChatSettings

Role = Literal["user", "assistant"]
Status = Literal["streaming", "done", "stopped", "error", "interrupted"]
"""stopped: by the person; interrupted: by the server's end, in the middle."""

N_RECENT = 100
"""How many conversations the list of the page shows."""

MAX_TITLE = 60
"""Characters; the page cuts what its width can't show."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Times are seconds since 1970."""

    id: str
    title: str
    created_at: float
    updated_at: float
    pinned: bool = False
    settings: ChatSettings = ChatSettings()
    snippet: tuple[tuple[str, bool], ...] = ()
    """Of a message that a search found: its text around what was looked for, in parts; True: this part is it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a SparrowError said: its code for programs, its message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Message:
    id: int
    conversation_id: str
    parent_id: int | None
    role: Role
    content: str
    status: Status
    created_at: float
    finish_reason: FinishReason | None
    n_resumed: int
    """How often this answer was cut off and went on."""
    n_dropped: int
    """How many of the oldest messages that say anything were left out for this answer: they had no room."""
    failure: Failure | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer as far as it goes, and what it goes on from: the tokens behind the text, in the vocabulary's ids."""

    content: str
    tokens: tuple[int, ...] = ()
    vocab: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: its whole text, and why there is no more."""

    content: str
    status: Status
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its newest answer. `is_new` is False when the same key was sent before."""

    conversation: Conversation
    question: Message
    answer: Message
    is_new: bool


def title_of(text: str) -> str:
    """The first words of a message, on one line; cut inside a word only where there are no spaces (Chinese)."""
    words = " ".join(text.split())
    if len(words) <= MAX_TITLE:
        return words
    cut = words[:MAX_TITLE]
    return (cut.rpartition(" ")[0] if " " in cut[MAX_TITLE // 2 :] else cut) + "…"


def recent(db: sqlite3.Connection, owner: str) -> tuple[Conversation, ...]:
    rows = db.execute(
        "SELECT id, title, created_at, updated_at FROM conversations WHERE owner = ? ORDER BY updated_at DESC LIMIT ?",
        (owner, N_RECENT),
    )
    return tuple(Conversation(*row) for row in rows)


def conversation(db: sqlite3.Connection, owner: str, id: str) -> Conversation:
    row = db.execute(
        "SELECT id, title, created_at, updated_at FROM conversations WHERE id = ? AND owner = ?", (id, owner)
    ).fetchone()
    if row is None:
        raise NotFound("There is no such conversation here: it was deleted, or another browser wrote it.")
    return Conversation(*row)


def message(db: sqlite3.Connection, owner: str, id: int) -> Message:
    found = _messages(db, "messages WHERE id = ?", id) if id < 2**63 else ()  # a URL may hold any number
    if not found:
        raise NotFound("There is no such message here.")
    conversation(db, owner, found[0].conversation_id)
    return found[0]


def newest(db: sqlite3.Connection, conversation_id: str) -> int | None:
    """The id of the conversation's newest message: the leaf of the branch that is shown."""
    row = db.execute("SELECT max(id) FROM messages WHERE conversation_id = ?", (conversation_id,)).fetchone()
    return row[0]  # type: ignore[no-any-return]


def branch(db: sqlite3.Connection, leaf: int | None) -> tuple[Message, ...]:
    """From the first message down to `leaf`. A parent is always older than its children, so ids give the order."""
    return _messages(
        db,
        "messages WHERE id IN (WITH RECURSIVE up(i) AS (SELECT ?1 UNION ALL"
        " SELECT parent_id FROM messages JOIN up ON id = i WHERE parent_id IS NOT NULL) SELECT i FROM up) ORDER BY id",
        leaf,
    )


def exchange(db: sqlite3.Connection, owner: str, key: str) -> Exchange | None:
    """What was begun with this key, if anything was."""
    questions = _messages(
        db, "messages WHERE key = ? AND conversation_id IN (SELECT id FROM conversations WHERE owner = ?)", key, owner
    )
    if not questions:
        return None
    answer = _messages(db, "messages WHERE parent_id = ? ORDER BY id DESC LIMIT 1", questions[0].id)[0]
    return Exchange(conversation(db, owner, answer.conversation_id), questions[0], answer, is_new=False)


def begin(
    db: sqlite3.Connection, owner: str, conversation_id: str | None, text: str, key: str, n_dropped: int
) -> Exchange:
    known = exchange(db, owner, key)
    if known:
        return known
    if conversation_id is None:
        conversation_id = _new_conversation(db, owner, title_of(text))
    found = conversation(db, owner, conversation_id)
    question = _add(db, conversation_id, newest(db, conversation_id), "user", text, "done", key)
    answer = add_answer(db, question, n_dropped)
    return Exchange(replace(found, updated_at=question.created_at), question, answer, is_new=True)


def add_answer(db: sqlite3.Connection, question: Message, n_dropped: int) -> Message:
    """An empty answer below the question, beside those that it has."""
    return _add(db, question.conversation_id, question.id, "assistant", "", "streaming", None, n_dropped)


def save(db: sqlite3.Connection, answer_id: int, said: Progress) -> None:
    values = (said.content, _pack(said.tokens), said.vocab, answer_id)
    db.execute("UPDATE messages SET content = ?, tokens = ?, vocab = ? WHERE id = ?", values)


def progress(db: sqlite3.Connection, answer_id: int) -> Progress:
    content, tokens, vocab = db.execute(
        "SELECT content, tokens, vocab FROM messages WHERE id = ?", (answer_id,)
    ).fetchone()
    return Progress(content, _unpack(tokens or b""), vocab or "")


def resume(db: sqlite3.Connection, answer_id: int, n_dropped: int) -> Message:
    """The answer is being written again, from where it was cut off."""
    db.execute(
        "UPDATE messages SET status = 'streaming', finish_reason = NULL, error_code = NULL, error_message = NULL,"
        " n_resumed = n_resumed + 1, n_dropped = ? WHERE id = ?",
        (n_dropped, answer_id),
    )
    return _messages(db, "messages WHERE id = ?", answer_id)[0]


def finish(db: sqlite3.Connection, answer_id: int, end: Ending) -> None:
    failure = astuple(end.failure) if end.failure else (None, None)
    usage = astuple(end.usage) if end.usage else (None,) * 6
    db.execute(
        "UPDATE messages SET content = ?, status = ?, finish_reason = ?, error_code = ?, error_message = ?,"
        " n_prompt = ?, n_completion = ?, n_reused = ?, queue_s = ?, prompt_s = ?, decode_s = ? WHERE id = ?",
        (end.content, end.status, end.finish_reason, *failure, *usage, answer_id),
    )
    if end.status in ("done", "error"):  # nobody goes on from here
        db.execute("UPDATE messages SET tokens = NULL, vocab = NULL WHERE id = ?", (answer_id,))


def _new_conversation(db: sqlite3.Connection, owner: str, title: str) -> str:
    id = secrets.token_urlsafe(16)
    values = (id, owner, title, time(), time())
    db.execute("INSERT INTO conversations (id, owner, title, created_at, updated_at) VALUES (?, ?, ?, ?, ?)", values)
    return id


def _add(
    db: sqlite3.Connection,
    conversation_id: str,
    parent_id: int | None,
    role: Role,
    content: str,
    status: Status,
    key: str | None,
    n_dropped: int = 0,
) -> Message:
    now = time()
    cursor = db.execute(
        "INSERT INTO messages (conversation_id, parent_id, role, content, status, key, n_dropped, created_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (conversation_id, parent_id, role, content, status, key, n_dropped, now),
    )
    db.execute("UPDATE conversations SET updated_at = ? WHERE id = ?", (now, conversation_id))
    return _messages(db, "messages WHERE id = ?", cursor.lastrowid)[0]


def _messages(db: sqlite3.Connection, source: str, *values: object) -> tuple[Message, ...]:
    rows = db.execute(
        "SELECT id, conversation_id, parent_id, role, content, status, created_at, finish_reason, n_resumed,"
        " n_dropped, error_code, error_message, n_prompt, n_completion, n_reused, queue_s, prompt_s, decode_s"
        f" FROM {source}",
        values,
    )
    return tuple(_message(*row) for row in rows)


def _message(*row: Any) -> Message:
    (code, text), usage = row[10:12], row[12:]
    failure = None if code is None else Failure(code, text)
    fields: tuple[Any, ...] = (*row[:10], failure, None if usage[0] is None else Usage(*usage))
    return Message(*fields)


def _pack(tokens: tuple[int, ...]) -> bytes:
    return _little_endian(array("I", tokens)).tobytes()


def _unpack(blob: bytes) -> tuple[int, ...]:
    return tuple(_little_endian(array("I", blob)))


def _little_endian(ids: array[int]) -> array[int]:
    """A database may be carried to another machine."""
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
