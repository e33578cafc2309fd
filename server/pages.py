"""The chat page: GET / and /c/{id} are HTML that is complete without a script; the script only sends and listens.

Whose conversation it is, says the session cookie.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from server import answer_events, asking, branches, conversations, lists, rows
from server.answers import may_revive
from server.errors import NotFound
from server.lists import page_of
from server.posts import answered, owner_or_new
from server.preferences import Preferences
from server.records import Conversation, Message
from server.session import form_token, owner_of
from server.state import AppState
from server.templating import render

HEADERS = {"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie"}
"""Out of a cache, an answer would be shown as it was when it was half written."""


@dataclass(frozen=True)
class Shown:
    """A message as the page shows it. `after`: number of the last event that `message.content` covers.

    html: an answer's finished blocks, safe to show; open: its block that is not finished, "" when all are.
    siblings: ids of the messages that could stand here, oldest first; `message` is siblings[sibling_at].
    """

    message: Message
    after: int = 0
    html: Markup = Markup()
    open: Markup = Markup()
    siblings: tuple[int, ...] = ()
    sibling_at: int = 0


async def home(request: Request[AppState]) -> Response:
    """GET /: a new chat, and the list of the old ones; ?q= lists only what is found."""
    return await page(request, None)


async def conversation(request: Request[AppState]) -> Response:
    """GET /c/{id}: a conversation as far as it goes; an answer in the middle goes on from `data-after`.

    One that the server's end has cut off is shown like that too: it goes on when the page listens to it.
    ?leaf= shows the branch through that message, only this time.
    """
    store, leaf = request.state["store"], request.query_params.get("leaf", "")
    try:
        opened = await store.read(_open, owner_of(request), request.path_params["id"], leaf)
    except NotFound:
        preferred = await store.read(conversations.preferences, owner_of(request))
        html = render("gone.html", _language(request, preferred), preferences=preferred)
        return HTMLResponse(html, status_code=404, headers=HEADERS)
    return await page(request, opened)


@dataclass(frozen=True)
class _Opened:
    """A conversation, the branch of it that is looked at, and what stands beside each of its messages."""

    conversation: Conversation
    thread: tuple[Message, ...]
    siblings: list[tuple[int, ...]]


def _open(db: sqlite3.Connection, owner: str, id: str, leaf: str) -> _Opened:
    found = rows.conversation(db, owner, id)
    if leaf.isascii() and leaf.isdigit() and len(leaf) < 19:
        thread = branches.branch_through(db, found.id, int(leaf))
    else:
        thread = rows.branch(db, rows.shown_leaf(db, found.id))
    return _Opened(found, thread, branches.siblings(db, found.id, thread))


async def page(request: Request[AppState], opened: _Opened | None) -> Response:
    owner, query = owner_or_new(request), request.query_params.get("q", "")
    preferred = await request.state["store"].read(conversations.preferences, owner)
    listed = await page_of(request, query)
    engine = request.state["engine"]
    # 50 ms for 500 messages: not on the loop, where the streams of others would wait for it.
    html = await run_in_threadpool(
        render,
        "chat.html",
        _language(request, preferred),
        model=engine.model,
        n_ctx=engine.model.n_ctx,
        official=engine.sampling_defaults,
        preferences=preferred,
        recent=listed.conversations,
        more=listed.before,
        query=query,
        form_token=form_token(request, owner),
        form_key=secrets.token_urlsafe(16),
        **_chat(request, opened),
    )
    return answered(request, HTMLResponse(html, headers=HEADERS), owner)


def _chat(request: Request[AppState], opened: _Opened | None) -> dict[str, object]:
    thread, siblings = (opened.thread, opened.siblings) if opened else ((), [])
    return {
        "conversation": opened.conversation if opened else None,
        "thread": [_shown(request, *pair, pair[0] is thread[-1]) for pair in zip(thread, siblings, strict=True)],
        "memory_begins": _memory_begins(thread),
        "context_used": _context_used(thread),
    }


def _language(request: Request[AppState], preferred: Preferences) -> str:
    return preferred.language or request.headers.get("accept-language", "")


def _shown(request: Request[AppState], message: Message, siblings: tuple[int, ...], is_last: bool) -> Shown:
    """While an answer is being written, its log is ahead of the store."""
    after, at = 0, siblings.index(message.id)
    log = request.state["streams"].get(message.id) if message.status == "streaming" else None
    if log is not None:
        message, after = replace(message, content=log.text), log.last - (log.finished is not None)
    elif is_last and may_revive(message):
        message = replace(message, status="streaming")
    return Shown(message, after, escape(message.content), Markup(), siblings, at)


def _context_used(thread: Sequence[Message]) -> int | None:
    """Tokens of the last prompt and its answer; None: nothing was answered yet."""
    usage = next((message.usage for message in reversed(thread) if message.usage), None)
    return None if usage is None else usage.n_prompt + usage.n_completion


def _memory_begins(thread: Sequence[Message]) -> int | None:
    """The id of the first message that the last answer's model saw; None: all of them. The script counts alike."""
    n_dropped = next((message.n_dropped for message in reversed(thread) if message.role == "assistant"), 0)
    seen = [message.id for message in thread if message.content][n_dropped:]
    return seen[0] if n_dropped and seen else None


routes: list[BaseRoute] = [
    Route("/", home),
    Route("/c/{id}", conversation),
    *answer_events.routes,
    *asking.routes,
    *lists.routes,
]
