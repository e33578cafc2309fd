"""A request may be answered before its body has come: too large, not allowed, no such address. Its sender, who is still
sending, has to be able to read that.

On a connection that stays open what follows is let in and thrown away (see connections). One that the sender wants
closed behind the reply is closed by uvicorn at once, and the system answers what still comes with a reset, which takes
the reply with it. Programs with small HTTP libraries, and nginx in front of us, ask for that. So there the body is let
in first.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 100_000_000
"""Of a body that nobody wants: twice the largest that anybody does."""
MOST_S = 60.0


class HearOut:
    """`HearOut(app)` is an ASGI application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _closes_with_body(scope):
            return await self._app(scope, receive, send)
        is_whole = False

        async def receiving() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = is_whole or not message.get("more_body")  # its last piece, or the sender has left
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and not is_whole:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(_throw_away(receiving), MOST_S)
            await send(message)

        await self._app(scope, receiving, sending)


def _closes_with_body(scope: Scope) -> bool:
    """Nothing comes from who waits for a 100 first."""
    headers = Headers(scope=scope)
    closes = scope["http_version"] == "1.0" or headers.get("connection", "").lower() == "close"
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    return closes and has_body and "expect" not in headers


async def _throw_away(receive: Receive) -> None:
    n_bytes, is_more = 0, True
    while is_more and n_bytes < MOST_BYTES:
        message = await receive()
        n_bytes += len(message.get("body", b""))
        is_more = message.get("more_body", False)
