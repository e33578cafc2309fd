"""The end of the server: refuse what is new, let what runs end, tell the others, save.

    SIGTERM, Ctrl-C ──> /health 503 "stopping", new answers are refused
                   ──> up to --grace-s for what programs wait for
                   ──> their streams get a last event, the page's answers are saved where they stand
                   ──> sockets, engine (snapshots), store          a second Ctrl-C goes there at once

Nobody waits for the readers of a page's answer: it is kept, and goes on behind its last word at the next start.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from server.loading import Loading
from server.logs import say
from server.observe import Meter

CLOSE_S = 2
"""Seconds that open responses have to send their last event; uvicorn's default is to wait for ever."""

POLL_S = 0.05

_LISTENERS = ("/answers/", "/plain/")
"""Routes that only show what is kept anyway."""


class Server(uvicorn.Server):
    """uvicorn's, which closes its sockets first and waits for streams that nobody has told to end."""

    def __init__(self, config: uvicorn.Config, loading: Loading, meter: Meter, grace_s: float) -> None:
        super().__init__(config)
        self._loading, self._meter, self._grace_s = loading, meter, grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # raised again at the end, they would make an end that was asked for a failure

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._loading.refuse()
        if (n := self._awaited()) and self._grace_s:
            say(f"\nStopping: {_answers(n)} up to {self._grace_s:g} s to end. Ctrl-C stops at once.", n_open=n)
        await self._until_nobody(self._awaited, self._grace_s)
        self._close_doors()
        self._loading.release_readers()
        await self._until_nobody(self._listening, CLOSE_S)  # who hears the end of an answer would not come back for it
        await self._loading.end_answers()
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves at once then, but what was written has to be saved
            await self.lifespan.shutdown()

    async def _until_nobody(self, remaining: Callable[[], int], most_s: float) -> None:
        """Returns when nobody remains, when the time is over, or when the person is impatient."""
        deadline = time.monotonic() + most_s
        while remaining() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(POLL_S)

    def _close_doors(self) -> None:
        """Nobody comes in any more, on an old connection either."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def _awaited(self) -> int:
        return len(self._meter.open) - self._listening()

    def _listening(self) -> int:
        return sum(exchange.route.startswith(_LISTENERS) for exchange in self._meter.open)


def _answers(n: int) -> str:
    return "one request has" if n == 1 else f"{n} requests have"
