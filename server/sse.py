"""The bytes of server-sent events, and the response that they go out in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import StreamingResponse

PING_S = 15.0
"""Seconds of silence after which a comment is sent: proxies close what looks idle, nginx after 60 s."""

PING = b": ping\n\n"

RETRY = b"retry: 1000\n\n"
"""Milliseconds that a browser waits before it reconnects; its own default is 3 to 5 seconds."""

_LINE_END = re.compile(r"\r\n|\r|\n")


def sse(data: str, *, id: int | str | None = None, event: str | None = None) -> bytes:
    """One server-sent event. Line ends of any kind inside `data` arrive as one newline each."""
    head = ("" if event is None else f"event: {event}\n") + ("" if id is None else f"id: {id}\n")
    return (head + "".join(f"data: {line}\n" for line in _LINE_END.split(data)) + "\n").encode()


class SSEResponse(StreamingResponse):
    """text/event-stream, with the headers that keep caches and proxies (nginx reads X-Accel-*) from holding it back."""

    media_type = "text/event-stream"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers({"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", **(headers or {})})
