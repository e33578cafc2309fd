"""What is said while the model is loading: the port is open from the first moment. Then the app answers.

files of the page     as ever
GET /health           503 {"status": "loading", "progress": 0.43}, at the other end of its life {"status": "stopping"}
GET, for a browser    503 and a page that shows how far it is, and goes on by itself
all else              503 and an error of the usual form: try again
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server import assets
from server.api import error_json
from server.engine.engine import Engine
from server.errors import ModelLoading, SparrowError
from server.templating import render

RETRY = {"Retry-After": "1", "Cache-Control": "no-store"}

Open = Callable[[Callable[[float], bool]], Engine]
"""Loads the model; is told a function that takes the share that is there (0 to 1) and says whether to go on."""


class Loading:
    """An ASGI application that has the app of an engine made as soon as there is one. Its lifespan is both theirs."""

    def __init__(self, open: Open, make: Callable[[Engine], Starlette], on_ready: Callable[[], None]) -> None:
        self._open, self._make, self._on_ready = open, make, on_ready
        self.on_end: Callable[[], None] = lambda: None
        """Called when nothing more can be served: see `error`."""
        self.app: Starlette | None = None
        self.error: Exception | None = None
        """Why the model could not be loaded."""
        self._engine: Engine | None = None
        self._is_refusing = False
        self._state: Mapping[str, Any] = {}
        self._done = 0.0
        self._is_stopped = False
        self._stop = asyncio.Event()
        every = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        self._meanwhile = Starlette(
            routes=[*assets.routes, Route("/health", self._health), Route("/{path:path}", self._wait, methods=every)],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._is_refusing and scope.get("path") == "/health":
            await JSONResponse({"status": "stopping"}, status_code=503, headers=RETRY)(scope, receive, send)
        elif self.app is None:
            await self._meanwhile(scope, receive, send)
        else:
            await self.app({**scope, "state": dict(self._state)}, receive, send)

    def refuse(self) -> None:
        """The server is about to stop: no answer begins any more, those that run may end."""
        self._is_refusing = True
        if self._engine is not None:
            self._engine.refuse()

    def release_readers(self) -> None:
        """Those of a page's answers: they come back to the next server, where the answers go on."""
        if self.app is not None:
            self.app.state.streams.close()

    async def end_answers(self) -> None:
        """A program's stream gets its last event, a page's answer is kept as it stands."""
        if self.app is not None and self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        serving = asyncio.create_task(self._serve())
        serving.add_done_callback(lambda _: self.on_end())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._is_stopped = True
        self._stop.set()
        await serving
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self) -> None:
        try:
            engine = await asyncio.to_thread(self._open, self._go_on)
        except Exception as error:  # a mistake of ours too: uvicorn would print it and end as if all were well
            self.error = None if self._is_stopped and isinstance(error, SparrowError) else error
            return
        self._engine = engine
        try:
            app = self._make(engine)
            async with app.router.lifespan_context(app) as state:
                self._state, self.app = state or {}, app
                self._on_ready()
                await self._stop.wait()
        except Exception as error:
            self.error = None if self._is_refusing and isinstance(error, SparrowError) else error
        finally:
            await asyncio.to_thread(engine.close)

    def _go_on(self, done: float) -> bool:
        self._done = done
        return not self._is_stopped

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "loading", "progress": round(self._done, 2)}, status_code=503, headers=RETRY)

    async def _wait(self, request: Request) -> Response:
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            page = render("loading.html", request.headers.get("accept-language", ""), progress=self._done)
            return HTMLResponse(page, status_code=503, headers=RETRY)
        return JSONResponse(error_json(ModelLoading(self._done)), status_code=503, headers=RETRY)
