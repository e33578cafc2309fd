"""What a reader does in a conversation: ask, stop, go on, answer again, type.

    POST /messages {text, key, conversation?}   a question; its answer begins
    POST /answers/{id}/stop, /answers/{id}/continue, /answers/{id}/retry
    POST /drafts {text, conversation?}          what stands in the box, to be read before it is sent

Errors are JSON, made by the app from the error tree.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from server.body import read_json
from server.errors import InvalidField, InvalidRequest, TooLarge
from server.fields import clean
from server.session import keep_session, owner_of
from server.state import AppState

MAX_TEXT = 100_000
"""Characters of a message; the model's longest context holds about as many of English."""

_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


async def ask(request: Request[AppState]) -> Response:
    """POST /messages: 201 with what was begun, 200 when this key was sent before."""
    body = await _json(request)
    text, key, conversation_id = _text(body), _key(body), _conversation(body)
    owner = owner_of(request) or secrets.token_urlsafe(16)
    exchange = await request.state["answers"].ask(owner, conversation_id, text, key)
    found = exchange.conversation
    response = JSONResponse(
        {
            "conversation": {"id": found.id, "url": f"/c/{found.id}", "title": found.title},
            "parent": exchange.question.parent_id,
            "question": exchange.question.id,
            "answer": exchange.answer.id,
        },
        status_code=201 if exchange.is_new else 200,
    )
    if not owner_of(request):
        keep_session(request, response, owner)
    return response


async def stop(request: Request[AppState]) -> Response:
    """POST /answers/{id}/stop: the answer ends as it stands; the events say so."""
    await _json(request)
    answer = await request.state["store"].message(owner_of(request), request.path_params["id"])
    request.state["answers"].stop(answer.id)
    return Response(status_code=204)


async def resume(request: Request[AppState]) -> Response:
    """POST /answers/{id}/continue: an answer that was cut off goes on behind its last word, under the same id."""
    await _json(request)
    answer = await request.state["answers"].resume(owner_of(request), request.path_params["id"])
    return JSONResponse({"answer": answer.id})


async def draft(request: Request[AppState]) -> Response:
    """POST /drafts: 204, whether it can be read or not: nobody waits for it. "" takes the last one back."""
    body = await _json(request)
    text, conversation_id = body.get("text"), _conversation(body)
    if not isinstance(text, str):
        raise InvalidField("text", "give what stands in the box.")
    if len(text) <= MAX_TEXT:
        await request.state["answers"].draft(owner_of(request), conversation_id, clean(text))
    return Response(status_code=204)


async def retry(request: Request[AppState]) -> Response:
    """POST /answers/{id}/retry: another answer to the same question."""
    await _json(request)
    answer = await request.state["answers"].retry(owner_of(request), request.path_params["id"])
    return JSONResponse({"answer": answer.id}, status_code=201)


async def _json(request: Request[AppState]) -> dict[str, Any]:
    """The body, which no form of another site can send: application/json needs the permission of this one."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("Send the body as application/json.")
    return await read_json(request)


def _text(body: dict[str, Any]) -> str:
    text = body.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InvalidField("text", "write something first.")
    if len(text) > MAX_TEXT:
        raise TooLarge(f"The message has {len(text):,} characters; at most {MAX_TEXT:,} can be sent.", param="text")
    return clean(text)


def _conversation(body: dict[str, Any]) -> str | None:
    id = body.get("conversation")
    if not isinstance(id, (str, type(None))):
        raise InvalidField("conversation", "give the id of a conversation, or leave it out for a new one.")
    return id


def _key(body: dict[str, Any]) -> str:
    """The sender's own name for this question; without one, nothing protects from sending it twice."""
    key = body.get("key", secrets.token_urlsafe(16))
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise InvalidField("key", "give 16 to 64 letters, digits, - or _.")
    return key


routes: list[BaseRoute] = [
    Route("/messages", ask, methods=["POST"]),
    Route("/answers/{id:int}/stop", stop, methods=["POST"]),
    Route("/answers/{id:int}/continue", resume, methods=["POST"]),
    Route("/answers/{id:int}/retry", retry, methods=["POST"]),
    Route("/drafts", draft, methods=["POST"]),
]
