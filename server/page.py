"""What the page shows: the templates' context, for the page as it is loaded and for the one that streams."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup
from starlette.requests import Request

from server import branches, conversations, rows
from server.answer_frames import View
from server.answers import may_revive
from server.errors import NotFound
from server.lists import page_of
from server.markdown import render
from server.preferences import Preferences
from server.records import Conversation, Message
from server.session import form_token, owner_of
from server.state import AppState


@dataclass(frozen=True)
class Shown:
    """A message as the page shows it. `after`: number of the last event that `html` and `open` cover.

    html: an answer's finished blocks, safe to show; open: its block that is not finished, "" when all are.
    siblings: ids of the messages that could stand here, oldest first; `message` is siblings[sibling_at].
    """

    message: Message
    after: int = 0
    html: Markup = Markup()
    open: Markup = Markup()
    siblings: tuple[int, ...] = ()
    sibling_at: int = 0


@dataclass(frozen=True)
class Opened:
    """A conversation, the branch of it that is looked at, and what stands beside each of its messages."""

    conversation: Conversation
    thread: tuple[Message, ...]
    siblings: list[tuple[int, ...]]
    views: Mapping[int, View] = field(default_factory=dict)
    """By message id: what is being written, whose log is ahead of the store."""


async def open_conversation(request: Request[AppState], id: str) -> Opened:
    """The conversation, and the branch of it that ?leaf= names, else the one that is shown. Raises
    NotFound."""
    leaf = request.query_params.get("leaf", "")
    found = await request.state["store"].read(_open, owner_of(request), id, leaf)
    written = [message.id for message in found.thread if message.status == "streaming"]
    logs = ((id, request.state["streams"].get(id)) for id in written)
    return replace(found, views={id: log.view() for id, log in logs if log is not None})


def _open(db: sqlite3.Connection, owner: str, id: str, leaf: str) -> Opened:
    found = rows.conversation(db, owner, id)
    thread = rows.branch(db, rows.shown_leaf(db, found.id))
    if leaf.isascii() and leaf.isdigit() and len(leaf) < 19:
        with contextlib.suppress(NotFound):  # deleted since: an address may be older
            thread = branches.branch_through(db, found.id, int(leaf))
    return Opened(found, thread, branches.siblings(db, found.id, thread))


async def context(
    request: Request[AppState], owner: str, preferred: Preferences, opened: Opened | None
) -> dict[str, object]:
    """Everything that chat.html names, its conversation apart: see `thread_context`."""
    query = request.query_params.get("q", "")
    listed = await page_of(request, query)
    engine = request.state["engine"]
    return {
        "model": engine.model,
        "n_ctx": engine.model.n_ctx,
        "official": engine.sampling_defaults,
        "preferences": preferred,
        "conversation": opened.conversation if opened else None,
        "recent": listed.conversations,
        "more": listed.before,
        "query": query,
        "form_token": form_token(request, owner),
        "form_key": secrets.token_urlsafe(16),
    }


async def preferences_of(request: Request[AppState]) -> Preferences:
    return await request.state["store"].read(conversations.preferences, owner_of(request))


def thread_context(request: Request[AppState], opened: Opened | None) -> dict[str, object]:
    """The messages as chat.html shows them. Not for the loop: 50 ms for 500 of them."""
    thread = opened.thread if opened else ()
    return {
        "thread": [_shown(opened, *pair) for pair in zip(thread, opened.siblings, strict=True)] if opened else [],
        "memory_begins": _memory_begins(thread),
        "can_forget": can_forget(thread),
        "context_used": _context_used(thread),
    }


def language(request: Request[AppState], preferred: Preferences) -> str:
    """As an Accept-Language header says it."""
    return preferred.language or request.headers.get("accept-language", "")


def _shown(opened: Opened, message: Message, siblings: tuple[int, ...]) -> Shown:
    at = siblings.index(message.id)
    view = opened.views.get(message.id)
    if view is not None:
        return Shown(message, view.after, Markup(view.settled), Markup(view.open), siblings, at)
    if message is opened.thread[-1] and may_revive(message):
        message = replace(message, status="streaming")
    html = Markup(render(message.content)) if message.role == "assistant" else Markup()
    return Shown(message, 0, html, Markup(), siblings, at)


def _context_used(thread: Sequence[Message]) -> int | None:
    """Tokens of the last prompt and its answer; None: nothing was answered yet."""
    usage = next((message.usage for message in reversed(thread) if message.usage), None)
    return None if usage is None else usage.n_prompt + usage.n_completion


def _memory_begins(thread: Sequence[Message]) -> int | None:
    """The id of the first message that the last answer's model saw; None: all of them. The script counts alike."""
    n_dropped, seen = _seen(thread)
    return seen[0].id if n_dropped and seen else None


def can_forget(thread: Sequence[Message]) -> bool:
    """The last answer's model saw more than its question: going on may forget that. The script counts alike."""
    return len(_seen(thread)[1]) > 2


def _seen(thread: Sequence[Message]) -> tuple[int, list[Message]]:
    """How many messages that say anything the last answer's model did not see, and the others, that answer included."""
    n_dropped = next((message.n_dropped for message in reversed(thread) if message.role == "assistant"), 0)
    return n_dropped, [message for message in thread if message.content or message is thread[-1]][n_dropped:]
