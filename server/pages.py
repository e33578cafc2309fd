"""The chat page: GET / and /c/{id} are HTML that is complete without a script; the script only sends and listens.

Whose conversation it is, says the session cookie.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from server import answer_events, asking, conversations
from server.answers import may_revive
from server.errors import NotFound
from server.preferences import Preferences
from server.records import Conversation, Message
from server.session import keep_session, owner_of
from server.state import AppState
from server.templating import render


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
    """GET /: a new chat, and the list of the old ones."""
    return await _page(request, None, ())


async def conversation(request: Request[AppState]) -> Response:
    """GET /c/{id}: a conversation as far as it goes; an answer in the middle goes on from `data-after`.

    One that the server's end has cut off is shown like that too: it goes on when the page listens to it.
    """
    store = request.state["store"]
    try:
        found = await store.conversation(owner_of(request), request.path_params["id"])
    except NotFound:
        return HTMLResponse(render("gone.html", _language(request)), status_code=404)
    return await _page(request, found, await store.thread(found.id))


async def _page(request: Request[AppState], found: Conversation | None, thread: Sequence[Message]) -> Response:
    owner = owner_of(request)
    page = await request.state["store"].read(conversations.listed, owner)
    # 50 ms for 500 messages: not on the loop, where the streams of others would wait for it.
    html = await run_in_threadpool(
        render,
        "chat.html",
        _language(request),
        model=request.state["engine"].model,
        conversation=found,
        recent=page.conversations,
        more=page.before,
        query="",
        thread=[*(_whole(message) for message in thread[:-1]), *(_shown(request, last) for last in thread[-1:])],
        memory_begins=_memory_begins(thread),
        context_used=_context_used(thread),
        preferences=Preferences(),
        official=request.state["engine"].sampling_defaults,
        form_token="",
    )
    # Out of a cache, an answer would be shown as it was when it was half written.
    response = HTMLResponse(html, headers={"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie"})
    if not owner:
        keep_session(request, response, secrets.token_urlsafe(16))
    return response


def _language(request: Request[AppState]) -> str:
    return request.headers.get("accept-language", "")


def _whole(message: Message) -> Shown:
    return Shown(message, html=escape(message.content), siblings=(message.id,))


def _shown(request: Request[AppState], last: Message) -> Shown:
    """The last message: while an answer is being written its log is ahead of the store."""
    if may_revive(last):
        return _whole(replace(last, status="streaming"))
    if last.status != "streaming":
        return _whole(last)
    log = request.state["streams"].get(last.id)
    if log is None:  # its question was stored a moment ago, and it begins
        return _whole(last)
    return replace(_whole(replace(last, content=log.text)), after=log.last - (log.finished is not None))


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
]
