"""Messages are a tree: what stands beside a message, which branch is shown, what goes with a message that is deleted.

Everything here runs on a store thread, in a transaction. A parent's id is always smaller than its children's.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence

from server import rows
from server.errors import InvalidField, NotFound
from server.records import Message

MAX_READ = 400_000
"""Characters: more of one message no context holds."""

_BELOW = (
    "WITH RECURSIVE below(i) AS (SELECT ?1 UNION ALL SELECT id FROM messages JOIN below ON parent_id = i)"
    " SELECT {} FROM below"
)


def newest_leaf(db: sqlite3.Connection, message_id: int) -> int:
    """Where the branch through this message ends: the newest of all below it."""
    return int(db.execute(_BELOW.format("max(i)"), (message_id,)).fetchone()[0])


def branch_through(db: sqlite3.Connection, conversation_id: str, message_id: int) -> tuple[Message, ...]:
    """From the first message down to the newest leaf below this one. Raises NotFound when it is of another one."""
    _check_in(db, conversation_id, message_id)
    return rows.branch(db, newest_leaf(db, message_id))


def siblings(db: sqlite3.Connection, conversation_id: str, thread: Sequence[Message]) -> list[tuple[int, ...]]:
    """For each message of a branch the ids that could stand in its place, its own included, oldest first."""
    children: dict[int | None, list[int]] = defaultdict(list)
    # ORDER BY id: of the index that finds them, so nothing is sorted.
    query = "SELECT id, parent_id FROM messages WHERE conversation_id = ? ORDER BY id"
    for id, parent_id in db.execute(query, (conversation_id,)):
        children[parent_id].append(id)
    return [tuple(children[message.parent_id]) for message in thread]


def parent_of_edit(db: sqlite3.Connection, conversation_id: str, question_id: int) -> int | None:
    """What an edited question will stand below. Raises InvalidField when it is no question of this conversation."""
    row = db.execute(
        "SELECT parent_id FROM messages WHERE id = ? AND conversation_id = ? AND role = 'user'",
        (question_id, conversation_id),
    ).fetchone()
    if row is None:
        raise InvalidField("edits", f"{question_id} is no question of this conversation.")
    return row[0]  # type: ignore[no-any-return]


def show(db: sqlite3.Connection, conversation_id: str, message_id: int) -> None:
    """Show the branch through this message from now on. Raises NotFound."""
    _check_in(db, conversation_id, message_id)
    leaf = newest_leaf(db, message_id)
    db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf, conversation_id))


def delete(db: sqlite3.Connection, message: Message) -> int | None:
    """Delete the message with all below it. Returns the last message of what is shown then, None: nothing is left.

    Shown is the sibling that was made before it, else after it, else what it stood below.
    """
    near = db.execute(
        "SELECT id FROM messages WHERE conversation_id = ? AND parent_id IS ? AND id != ? ORDER BY id > ?, abs(id - ?)",
        (message.conversation_id, message.parent_id, message.id, message.id, message.id),
    ).fetchone()
    gone = db.execute(_BELOW.format("i"), (message.id,)).fetchall()
    # SQLite follows a chain of ON DELETE CASCADE only 1,000 messages deep: so each goes alone.
    db.executemany("UPDATE messages SET parent_id = NULL WHERE id = ?", gone)
    db.executemany("DELETE FROM messages WHERE id = ?", gone)
    leaf = newest_leaf(db, near[0]) if near else message.parent_id
    db.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf, message.conversation_id))
    return rows.shown_leaf(db, message.conversation_id)


def said_below(db: sqlite3.Connection, message: Message) -> tuple[list[str], list[str]]:
    """What the message and all below it say, and what all of its conversation say; nothing too long to be read."""

    def said(of: str, key: int | str) -> list[str]:
        found = db.execute(f"SELECT content FROM messages WHERE {of} AND length(content) <= ?2", (key, MAX_READ))
        return [text for (text,) in found]

    return said(f"id IN ({_BELOW.format('i')})", message.id), said("conversation_id = ?1", message.conversation_id)


def _check_in(db: sqlite3.Connection, conversation_id: str, message_id: int) -> None:
    found = db.execute(
        "SELECT 1 FROM messages WHERE id = ? AND conversation_id = ?", (message_id, conversation_id)
    ).fetchone()
    if found is None:
        raise NotFound("There is no such message in this conversation.")
