"""One client's connection. It ends when the client owes something for too long: a request, its body, reading the reply.

    head     the request's first lines, from the moment that it is awaited          HEAD_S
    body     the next kilobyte of what the request announced                        STALL_S
    rest     a body that nobody reads any more: it was answered before its end      REST_S
    reading  the next 16 kB of a reply that is longer than the connection buffers   STALL_S

uvicorn itself waits for ever. Silent connections, those that owe a head, never keep others out: when there are too
many, the one that has been silent for longest goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from itertools import islice
from typing import Any, ClassVar, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
STALL_S = 30.0
REST_S = 120.0
"""Whoever still sends has not read the answer yet."""
CHECK_S = 1.0

MAX_SILENT, FRESH_S = 256, 1.0
"""Connections that may be silent for longer than so many seconds: a burst of new ones is heard first."""
N_FILES = 4096
"""Files that are opened at once, connections among them, where the system allows so many."""
N_SPARE = 96
"""Files that are no connections: the database for each of its threads, snapshots, imports, libraries."""

MAX_UNSENT = 1 << 16
"""Bytes that the system keeps for a reader beside what is on its way: else it takes megabytes for each slow one."""


def _reply(status: str, text: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nConnection: close\r\nRetry-After: 5\r\nContent-Type: text/plain\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode()


TOO_LATE = _reply("408 Request Timeout", "The request did not come in time: send it anew.\n")
FULL = _reply("503 Service Unavailable", "Too many connections are open here: try again in a moment.\n")

Owed = tuple[Literal["head", "body", "rest", "reading"], int]
"""What the client owes, and a number that changes when it gives some of it."""


def _patience(owed: Owed) -> float:
    return {"head": HEAD_S, "body": STALL_S, "rest": REST_S, "reading": STALL_S}[owed[0]]


def allow_files() -> int:
    """Raise this process's limit of open files as far as it may; returns how many connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = N_FILES if hard == resource.RLIM_INFINITY else min(hard, N_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, (N_FILES if soft == resource.RLIM_INFINITY else soft) - N_SPARE)


class Connection(H11Protocol):
    """uvicorn's own protocol, and a look every CHECK_S at what the client owes."""

    n_most: ClassVar[int] = N_FILES - N_SPARE
    """Connections that may be open; see allow_files."""
    _silent: ClassVar[dict[Connection, float]] = {}
    """Those that owe a head, and since when, the oldest first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._n_received = self._n_replies = 0
        self._owed: Owed | None = None
        self._since = 0.0
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        wire = transport.get_extra_info("socket")
        if wire is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # the client has gone already
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)
        self._silent[self] = self.loop.time()
        n_over = max(len(self.connections) - self.n_most, len(self._silent) - MAX_SILENT, 0)
        n_gone = sum([silent._makes_room() for silent in list(islice(self._silent, n_over))])
        if len(self.connections) - n_gone > self.n_most:
            self._refuse(FULL)
        self._watch()

    def _makes_room(self) -> bool:
        """It has been silent for long enough to go for others."""
        is_stale = self.loop.time() - self._silent[self] > FRESH_S
        if is_stale:
            del self._silent[self]
            self.transport.close()
        return is_stale

    def connection_lost(self, exc: Exception | None) -> None:
        self._silent.pop(self, None)
        if self._look:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._n_received += len(data)
        super().data_received(data)
        if not self._owes_head:
            self._silent.pop(self, None)

    def on_response_complete(self) -> None:
        self._n_replies += 1
        super().on_response_complete()
        if self._owes_head and not self.transport.is_closing():
            self._silent[self] = self.loop.time()

    @property
    def _owes_head(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _watch(self) -> None:
        owed, now = self._debt(), self.loop.time()
        if owed != self._owed:
            self._owed, self._since = owed, now
        elif owed and now - self._since >= _patience(owed):
            return self._give_up(owed)
        self._look = self.loop.call_later(CHECK_S, self._watch)

    def _debt(self) -> Owed | None:
        if self.flow.write_paused or self.transport.is_closing():
            return "reading", self.transport.get_write_buffer_size() >> 14
        if self._owes_head:
            return "head", self._n_replies
        if self.conn.their_state is not h11.SEND_BODY or self.flow.read_paused:
            return None
        return ("rest", 0) if self.cycle.response_complete else ("body", self._n_received >> 10)

    def _give_up(self, owed: Owed) -> None:
        """Who began a request is told; who only opened a connection, as browsers do ahead of time, is not."""
        if owed[0] == "head" and self.conn.trailing_data[0]:
            self._refuse(TOO_LATE)
        else:
            self.transport.abort()

    def _refuse(self, reply: bytes) -> None:
        self.transport.write(reply)
        self.transport.close()
