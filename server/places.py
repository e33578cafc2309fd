"""Where a question is asked, and what its model hears before it: a branch of messages and the settings that hold there.

Everything here runs on a store thread, in a transaction.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from server import branches, conversations, rows
from server.preferences import ChatSettings
from server.records import Message

NONE = ChatSettings()


@dataclass(frozen=True, slots=True)
class Place:
    """conversation_id: None for a new one, which gets `settings`; edits: the question in whose place this one stands,
    None: below what is shown."""

    conversation_id: str | None = None
    edits: int | None = None
    settings: ChatSettings = NONE


@dataclass(frozen=True, slots=True)
class Context:
    """history: first message first; settings: the conversation's own over its owner's preferences."""

    history: tuple[Message, ...]
    settings: ChatSettings

    @property
    def below(self) -> int | None:
        """What the next message will stand below."""
        return self.history[-1].id if self.history else None

    @property
    def system_prompt(self) -> str:
        return self.settings.system_prompt or ""


def before_question(db: sqlite3.Connection, owner: str, place: Place) -> Context:
    """What a question at this place follows. Raises NotFound, and InvalidField for `edits`."""
    preferred = conversations.preferences(db, owner)
    if place.conversation_id is None:
        return Context((), place.settings.over(preferred))
    found = rows.conversation(db, owner, place.conversation_id)
    if place.edits is None:
        leaf = rows.shown_leaf(db, found.id)
    else:
        leaf = branches.parent_of_edit(db, found.id, place.edits)
    return Context(rows.branch(db, leaf), found.settings.over(preferred))


def up_to(db: sqlite3.Connection, owner: str, message_id: int) -> Context:
    """The branch down to this message. Raises NotFound."""
    found = rows.conversation(db, owner, rows.message(db, owner, message_id).conversation_id)
    return Context(rows.branch(db, message_id), found.settings.over(conversations.preferences(db, owner)))
