"""The application: routes, errors, lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from server import api, assets, conversations, metrics, pages
from server.answers import Answers
from server.chat import Chat, ChatMessage
from server.engine.engine import Engine
from server.engine.erasure import Deleted
from server.engine.prefix import MIN_COPY
from server.engine.sequence import Event
from server.errors import QueueFull, SparrowError, StoreFailed
from server.observe import Meter
from server.prompts import before_question
from server.settings import Settings
from server.state import AppState
from server.store import Store
from server.streams import Streams

log = logging.getLogger("sparrow")

PURGE_S = 60.0


async def _sparrow_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SparrowError)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else {}
    if error.status == 503:
        headers["Retry-After"] = "5"
    return JSONResponse(api.error_json(error), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the same form as all other errors; the page has its own 404."""
    assert isinstance(error, HTTPException)
    hint = "; GET /docs lists what there is" if request.url.path.startswith("/v1") else ""
    allowed = (error.headers or {}).get("Allow", "another method")
    known = {
        404: ("not_found", f"{request.url.path}: there is nothing here{hint}."),
        405: ("method_not_allowed", f"{request.method} is not possible here; use {allowed}."),
    }
    code, message = known.get(error.status_code, ("http_error", error.detail))
    plain = SparrowError(message)
    plain.status, plain.code = error.status_code, code
    return JSONResponse(api.error_json(plain), status_code=error.status_code, headers=error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    """In the middle of what it sent: nobody is there to read this, and it is no mistake of ours."""
    return Response(status_code=499)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    plain = SparrowError("Something went wrong inside the server; its log says what.")
    return JSONResponse(api.error_json(plain), status_code=500)


def routes() -> list[BaseRoute]:
    """All that the server answers to."""
    return [*api.routes, *metrics.routes, *pages.routes, *assets.routes]


def create_app(settings: Settings, engine: Engine, meter: Meter | None = None) -> Starlette:
    """The ASGI application. Its lifespan starts the engine and opens the store, and ends both.

    meter: what /metrics tells of requests; who observes them fills it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[AppState]:
        chat = Chat(engine.chat_template, engine.vocab)
        streams = app.state.streams = Streams()
        store = await Store.open(settings.data_dir / "sparrow.db")
        answers = Answers(engine, chat, store, streams)
        engine.start()
        await _warm(engine, chat)
        purging = asyncio.create_task(_purge(store, engine))
        try:
            yield AppState(
                settings=settings,
                engine=engine,
                chat=chat,
                store=store,
                streams=streams,
                answers=answers,
                form_secret=await store.read(conversations.form_secret),
                importing=asyncio.Lock(),
                started_at=int(time.time()),
                meter=meter or Meter(),
            )
        finally:
            purging.cancel()
            streams.close()
            await answers.close()
            await asyncio.to_thread(engine.close)
            await store.close()

    return Starlette(
        routes=routes(),
        exception_handlers={
            SparrowError: _sparrow_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
        lifespan=lifespan,
    )


async def _purge(store: Store, engine: Engine) -> None:
    """Conversations that were deleted go for good when nobody can bring them back any more.

    First what the engine keeps of them: of what the database has forgotten nobody could say any more what it was.
    """
    while True:
        now = time.time()
        try:
            if deleted := Deleted(await store.read(conversations.doomed, now)):
                await run_in_threadpool(engine.erase, deleted)
            if await store.write(conversations.purge, now):
                await store.forget()
        except StoreFailed as error:
            log.warning("deleted conversations are still there: %s", error.message)
        await asyncio.sleep(PURGE_S)


async def _warm(engine: Engine, chat: Chat) -> None:
    """Read what every conversation begins with, the template's own system prompt, before the first one asks for it.

    It takes 0.1 s here. Beside the first question it would take a core from it, and be broken off. The threads that
    render prompts are warmed too: what anyio imports for the first of them takes 40 ms.
    """

    async def prompt(question: str) -> list[int]:
        return await run_in_threadpool(chat.prompt, [ChatMessage("user", question)])

    common = await before_question(prompt)
    if len(common) < MIN_COPY:
        return
    loop, read = asyncio.get_running_loop(), asyncio.Event()

    def sink(_end: Event) -> None:
        loop.call_soon_threadsafe(read.set)

    engine.read_ahead(common, sink)
    await read.wait()
