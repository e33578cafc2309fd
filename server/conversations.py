"""The list of an owner's conversations: found, renamed, pinned, deleted, brought back; and what the owner prefers.

Everything here runs on a store thread, in a transaction. A conversation that was deleted is invisible at once and gone
UNDO_S seconds later.
"""

from __future__ import annotations

import base64
import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import time
from typing import Any

from server import branches
from server.errors import InvalidField
from server.fields import storable
from server.preferences import CHAT_FIELDS, Preferences, changed
from server.records import Conversation
from server.rows import CONVERSATION, as_conversation, conversation, settings_json
from server.search import cite, match, put_title

N_PAGE = 100
UNDO_S = 600.0

_Place = tuple[float, float, str]
"""Where it stands in the list: when it was pinned (0: never), when it changed, its id; the largest first."""

_FIRST: _Place = (math.inf, math.inf, "")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list. before: the cursor of the next part, "" at the end; messages: which one a search found."""

    conversations: tuple[Conversation, ...]
    before: str = ""
    messages: tuple[int | None, ...] = ()


def listed(db: sqlite3.Connection, owner: str, before: str = "") -> Page:
    """The pinned ones, then the others, the last changed first. Raises InvalidField when `before` is no cursor."""
    found = db.execute(
        f"SELECT {CONVERSATION}, coalesce(pinned_at, 0) AS pin FROM conversations WHERE owner = ?"
        " AND deleted_at IS NULL AND (pin, updated_at, id) < (?, ?, ?)"
        f" ORDER BY pin DESC, updated_at DESC, id DESC LIMIT {N_PAGE + 1}",
        (owner, *_place(before)),
    ).fetchall()
    return _page([as_conversation(row[:-1]) for row in found], [row[-1] for row in found], [])


def found(db: sqlite3.Connection, owner: str, query: str, before: str = "") -> Page:
    """Conversations with a title or a message that has every word of the query, the last changed first."""
    wanted = match(query)
    if wanted is None:
        return Page(())
    hits = db.execute(
        "WITH said AS (SELECT conversation_id, max(messages.id) AS message FROM message_index"
        " JOIN messages ON messages.id = message_index.rowid WHERE message_index MATCH ?1 GROUP BY conversation_id),"
        " titled AS (SELECT conversation_id FROM title_index WHERE title_index MATCH ?1)"
        f" SELECT {CONVERSATION}, message FROM conversations LEFT JOIN said ON conversation_id = id"
        " WHERE owner = ?2 AND deleted_at IS NULL AND (message IS NOT NULL OR id IN (SELECT * FROM titled))"
        f" AND (0, updated_at, id) < (?3, ?4, ?5) ORDER BY updated_at DESC, id DESC LIMIT {N_PAGE + 1}",
        (wanted, owner, *_place(before)),
    ).fetchall()
    cited = cite(db, wanted, [row[-1] for row in hits[:N_PAGE] if row[-1] is not None])
    conversations = [replace(as_conversation(row[:-1]), snippet=cited.get(row[-1], ())) for row in hits]
    return _page(conversations, [0.0] * len(hits), [row[-1] for row in hits])


def change(
    db: sqlite3.Connection,
    owner: str,
    id: str,
    *,
    title: str | None = None,
    pinned: bool | None = None,
    leaf: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Conversation:
    """Change what is not None; settings: the fields that change. Raises InvalidField, and NotFound, also for a leaf
    that is no message of this conversation."""
    known = conversation(db, owner, id)
    if title is not None:
        db.execute("UPDATE conversations SET title = ? WHERE id = ?", (title, id))
        put_title(db, id, title)
    if pinned is not None:
        (newest,) = db.execute(
            "SELECT coalesce(max(pinned_at), 0) FROM conversations WHERE owner = ?", (owner,)
        ).fetchone()
        now = max(time(), newest + 1e-3)  # above the others also when the clock was set back
        at = "CASE WHEN ? THEN coalesce(pinned_at, ?) END"
        db.execute(f"UPDATE conversations SET pinned_at = {at} WHERE id = ?", (pinned, now, id))
    if leaf is not None:
        branches.show(db, id, leaf)
    if settings is not None:
        chosen = settings_json(changed(known.settings, settings))
        db.execute("UPDATE conversations SET settings = ? WHERE id = ?", (chosen, id))
    return conversation(db, owner, id)


def delete(db: sqlite3.Connection, owner: str, id: str) -> None:
    """Nobody sees it any more. Raises NotFound."""
    conversation(db, owner, id)
    db.execute("UPDATE conversations SET deleted_at = ? WHERE id = ?", (time(), id))


def restore(db: sqlite3.Connection, owner: str, id: str) -> Conversation:
    """Undo `delete`. Raises NotFound when it was too long ago."""
    db.execute(
        "UPDATE conversations SET deleted_at = NULL WHERE id = ? AND owner = ? AND deleted_at > ?",
        (id, owner, time() - UNDO_S),
    )
    return conversation(db, owner, id)


def doomed(db: sqlite3.Connection, now: float) -> list[str]:
    """What the messages say that purge() deletes at this time; none is so long that no model could have read it."""
    query = (
        "SELECT content FROM messages JOIN conversations ON conversations.id = conversation_id"
        " WHERE deleted_at <= ? AND length(content) <= ?"
    )
    return [text for (text,) in db.execute(query, (now - UNDO_S, branches.MAX_READ))]


def purge(db: sqlite3.Connection, now: float | None = None) -> bool:
    """Delete for good what nobody can bring back any more. True: there was something; see `Store.forget`.

    now: seconds since 1970, as the clock says if not given.
    """
    now = time() if now is None else now
    # A clock that was set back must not keep for a year what was deleted in the future.
    db.execute("UPDATE conversations SET deleted_at = ?1 WHERE deleted_at > ?1", (now,))
    gone = db.execute("SELECT id FROM conversations WHERE deleted_at <= ?", (now - UNDO_S,)).fetchall()
    for (id,) in gone:
        db.execute("UPDATE messages SET parent_id = NULL WHERE conversation_id = ?", (id,))  # see branches.delete
        db.execute("DELETE FROM conversations WHERE id = ?", (id,))
    return bool(gone)


def preferences(db: sqlite3.Connection, owner: str) -> Preferences:
    row = db.execute("SELECT value FROM preferences WHERE owner = ?", (owner,)).fetchone()
    return Preferences(**json.loads(row[0])) if row else Preferences()


def prefer(
    db: sqlite3.Connection,
    owner: str,
    fields: Mapping[str, Any],
    languages: frozenset[str] = frozenset(),
    *,
    reset: bool = False,
) -> Preferences:
    """Change these fields; reset: the official values for all that decide an answer, first. Raises InvalidField."""
    known = preferences(db, owner)
    chosen = changed(changed(known, dict.fromkeys(CHAT_FIELDS)) if reset else known, fields, languages)
    value = json.dumps(chosen.as_json(), ensure_ascii=False)
    db.execute("INSERT OR REPLACE INTO preferences VALUES (?, ?)", (owner, value))
    return chosen


def form_secret(db: sqlite3.Connection) -> bytes:
    """What the tokens in this server's forms are made with."""
    value: bytes = db.execute("SELECT value FROM secrets WHERE name = 'form'").fetchone()[0]
    return value


def _page(conversations: list[Conversation], pins: list[float], messages: list[int | None]) -> Page:
    before = ""
    if len(conversations) > N_PAGE:
        last = conversations[N_PAGE - 1]
        place = json.dumps((pins[N_PAGE - 1], last.updated_at, last.id))
        before = base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")
    return Page(tuple(conversations[:N_PAGE]), before, tuple(messages[:N_PAGE]))


def _place(before: str) -> _Place:
    if not before:
        return _FIRST
    try:
        pin, updated_at, id = json.loads(base64.urlsafe_b64decode(before + "=" * (-len(before) % 4)))
        return float(pin), float(updated_at), storable(str(id))
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidField("before", "give what the last page of the list said, or leave it out.") from None
