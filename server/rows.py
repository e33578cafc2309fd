"""The SQL that reads conversations and adds to them. Every function here runs on a store thread, in a transaction."""

from __future__ import annotations

import json
import secrets
import sqlite3
import sys
from array import array
from dataclasses import astuple, replace
from time import time
from typing import Any, Literal

from server.engine.sequence import Usage
from server.errors import NotFound
from server.preferences import ChatSettings
from server.records import Conversation, Ending, Exchange, Failure, Message, Progress, Role, Status, title_of
from server.search import put_message, put_title

CONVERSATION = "id, title, created_at, updated_at, pinned_at, settings"


def conversation(db: sqlite3.Connection, owner: str, id: str) -> Conversation:
    row = db.execute(
        f"SELECT {CONVERSATION} FROM conversations WHERE id = ? AND owner = ? AND deleted_at IS NULL", (id, owner)
    ).fetchone()
    if row is None:
        raise NotFound("There is no such conversation here: it was deleted, or another browser wrote it.")
    return as_conversation(row)


def as_conversation(row: tuple[Any, ...]) -> Conversation:
    """A row of CONVERSATION's columns."""
    id, title, created_at, updated_at, pinned_at, settings = row
    chosen = ChatSettings(**json.loads(settings or "{}"))
    return Conversation(id, title, created_at, updated_at, pinned_at is not None, chosen)


def message(db: sqlite3.Connection, owner: str, id: int) -> Message:
    found = messages(db, "messages WHERE id = ?", id) if id < 2**63 else ()  # a URL may hold any number
    if not found:
        raise NotFound("There is no such message here.")
    conversation(db, owner, found[0].conversation_id)
    return found[0]


def shown_leaf(db: sqlite3.Connection, conversation_id: str) -> int | None:
    """The last message of the branch that is shown: the one that somebody chose, else the newest."""
    row = db.execute(
        "SELECT coalesce((SELECT messages.id FROM conversations JOIN messages ON messages.id = leaf_id"
        " WHERE conversations.id = ?1), (SELECT max(id) FROM messages WHERE conversation_id = ?1))",
        (conversation_id,),
    ).fetchone()
    return row[0]  # type: ignore[no-any-return]


def branch(db: sqlite3.Connection, leaf: int | None) -> tuple[Message, ...]:
    """From the first message down to `leaf`. A parent is always older than its children, so ids give the order."""
    return messages(
        db,
        "messages WHERE id IN (WITH RECURSIVE up(i) AS (SELECT ?1 UNION ALL"
        " SELECT parent_id FROM messages JOIN up ON id = i WHERE parent_id IS NOT NULL) SELECT i FROM up) ORDER BY id",
        leaf,
    )


def exchange(db: sqlite3.Connection, owner: str, key: str) -> Exchange | None:
    """What was begun with this key, if anything was."""
    questions = messages(
        db, "messages WHERE key = ? AND conversation_id IN (SELECT id FROM conversations WHERE owner = ?)", key, owner
    )
    if not questions:
        return None
    found = conversation(db, owner, questions[0].conversation_id)
    answers = messages(db, "messages WHERE parent_id = ? ORDER BY id DESC LIMIT 1", questions[0].id)
    if not answers:
        raise NotFound("This message was sent before, and its answer was deleted.")
    return Exchange(found, questions[0], answers[0], is_new=False)


def begin(
    db: sqlite3.Connection,
    owner: str,
    conversation_id: str | None,
    text: str,
    key: str,
    n_dropped: int,
    below: int | None | Literal["shown"],
    settings: ChatSettings,
) -> Exchange:
    known = exchange(db, owner, key)
    if known:
        return known
    if conversation_id is None:
        conversation_id = new_conversation(db, owner, title_of(text), settings)
    found = conversation(db, owner, conversation_id)
    parent = shown_leaf(db, conversation_id) if below == "shown" else below
    question = _add(db, conversation_id, parent, "user", text, "done", key)
    put_message(db, question.id, text)
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
    """The answer is being written again, from where it was cut off, and shown."""
    db.execute(
        "UPDATE conversations SET leaf_id = ?1 WHERE id = (SELECT conversation_id FROM messages WHERE id = ?1)",
        (answer_id,),
    )
    db.execute(
        "UPDATE messages SET status = 'streaming', finish_reason = NULL, error_code = NULL, error_message = NULL,"
        " n_resumed = n_resumed + 1, n_dropped = ? WHERE id = ?",
        (n_dropped, answer_id),
    )
    return messages(db, "messages WHERE id = ?", answer_id)[0]


def finish(db: sqlite3.Connection, answer_id: int, end: Ending) -> None:
    failure = astuple(end.failure) if end.failure else (None, None)
    usage = astuple(end.usage) if end.usage else (None,) * 6
    updated = db.execute(
        "UPDATE messages SET content = ?, status = ?, finish_reason = ?, error_code = ?, error_message = ?,"
        " n_prompt = ?, n_completion = ?, n_reused = ?, queue_s = ?, prompt_s = ?, decode_s = ? WHERE id = ?",
        (end.content, end.status, end.finish_reason, *failure, *usage, answer_id),
    )
    if not updated.rowcount:  # it was deleted before it could be saved
        return
    put_message(db, answer_id, end.content)
    is_over = end.status == "done" and end.finish_reason not in ("length", "time")
    if end.status == "error" or is_over:  # nobody goes on from here
        db.execute("UPDATE messages SET tokens = NULL, vocab = NULL WHERE id = ?", (answer_id,))


def interrupt(db: sqlite3.Connection) -> None:
    """What a crash has left half written is as far as it goes, until it goes on."""
    for id, content in db.execute("SELECT id, content FROM messages WHERE status = 'streaming'").fetchall():
        db.execute("UPDATE messages SET status = 'interrupted' WHERE id = ?", (id,))
        put_message(db, id, content)


def new_conversation(db: sqlite3.Connection, owner: str, title: str, settings: ChatSettings) -> str:
    id, now = secrets.token_urlsafe(16), time()
    db.execute(
        "INSERT INTO conversations (id, owner, title, created_at, updated_at, settings) VALUES (?, ?, ?, ?, ?, ?)",
        (id, owner, title, now, now, settings_json(settings)),
    )
    put_title(db, id, title)
    return id


def settings_json(settings: ChatSettings) -> str:
    return json.dumps(settings.as_json(), ensure_ascii=False)


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
    # Who adds something wants to see it: it is the newest, which NULL stands for.
    # Newer than all that its owner has also when the clock was set back: the list goes by this.
    db.execute(
        "UPDATE conversations SET leaf_id = NULL, updated_at = (SELECT max(?1, coalesce(max(updated_at) + 1e-3, 0))"
        " FROM conversations WHERE owner = (SELECT owner FROM conversations WHERE id = ?2) AND id != ?2"
        " AND deleted_at IS NULL) WHERE id = ?2",
        (now, conversation_id),
    )
    return messages(db, "messages WHERE id = ?", cursor.lastrowid)[0]


def messages(db: sqlite3.Connection, source: str, *values: object) -> tuple[Message, ...]:
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
