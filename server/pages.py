"""The chat page: GET / and /c/{id} are HTML that is complete without a script; the script only sends and listens.

Whose conversation it is, says the session cookie.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from server import answer_events, asking, lists, plain, transfers
from server.errors import NotFound
from server.page import Opened, context, language, open_conversation, preferences_of, thread_context
from server.posts import answered, owner_or_new
from server.state import AppState
from server.templating import render

HEADERS = {"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie, User-Agent"}
"""Out of a cache, an answer would be shown as it was when it was half written."""


async def home(request: Request[AppState]) -> Response:
    """GET /: a new chat, and the list of the old ones; ?q= lists only what is found."""
    return await _page(request, None)


async def conversation(request: Request[AppState]) -> Response:
    """GET /c/{id}: a conversation as far as it goes; an answer in the middle goes on from `data-after`.

    One that the server's end has cut off is shown like that too: it goes on when the page listens to it.
    ?leaf= shows the branch through that message, only this time.
    """
    try:
        opened = await open_conversation(request, request.path_params["id"])
    except NotFound:
        preferred = await preferences_of(request)
        html = render("gone.html", language(request, preferred), preferences=preferred)
        return HTMLResponse(html, status_code=404, headers=HEADERS)
    return await _page(request, opened)


async def _page(request: Request[AppState], opened: Opened | None) -> Response:
    if plain.is_wanted(request):
        return await plain.page(request, opened)
    owner = owner_or_new(request)
    preferred = await preferences_of(request)
    found = await context(request, owner, preferred, opened)
    accepted = language(request, preferred)

    def html() -> str:
        return render("chat.html", accepted, **found, **thread_context(request, opened))

    return answered(request, HTMLResponse(await run_in_threadpool(html), headers=HEADERS), owner)


routes: list[BaseRoute] = [
    Route("/", home),
    Route("/c/{id}", conversation),
    *answer_events.routes,
    *asking.routes,
    *lists.routes,
    *transfers.routes,
    *plain.routes,
]
