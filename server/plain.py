"""The page for browsers without a script: forms post, and an answer streams into the page as HTML.

    GET  / and /c/{id} with ?plain=1, or from a text browser
    POST /plain/messages {text, conversation, key, token}           a question; then the page with its answer
    POST /plain/stop, /plain/continue, /plain/retry {answer, token}   then the page

`token` says that a form is of this server's own page, and for this session. What was typed comes back with an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from server.answers import Answers, ending
from server.asking import question_key, question_text
from server.body import MAX_BODY, read
from server.engine.sequence import Finished
from server.errors import Forbidden, InvalidRequest, NotFound, SparrowError
from server.page import Opened, can_forget, context, language, open_conversation, preferences_of, thread_context
from server.places import Place
from server.posts import answered, owner_or_new
from server.records import Message
from server.security import refuse_other_sites
from server.session import form_token, is_form_token, owner_of
from server.sse import PING_S
from server.state import AppState
from server.streams import AnswerLog
from server.templating import render

HEADERS = {"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie, User-Agent", "X-Accel-Buffering": "no"}

_TEXT_BROWSER = re.compile(r"w3m|lynx|e?links|dillo|netsurf", re.IGNORECASE)


def is_wanted(request: Request[AppState]) -> bool:
    return "plain" in request.query_params or _is_text_browser(request)


def _is_text_browser(request: Request[AppState]) -> bool:
    return _TEXT_BROWSER.match(request.headers.get("user-agent", "")) is not None


async def page(request: Request[AppState], opened: Opened | None) -> Response:
    """The conversation, None for a new one. An answer that is being written comes as it is written; one that the
    server's end has cut off goes on."""
    if opened and opened.thread:
        last = opened.thread[-1]
        if await request.state["answers"].revive(owner_of(request), last) is not last:
            opened = await open_conversation(request, opened.conversation.id)
        log = request.state["streams"].get(opened.thread[-1].id)
        if log is not None and opened.thread[-1].status == "streaming":
            return await _streaming(request, opened, log)
    return await _whole(request, opened)


async def _whole(
    request: Request[AppState],
    opened: Opened | None,
    problem: SparrowError | None = None,
    draft: str = "",
) -> Response:
    owner = owner_or_new(request)
    html = await _render(request, owner, opened, problem=problem, draft=draft)
    status = problem.status if problem else 200
    return answered(request, HTMLResponse(html, status_code=status, headers=HEADERS), owner)


async def _render(request: Request[AppState], owner: str, opened: Opened | None, **said: object) -> str:
    preferred = await preferences_of(request)
    found = await context(request, owner, preferred, opened)
    accepted = language(request, preferred)
    shown = {"streaming": None, "mark": "", "problem": None, "draft": "", **said}
    shown["is_text_browser"] = _is_text_browser(request)
    return await run_in_threadpool(
        lambda: render("plain.html", accepted, **found, **thread_context(request, opened), **shown)
    )


async def _streaming(request: Request[AppState], opened: Opened, log: AnswerLog) -> Response:
    """The page up to its last answer, the answer block by block, and what stands below it."""
    owner, mark, answer = owner_or_new(request), secrets.token_hex(16), opened.thread[-1]
    html = await _render(request, owner, opened, streaming=answer.id, mark=mark)
    above, _, below = html.partition(mark)
    accepted = language(request, await preferences_of(request))

    async def body() -> AsyncIterator[str]:
        yield above
        async for part in _blocks(log):
            yield part
        shown = _ending(log.finished, request.state["engine"].model.n_ctx)
        shown |= {"form_token": form_token(request, owner), "can_forget": can_forget(opened.thread)}
        yield "</div></div>" + render("plain_end.html", accepted, answer=answer, **shown) + below

    return answered(request, StreamingResponse(body(), media_type="text/html", headers=HEADERS), owner)


