"""Conversations as files: out of the list, and into it.

GET  /c/{id}/export?form=markdown|json      one, to read or to keep
GET  /export                                all of them in one JSON file
POST /import                                such a file, or one of llama-server's or Open WebUI's
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from server import body, shelves
from server.errors import InvalidField, NotFound
from server.imports import Problem, parse
from server.page import language, preferences_of
from server.portable import HEAD, TAIL, attachment, markdown
from server.posts import answered, check_posted, owner_or_new
from server.session import owner_of
from server.state import AppState
from server.templating import catalogue

MAX_FILE = 50_000_000
MAX_PROBLEMS = 100


async def export(request: Request[AppState]) -> Response:
    """GET /c/{id}/export: the branch that is shown as Markdown, or all of it as JSON."""
    form, store = request.query_params.get("form", "markdown"), request.state["store"]
    owner, id = owner_of(request), request.path_params["id"]
    if form == "json":
        found = await store.read(shelves.take, owner, id)
        return _file(HEAD + found.as_json() + TAIL, found.title, ".json", "application/json")
    if form != "markdown":
        raise InvalidField("form", "give markdown or json.")
    title, thread = await store.read(shelves.thread, owner, id)
    words = catalogue(language(request, await preferences_of(request)))
    text = markdown(title, thread, words.gettext("You"), words.gettext("Answer"))
    return _file(text, title, ".md", "text/markdown")


def _file(content: str, title: str, ending: str, media_type: str) -> Response:
    headers = {"Content-Disposition": attachment(title, ending), "Cache-Control": "no-store"}
    return Response(content, headers=headers, media_type=media_type)


async def export_all(request: Request[AppState]) -> Response:
    """GET /export: one at a time, so that many take no memory."""
    owner, store = owner_of(request), request.state["store"]

    async def content() -> AsyncIterator[str]:
        yield HEAD
        between = ""
        for id in await store.read(shelves.ids, owner):
            try:
                yield between + (await store.read(shelves.take, owner, id)).as_json()
                between = ",\n"
            except NotFound:  # it was deleted while the others went out
                pass
        yield TAIL

    name = time.strftime("sparrow-%Y-%m-%d")
    headers = {"Content-Disposition": attachment(name, ".json"), "Cache-Control": "no-store"}
    return StreamingResponse(content(), headers=headers, media_type="application/json")


async def import_file(request: Request[AppState]) -> Response:
    """POST /import: {"imported", "skipped", "problems"}; each conversation whole or not at all."""
    check_posted(request)
    owner, store = owner_or_new(request), request.state["store"]
    raw = await body.read(request, MAX_FILE, "split it, or export fewer conversations at once")
    async with request.state["importing"]:  # 50 MB of JSON are ten times that in memory
        entries = await run_in_threadpool(lambda: list(parse(raw)))
        raw.clear()
        n_imported, problems = 0, [entry.text for entry in entries if isinstance(entry, Problem)]
        found = [entry for entry in entries if not isinstance(entry, Problem)]
        for entry in found:
            n_imported += await store.write(shelves.put, owner, entry)
    more = len(problems) - MAX_PROBLEMS
    said = problems[:MAX_PROBLEMS] + ([f"… and {more} more."] if more > 0 else [])
    content = {"imported": n_imported, "skipped": len(found) - n_imported, "problems": said}
    return answered(request, JSONResponse(content), owner)


routes: list[BaseRoute] = [
    Route("/c/{id}/export", export),
    Route("/export", export_all),
    Route("/import", import_file, methods=["POST"]),
]
