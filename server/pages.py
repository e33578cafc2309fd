"""The chat page: GET / and /c/{id} are HTML that is complete without a script; the script only sends and listens.

    POST /messages {text, key, conversation?}   a question; its answer begins
    GET  /answers/{id}/events                   the answer as server-sent events: delta, reset, end
    POST /answers/{id}/stop, /answers/{id}/continue, /answers/{id}/retry
    POST /drafts {text, conversation?}          what stands in the box, to be read before it is sent

Whose conversation it is, says the session cookie. Errors of POST are JSON, made by the app from the error tree.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from server import answer_events
from server.answers import may_revive
from server.body import read_json
from server.errors import InvalidField, InvalidRequest, NotFound, TooLarge
from server.records import Conversation, Message
from server.session import keep_session, owner_of
from server.state import AppState
from server.templating import render

MAX_TEXT = 100_000
"""Characters of a message; the model's longest context holds about as many of English."""

_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")


@dataclass(frozen=True)
class Shown:
    """A message as the page shows it. `after`: number of the last event that `message.content` covers."""

    message: Message
    after: int = 0


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
    # 50 ms for 500 messages: not on the loop, where the streams of others would wait for it.
    html = await run_in_threadpool(
        render,
        "chat.html",
        _language(request),
        model=request.state["engine"].model,
        conversation=found,
        recent=await request.state["store"].recent(owner),
        thread=[*(Shown(message) for message in thread[:-1]), *(_shown(request, last) for last in thread[-1:])],
        memory_begins=_memory_begins(thread),
    )
    # Out of a cache, an answer would be shown as it was when it was half written.
    response = HTMLResponse(html, headers={"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie"})
    if not owner:
        keep_session(request, response, secrets.token_urlsafe(16))
    return response


def _language(request: Request[AppState]) -> str:
    return request.headers.get("accept-language", "")


def _shown(request: Request[AppState], last: Message) -> Shown:
    """The last message: while an answer is being written its log is ahead of the store."""
    if may_revive(last):
        return Shown(replace(last, status="streaming"))
    if last.status != "streaming":
        return Shown(last)
    log = request.state["streams"].get(last.id)
    if log is None:  # its question was stored a moment ago, and it begins
        return Shown(last)
    return Shown(replace(last, content=log.text), after=log.last - (log.finished is not None))


def _memory_begins(thread: Sequence[Message]) -> int | None:
    """The id of the first message that the last answer's model saw; None: all of them. The script counts alike."""
    n_dropped = next((message.n_dropped for message in reversed(thread) if message.role == "assistant"), 0)
    seen = [message.id for message in thread if message.content][n_dropped:]
    return seen[0] if n_dropped and seen else None


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
        await request.state["answers"].draft(owner_of(request), conversation_id, _clean(text))
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
    return _clean(text)


def _clean(text: str) -> str:
    """A lone surrogate is no text: neither SQLite nor the tokenizer takes it."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")


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
    *answer_events.routes,
    Route("/", home),
    Route("/c/{id}", conversation),
    Route("/messages", ask, methods=["POST"]),
    Route("/answers/{id:int}/stop", stop, methods=["POST"]),
    Route("/answers/{id:int}/continue", resume, methods=["POST"]),
    Route("/answers/{id:int}/retry", retry, methods=["POST"]),
    Route("/drafts", draft, methods=["POST"]),
]
