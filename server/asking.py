"""What a reader does in a conversation: ask, edit, stop, go on, answer again, delete, type.

    POST /messages {text, key, conversation?, edits?, settings?}   a question; its answer begins
    POST /messages/{id}/delete                   the message and all below it
    GET  /messages/{id}/text                     what it says, as it was written
    POST /answers/{id}/stop, /answers/{id}/continue, /answers/{id}/retry
    POST /drafts {text, conversation?, edits?, settings?}   what stands in the box, to be read before it is sent

edits: the question in whose place this one stands, in a branch of its own. settings: of a new conversation.
Errors are JSON, made by the app from the error tree.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from server import conversations
from server.errors import InvalidField, TooLarge
from server.fields import clean
from server.places import Place
from server.posts import answered, owner_or_new, posted
from server.preferences import ChatSettings, changed
from server.records import Exchange
from server.session import owner_of
from server.state import AppState

MAX_TEXT = 100_000
"""Characters of a message; the model's longest context holds about as many of English."""

_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


async def ask(request: Request[AppState]) -> Response:
    """POST /messages: 201 with what was begun, 200 when this key was sent before."""
    body = await posted(request)
    text, key, place = question_text(body.get("text")), question_key(body.get("key")), _place(body)
    owner = owner_or_new(request)
    exchange = await request.state["answers"].ask(owner, place, text, key)
    return answered(request, JSONResponse(_begun(exchange), status_code=201 if exchange.is_new else 200), owner)


def _begun(exchange: Exchange) -> dict[str, Any]:
    found = exchange.conversation
    return {
        "conversation": {"id": found.id, "url": f"/c/{found.id}", "title": found.title},
        "parent": exchange.question.parent_id,
        "question": exchange.question.id,
        "answer": exchange.answer.id,
    }


async def delete(request: Request[AppState]) -> Response:
    """POST /messages/{id}/delete: {"leaf": the last message of what is shown then, null when nothing is}."""
    await posted(request)
    leaf = await request.state["answers"].delete_message(owner_of(request), request.path_params["id"])
    return JSONResponse({"leaf": leaf}, background=BackgroundTask(request.state["store"].forget))


async def text(request: Request[AppState]) -> Response:
    """GET /messages/{id}/text: the Markdown that it is written in, of an answer as far as it goes."""
    message = await request.state["store"].message(owner_of(request), request.path_params["id"])
    log = request.state["streams"].get(message.id) if message.status == "streaming" else None
    return PlainTextResponse(message.content if log is None else log.text, headers={"Cache-Control": "no-store"})


async def stop(request: Request[AppState]) -> Response:
    """POST /answers/{id}/stop: the answer ends as it stands; the events say so."""
    await posted(request)
    answer = await request.state["store"].message(owner_of(request), request.path_params["id"])
    request.state["answers"].stop(answer.id)
    return Response(status_code=204)


async def resume(request: Request[AppState]) -> Response:
    """POST /answers/{id}/continue: an answer that was cut off goes on behind its last word, under the same id."""
    await posted(request)
    answer = await request.state["answers"].resume(owner_of(request), request.path_params["id"])
    return JSONResponse({"answer": answer.id})


async def retry(request: Request[AppState]) -> Response:
    """POST /answers/{id}/retry: another answer to the same question."""
    await posted(request)
    answer = await request.state["answers"].retry(owner_of(request), request.path_params["id"])
    return JSONResponse({"answer": answer.id}, status_code=201)


async def draft(request: Request[AppState]) -> Response:
    """POST /drafts: 204, whether it can be read or not: nobody waits for it. "" takes the last one back."""
    body = await posted(request)
    text, place, owner = body.get("text"), _place(body), owner_of(request)
    if not isinstance(text, str):
        raise InvalidField("text", "give what stands in the box.")
    preferred = await request.state["store"].read(conversations.preferences, owner)
    if len(text) <= MAX_TEXT and preferred.reads_drafts:
        await request.state["answers"].draft(owner, place, clean(text))
    return Response(status_code=204)


def question_text(given: object) -> str:
    """What somebody asks. Raises InvalidField, TooLarge."""
    if not isinstance(given, str) or not clean(given):
        raise InvalidField("text", "write something first.")
    if len(given) > MAX_TEXT:
        raise TooLarge(f"The message has {len(given):,} characters; at most {MAX_TEXT:,} can be sent.", param="text")
    return clean(given)


def question_key(given: object) -> str:
    """The sender's own name for this question; without one, nothing protects from sending it twice."""
    key = secrets.token_urlsafe(16) if given is None else given
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidField("key", "give 16 to 64 letters, digits, - or _.")
    return key


def _place(body: dict[str, Any]) -> Place:
    id, edits, settings = body.get("conversation"), body.get("edits"), body.get("settings")
    if not isinstance(id, (str, type(None))):
        raise InvalidField("conversation", "give the id of a conversation, or leave it out for a new one.")
    if edits is not None and (id is None or isinstance(edits, bool) or not isinstance(edits, int)):
        raise InvalidField("edits", "give the id of a question, and its conversation.")
    if edits is not None and not 0 < edits < 2**63:
        raise InvalidField("edits", f"{edits} is no question of this conversation.")
    if settings is not None and (id is not None or not isinstance(settings, dict)):
        raise InvalidField("settings", "give an object, for a new conversation; an old one has its own.")
    return Place(id, edits, changed(ChatSettings(), settings or {}))


routes: list[BaseRoute] = [
    Route("/messages", ask, methods=["POST"]),
    Route("/messages/{id:int}/delete", delete, methods=["POST"]),
    Route("/messages/{id:int}/text", text),
    Route("/answers/{id:int}/stop", stop, methods=["POST"]),
    Route("/answers/{id:int}/continue", resume, methods=["POST"]),
    Route("/answers/{id:int}/retry", retry, methods=["POST"]),
    Route("/drafts", draft, methods=["POST"]),
]
