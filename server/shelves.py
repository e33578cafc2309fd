"""Conversations out of the store and into it, whole. Everything here runs on a store thread, in a transaction."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3

from server import branches, rows
from server.portable import Portable, PortableMessage
from server.records import Message
from server.search import put_message, put_title


def ids(db: sqlite3.Connection, owner: str) -> list[str]:
    """All of the owner's conversations, the oldest first."""
    found = db.execute(
        "SELECT id FROM conversations WHERE owner = ? AND deleted_at IS NULL ORDER BY created_at, id", (owner,)
    )
    return [id for (id,) in found]


def thread(db: sqlite3.Connection, owner: str, id: str) -> tuple[str, tuple[Message, ...]]:
    """The title and the branch that is shown. Raises NotFound."""
    found = rows.conversation(db, owner, id)
    return found.title, rows.branch(db, rows.shown_leaf(db, id))


def take(db: sqlite3.Connection, owner: str, id: str) -> Portable:
    """The conversation with all its branches. Raises NotFound."""
    found = rows.conversation(db, owner, id)
    leaf = rows.shown_leaf(db, id)  # said also where it is the newest: whoever reads the file numbers them anew
    messages = db.execute(
        "SELECT CAST(id AS TEXT), CAST(parent_id AS TEXT), role, content, status, created_at, finish_reason"
        " FROM messages WHERE conversation_id = ? ORDER BY id",
        (id,),
    )
    return Portable(
        id,
        found.title,
        found.created_at,
        found.updated_at,
        found.pinned,
        found.settings,
        None if leaf is None else str(leaf),
        tuple(PortableMessage(*row) for row in messages),
    )


def put(db: sqlite3.Connection, owner: str, found: Portable) -> bool:
    """Add the conversation. False: it is here already, from an earlier import or because it came from here."""
    id = _id(owner, found)
    known = "SELECT 1 FROM conversations WHERE id IN (?, ?) AND owner = ? AND deleted_at IS NULL"
    if db.execute(known, (id, found.id, owner)).fetchone():
        return False
    db.execute("UPDATE messages SET parent_id = NULL WHERE conversation_id = ?", (id,))
    db.execute("DELETE FROM conversations WHERE id = ?", (id,))  # it was deleted, and could still have been restored
    settings, pinned_at = rows.settings_json(found.settings), found.updated_at if found.pinned else None
    db.execute(
        "INSERT INTO conversations (id, owner, title, created_at, updated_at, pinned_at, settings)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (id, owner, found.title, found.created_at, found.updated_at, pinned_at, settings),
    )
    put_title(db, id, found.title)
    _put_messages(db, id, found)
    return True


def _put_messages(db: sqlite3.Connection, conversation_id: str, found: Portable) -> None:
    ids: dict[str | None, int | None] = {None: None}
    for message in found.messages:
        values = (message.role, message.content, message.status, message.created_at, message.finish_reason)
        ids[message.id] = db.execute(
            "INSERT INTO messages (conversation_id, parent_id, role, content, status, created_at, finish_reason)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (conversation_id, ids[message.parent], *values),
        ).lastrowid
        put_message(db, ids[message.id] or 0, message.content)
    leaf = ids[found.leaf]
    if leaf is not None:
        branches.show(db, conversation_id, leaf)


def _id(owner: str, found: Portable) -> str:
    """The same for the same messages of the same owner, so that a file that is imported twice adds nothing."""
    said = [(message.role, message.content, message.parent) for message in found.messages]
    digest = hashlib.sha256(json.dumps([owner, found.title, said]).encode()).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")