def _ending(finished: Finished | None, n_ctx: int) -> dict[str, object]:
    """What the template says below the answer. None: the server goes down."""
    if finished is None:
        return {"status": "interrupted", "reason": None, "failure": None, "is_full": False}
    said, usage = ending(finished, "", stopped=True), finished.usage
    is_full = usage.n_prompt + usage.n_completion >= n_ctx
    return {"status": said.status, "reason": said.finish_reason, "failure": said.failure, "is_full": is_full}


async def _blocks(log: AnswerLog) -> AsyncIterator[str]:
    """Each block of the answer once it is whole; at the server's end what there is of the last one, too."""
    n_sent = 0
    while True:
        n, is_over, view = log.last, log.ended, log.view()
        if len(view.settled) > n_sent:
            yield view.settled[n_sent:]
            n_sent = len(view.settled)
        if is_over:
            yield view.open
            return
        while not await log.wait(n, PING_S):
            yield "<!-- -->\n"


Form = Mapping[str, str]


async def _form(request: Request[AppState]) -> Form:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise InvalidRequest("Send this form from Sparrow's own page.")
    raw = await read(request, MAX_BODY, "send less text")
    try:
        fields = parse_qs(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise InvalidRequest("This form has more fields than any of Sparrow's.") from None
    return {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}


def _check(request: Request[AppState], form: Form) -> None:
    """Raises Forbidden unless the form is of a page that this server made for this session."""
    refuse_other_sites(request.headers)
    if not is_form_token(request, owner_of(request), form.get("token", "")):
        raise Forbidden("This form is of another session, or this browser keeps no cookies: allow them and send again.")


async def _refused(request: Request[AppState], form: Form, problem: SparrowError) -> Response:
    """The page with what was typed, and why it was not taken."""
    opened = None
    with contextlib.suppress(NotFound):
        opened = await open_conversation(request, form.get("conversation", ""))
    return await _whole(request, opened, problem, form.get("text", ""))


def _see(conversation_id: str, message_id: int) -> Response:
    return RedirectResponse(f"/c/{conversation_id}?plain=1#m{message_id}", status_code=303)


async def ask(request: Request[AppState]) -> Response:
    form = await _form(request)
    try:
        _check(request, form)
        text = question_text(form.get("text"))
        key = _key(question_key(form.get("key")), form.get("conversation", ""), text)
        place = Place(form.get("conversation") or None)
        begun = await request.state["answers"].ask(owner_of(request), place, text, key)
    except SparrowError as error:
        return await _refused(request, form, error)
    return _see(begun.conversation.id, begun.question.id)


def _key(*parts: str) -> str:
    """A browser that goes back shows a form that was sent: with other words it asks another question."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


Action = Callable[[Answers, str, Message], Awaitable[Message]]


async def _act(request: Request[AppState], action: Action) -> Response:
    form = await _form(request)
    try:
        _check(request, form)
        id = form.get("answer", "")
        if not (id.isascii() and id.isdigit() and len(id) < 19):
            raise NotFound("There is no such answer here.")
        owner = owner_of(request)
        answer = await request.state["store"].message(owner, int(id))
        shown = await action(request.state["answers"], owner, answer)
    except SparrowError as error:
        return await _refused(request, form, error)
    return _see(shown.conversation_id, shown.id)


async def stop(request: Request[AppState]) -> Response:
    async def action(answers: Answers, _owner: str, answer: Message) -> Message:
        answers.stop(answer.id)
        return answer

    return await _act(request, action)


async def resume(request: Request[AppState]) -> Response:
    return await _act(request, lambda answers, owner, answer: answers.resume(owner, answer.id))


async def retry(request: Request[AppState]) -> Response:
    return await _act(request, lambda answers, owner, answer: answers.retry(owner, answer.id))


routes: list[BaseRoute] = [
    Route("/plain/messages", ask, methods=["POST"]),
    Route("/plain/stop", stop, methods=["POST"]),
    Route("/plain/continue", resume, methods=["POST"]),
    Route("/plain/retry", retry, methods=["POST"]),
]
