"""Every request gets an id, is counted by its route and, with --log-json, becomes a line when its response has ended.

x-request-id: one that came in is kept if it is 1 to 64 letters, digits, dots, hyphens or underscores, else a new one.
But for that id no label and no line holds what a client chose: an unknown path is "other", an invented method, too.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs

log = logging.getLogger("sparrow.http")

HEADER = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"


@dataclass(eq=False)
class Exchange:
    """One request and its response. status: 0 until the response has begun."""

    id: str
    method: str
    route: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0


@dataclass(frozen=True)
class Meter:
    """What was asked since the process began. The event loop's thread owns it."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By route, method and status."""
    open: set[Exchange] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)


class Observe:
    """ASGI, around everything else: what a guard refuses and what is asked while the model loads count, too."""

    def __init__(self, app: ASGIApp, meter: Meter, routes: Sequence[BaseRoute]) -> None:
        self._app, self._meter = app, meter
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        exchange = Exchange(_id_of(scope), _method_of(scope), self._route_of(scope["path"]))
        logs.request_id.set(exchange.id)  # uvicorn gives each request a context of its own

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)[HEADER] = exchange.id
            await send(message)

        self._meter.open.add(exchange)
        try:
            await self._app(scope, receive, observed)
        finally:
            self._meter.open.discard(exchange)
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        status = exchange.status or 500
        self._meter.requests[exchange.route, exchange.method, status] += 1
        ms = round((time.monotonic() - exchange.began) * 1000, 1)
        log.info("request", extra=logs.fields(method=exchange.method, route=exchange.route, status=status, ms=ms))

    def _route_of(self, path: str) -> str:
        """The template, like /answers/{id:int}/stop: ids in metrics would be a series for each."""
        return next((route.path for route in self._routes if route.path_regex.match(path)), OTHER)


def _id_of(scope: Scope) -> str:
    given = Headers(scope=scope).get(HEADER, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def _method_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else OTHER
