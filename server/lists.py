"""The list of conversations and what is set: read, searched, renamed, pinned, deleted, brought back, preferred.

GET  /conversations?q=&before=       a page of the list, or of what a search finds
POST /conversations/{id}             {title?, pinned?, leaf?, settings?}
POST /conversations/{id}/delete, /conversations/{id}/restore
GET  /preferences, POST /preferences     the owner's; {"reset": true} gives the official values back
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from server import conversations, i18n
from server.conversations import Page
from server.errors import InvalidField
from server.fields import clean, flag, text
from server.posts import answered, owner_or_new, posted
from server.preferences import CHAT_FIELDS, Preferences
from server.records import Conversation
from server.session import owner_of
from server.state import AppState

MAX_TITLE = 200


async def page_of(request: Request[AppState], query: str, before: str = "") -> Page:
    """A page of the owner's list; of what is found, if the query has anything in it."""
    owner, store = owner_of(request), request.state["store"]
    if query.strip():
        return await store.read(conversations.found, owner, clean(query), before)
    return await store.read(conversations.listed, owner, before)


async def listed(request: Request[AppState]) -> Response:
    """GET /conversations: {"conversations": […], "more": …, "before": cursor of the next page or null}."""
    asked = request.query_params
    page = await page_of(request, asked.get("q", ""), asked.get("before", ""))
    messages = page.messages or (None,) * len(page.conversations)
    entries = [
        _entry(found) | ({} if message is None else {"message": message, "snippet": found.snippet})
        for found, message in zip(page.conversations, messages, strict=True)
    ]
    content = {"conversations": entries, "more": bool(page.before), "before": page.before or None}
    return JSONResponse(content, headers={"Cache-Control": "no-store"})


def _entry(found: Conversation) -> dict[str, Any]:
    return {
        "id": found.id,
        "url": f"/c/{found.id}",
        "title": found.title,
        "pinned": found.pinned,
        "updated_at": found.updated_at,
    }


async def change(request: Request[AppState]) -> Response:
    """POST /conversations/{id}: what is given is changed, all of it or nothing; answers the conversation."""
    body = await posted(request)
    unknown = sorted(set(body) - {"title", "pinned", "leaf", "settings"})
    if unknown:
        raise InvalidField(unknown[0][:40], "this can't be changed; give title, pinned, leaf or settings.")
    owner, id, store = owner_of(request), request.path_params["id"], request.state["store"]
    found = await store.write(
        conversations.change,
        owner,
        id,
        title=_title(body["title"]) if "title" in body else None,
        pinned=flag(body["pinned"], "pinned") if "pinned" in body else None,
        leaf=_leaf(body["leaf"]) if "leaf" in body else None,
        settings=_settings(body["settings"]) if "settings" in body else None,
    )
    return JSONResponse({**_entry(found), "settings": found.settings.as_json()})


def _title(given: object) -> str:
    title = " ".join(text(given, "title", MAX_TITLE).split())
    if not title:
        raise InvalidField("title", "give at least one letter.")
    return title


def _leaf(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 < given < 2**63:
        raise InvalidField("leaf", "give the id of a message.")
    return given


def _settings(given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidField("settings", 'give an object, like {"temperature": 0.7}.')
    return given


async def delete(request: Request[AppState]) -> Response:
    """POST /conversations/{id}/delete: invisible at once, gone after UNDO_S; an answer that is being written stops."""
    await posted(request)
    await request.state["answers"].delete_conversation(owner_of(request), request.path_params["id"])
    return JSONResponse({})


async def restore(request: Request[AppState]) -> Response:
    """POST /conversations/{id}/restore: undo."""
    await posted(request)
    await request.state["store"].write(conversations.restore, owner_of(request), request.path_params["id"])
    return JSONResponse({})


async def preferences(request: Request[AppState]) -> Response:
    """GET /preferences: what was chosen, null where the model's official value holds."""
    chosen = await request.state["store"].read(conversations.preferences, owner_of(request))
    return JSONResponse(_chosen(chosen), headers={"Cache-Control": "no-store"})


async def prefer(request: Request[AppState]) -> Response:
    """POST /preferences: any of the fields; null takes one back; {"reset": true} all that decide an answer."""
    body = await posted(request)
    owner, store = owner_or_new(request), request.state["store"]
    reset = flag(body.pop("reset", False), "reset")
    chosen = await store.write(conversations.prefer, owner, body, frozenset(i18n.load()), reset=reset)
    return answered(request, JSONResponse(_chosen(chosen)), owner)


def _chosen(chosen: Preferences) -> dict[str, Any]:
    return dict.fromkeys(CHAT_FIELDS) | chosen.as_json()


routes: list[BaseRoute] = [
    Route("/conversations", listed),
    Route("/conversations/{id}", change, methods=["POST"]),
    Route("/conversations/{id}/delete", delete, methods=["POST"]),
    Route("/conversations/{id}/restore", restore, methods=["POST"]),
    Route("/preferences", preferences),
    Route("/preferences", prefer, methods=["POST"]),
]
