"""The application: routes, errors, headers, lifespan; and serve(), which runs it until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import api, assets, conversations, pages
from server.answers import Answers
from server.chat import Chat, ChatMessage
from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.engine.prefix import MIN_COPY
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event
from server.errors import QueueFull, SparrowError, StoreFailed, UsageError
from server.settings import Settings
from server.state import AppState
from server.store import Store
from server.streams import Streams

log = logging.getLogger("sparrow")

PURGE_S = 60.0

SHUTDOWN_S = 2
"""Seconds that open responses have to end; uvicorn's default is to wait for ever."""

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)

_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class _SecurityHeaders:
    """Pure ASGI: Starlette's BaseHTTPMiddleware would stand between a stream and its client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


async def _sparrow_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SparrowError)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else None
    return JSONResponse(api.error_json(error), status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in the same form as all other errors; the page has its own 404."""
    assert isinstance(error, HTTPException)
    known = {
        404: ("not_found", f"{request.url.path}: there is nothing here."),
        405: ("method_not_allowed", f"{request.method} is not possible here."),
    }
    code, message = known.get(error.status_code, ("http_error", error.detail))
    plain = SparrowError(message)
    plain.status, plain.code = error.status_code, code
    return JSONResponse(api.error_json(plain), status_code=error.status_code, headers=error.headers)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    plain = SparrowError("Something went wrong inside the server; its log says what.")
    return JSONResponse(api.error_json(plain), status_code=500)


def create_app(settings: Settings, engine: Engine) -> Starlette:
    """The ASGI application. Its lifespan starts the engine and opens the store, and ends both."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[AppState]:
        chat = Chat(engine.chat_template, engine.vocab)
        streams = app.state.streams = Streams()
        store = await Store.open(settings.data_dir / "sparrow.db")
        answers = Answers(engine, chat, store, streams)
        engine.start()
        await _warm(engine, chat)
        purging = asyncio.create_task(_purge(store))
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
            )
        finally:
            purging.cancel()
            streams.close()
            await answers.close()
            await asyncio.to_thread(engine.close)
            await store.close()

    return Starlette(
        routes=[*api.routes, *pages.routes, *assets.routes],
        middleware=[Middleware(_SecurityHeaders)],
        exception_handlers={SparrowError: _sparrow_error, HTTPException: _http_error, Exception: _unexpected},
        lifespan=lifespan,
    )


async def _purge(store: Store) -> None:
    """Conversations that were deleted go for good when nobody can bring them back any more."""
    while True:
        try:
            await store.write(conversations.purge)
        except StoreFailed as error:
            log.warning("deleted conversations are still there: %s", error.message)
        await asyncio.sleep(PURGE_S)


async def _warm(engine: Engine, chat: Chat) -> None:
    """Read what every conversation begins with, the template's own system prompt, before the first one asks for it.

    It takes 0.1 s here. Beside the first question it would take a core from it, and be broken off. The threads that
    render prompts are warmed too: what anyio imports for the first of them takes 40 ms.
    """
    one, other = [await run_in_threadpool(chat.prompt, [ChatMessage("user", text)]) for text in ("a", "b")]
    common = os.path.commonprefix([one, other])
    if len(common) < MIN_COPY:
        return
    loop, read = asyncio.get_running_loop(), asyncio.Event()

    def sink(_end: Event) -> None:
        loop.call_soon_threadsafe(read.set)

    engine.submit(common, SamplingParams(max_tokens=0), sink)
    await read.wait()


class _Server(uvicorn.Server):
    """Tells when it listens, and ends the streams before uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, app: Starlette, settings: Settings) -> None:
        super().__init__(config)
        self._app = app
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            _announce(self._settings)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if hasattr(self._app.state, "streams"):
            self._app.state.streams.close()
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C: uvicorn leaves at once, but what was written has to be saved
            await self.lifespan.shutdown()


def _announce(settings: Settings) -> None:
    print(f"\nSparrow is ready:  {settings.url}\nCtrl-C stops it.", flush=True)
    # Without a screen a terminal browser would take the terminal over.
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if settings.browser and has_screen:
        threading.Thread(target=webbrowser.open, args=(settings.url,), daemon=True).start()


def bind(settings: Settings) -> socket.socket:
    """The server's address, before minutes are spent on a model; it listens later. Raises UsageError."""
    try:
        with socket.create_server((settings.host, settings.port), family=_family(settings)):
            pass  # two sockets may be bound to one port as long as none listens, so this asks whether one can
        bound = socket.socket(_family(settings))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    except OSError as error:
        raise UsageError(_why_not(error, settings)) from None
    return bound


def _family(settings: Settings) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in settings.host else socket.AF_INET


def _why_not(error: OSError, settings: Settings) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {settings.port} is taken by another program: stop that one, or give --port {settings.port + 1}."
    if error.errno == errno.EACCES:
        return f"Port {settings.port} needs the administrator's rights: give a port of 1024 or more, like --port 8000."
    reason = str(error.strerror or error).partition(" (while")[0]
    return f"--host {settings.host} --port {settings.port}: can't listen there ({reason})."


async def _try_store(settings: Settings) -> None:
    """A folder that can't be written is told now, in one line; inside uvicorn it would be a page of traceback."""
    await (await Store.open(settings.data_dir / "sparrow.db")).close()


def _show_progress(done: float) -> bool:
    """From an SD card the weights take half a minute; a person wants to see that they come."""
    if sys.stdout.isatty():
        print(f"{done:4.0%}\b\b\b\b", end="", flush=True)
    return True


def serve(settings: Settings, bound: socket.socket, model_path: Path, *, is_demo: bool) -> int:
    """Load the model, serve until Ctrl-C, and return the exit code. Raises UsageError and ModelFileError."""
    with bound:
        settings = settings.with_port(bound.getsockname()[1])
        asyncio.run(_try_store(settings))
        began = time.monotonic()
        print(f"Loading {model_path.name} … ", end="", flush=True)
        engine = open_engine(
            model_path,
            n_ctx=settings.ctx,
            n_slots=settings.slots,
            n_threads=settings.threads,
            step_s=settings.step_ms / 1000,
            tuned=settings.data_dir / "tuning.json",
            is_demo=is_demo,
            snapshots=settings.data_dir / "kv",
            snapshot_bytes=settings.snapshot_mb * 10**6,
            on_progress=_show_progress,
        )
        seconds, quant = time.monotonic() - began, engine.model.quant
        print(f"{seconds:.1f} s: {quant}, {settings.slots} conversations of {settings.ctx} tokens.", flush=True)
        app = create_app(settings, engine)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S, server_header=False
        )
        server = _Server(config, app, settings)
        try:
            server.run([bound])
        except KeyboardInterrupt:  # uvicorn raises it again once everything has ended
            print("\nStopped.")
        finally:
            engine.close()
    return 0 if server.started else 1
