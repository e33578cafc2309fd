"""The event log of each answer, and how it goes out as server-sent events.

    engine thread ── sink ──> EventLog: 1, 2, 3, … n  <── frames(after=0), frames(after=17), subscribe()

The answer owns itself; a response only listens: a log knows no reader, so a browser may leave, come back with the
number of the last event that it saw, and miss nothing. All readers read the one list; a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping

from starlette.responses import StreamingResponse

from server.engine.sequence import Event, Finished, TextDelta
from server.errors import ShuttingDown

N_KEEP = 64
"""Finished logs that stay for those who come back; older answers come out of the store."""

PING_S = 15.0
"""Seconds of silence after which a comment is sent: proxies close what looks idle, nginx after 60 s."""

PING = b": ping\n\n"

RUN = 1_000_000
"""Numbers that one run of an answer may use, far more than a context has tokens. An answer that was cut off and goes on
is another run: its numbers are larger than any that a reader has seen, whatever the crash took."""

RETRY = b"retry: 1000\n\n"
"""Milliseconds that a browser waits before it reconnects; its own default is 3 to 5 seconds."""


class EventLog:
    """The events of one run of an answer, numbered upwards from 1 or, when it was resumed n times, from n * RUN + 1.

    All but `sink` belongs to the event loop's thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, n_resumed: int = 0) -> None:
        self._loop = loop
        self._before = n_resumed * RUN
        self._events: list[Event] = []
        self._closed = False
        self._grown: asyncio.Future[None] = loop.create_future()

    @property
    def last(self) -> int:
        """The number of the newest event; one less than the first number when there is none."""
        return self._before + len(self._events)

    @property
    def finished(self) -> Finished | None:
        """The terminal event, once it is there."""
        last = self._events[-1] if self._events else None
        return last if isinstance(last, Finished) else None

    @property
    def ended(self) -> bool:
        """No reader will get more: the answer is finished, or the server is going down."""
        return self._closed or self.finished is not None

    @property
    def text(self) -> str:
        """The answer as far as it goes: what its events up to `last` say together."""
        return "".join(event.text for event in self._events if isinstance(event, TextDelta))

    @property
    def tokens(self) -> list[int]:
        """The sampled tokens behind `text`."""
        return [token for event in self._events if isinstance(event, TextDelta) for token in event.tokens]

    def sink(self, event: Event) -> None:
        """Append from any thread, without waiting. Never raises: the engine must outlive whoever listens."""
        try:
            self._loop.call_soon_threadsafe(self.append, event)
        except RuntimeError:  # the loop is closed: the process ends, and nobody can read this any more
            pass

    def append(self, event: Event) -> None:
        assert self.finished is None, "an answer ends with exactly one terminal event"
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Let every reader go. Later events are still kept, for who saves the answer."""
        self._closed = True
        self._wake()

    def since(self, n: int) -> Iterator[tuple[int, Event]]:
        """The events after number n that are there now, each with its number."""
        n = max(n, self._before)
        return enumerate(self._events[n - self._before :], n + 1)

    async def wait(self, n: int, timeout_s: float | None = None) -> bool:
        """True as soon as an event after number n is there or none will come; False after timeout_s of silence."""
        if self.last > n or self.ended:
            return True
        # asyncio.wait leaves the future alone when the time is up: other readers wait for the same one.
        done, _ = await asyncio.wait([self._grown], timeout=timeout_s)
        return bool(done)

    async def subscribe(self, after: int = 0) -> AsyncIterator[tuple[int, Event]]:
        """Every event after number `after`, old and new; returns after the terminal one or when the server ends."""
        while True:
            for n, event in self.since(after):
                yield n, event
                after = n
            if self.ended and after >= self.last:
                return
            await self.wait(after)

    def _wake(self) -> None:
        self._grown.set_result(None)
        self._grown = self._loop.create_future()


class Streams:
    """The logs by the id of their answer: all unfinished ones, and the last N_KEEP of the others."""

    def __init__(self, n_keep: int = N_KEEP) -> None:
        self._logs: dict[Hashable, EventLog] = {}
        self._n_keep = n_keep
        self._closed = False

    def open(self, id: Hashable, n_resumed: int = 0) -> EventLog:
        """A new log, in the place of an earlier run's. Call it on the event loop. Raises ShuttingDown after `close`."""
        if self._closed:
            raise ShuttingDown("The server is going down: try again in a moment.")
        old = self._logs.pop(id, None)
        assert old is None or old.ended, f"answer {id!r} is being written"
        ended = [key for key, log in self._logs.items() if log.ended]
        for key in ended[: max(0, len(ended) - self._n_keep)]:
            del self._logs[key]
        log = self._logs[id] = EventLog(asyncio.get_running_loop(), n_resumed)
        return log

    def get(self, id: Hashable) -> EventLog | None:
        """None: there never was one, or it is too old; the text is in the store."""
        return self._logs.get(id)

    def close(self) -> None:
        """End all readers. uvicorn waits for open responses before the lifespan ends, so call this before it does."""
        self._closed = True
        for log in self._logs.values():
            log.close()


_LINE_END = re.compile(r"\r\n|\r|\n")


def sse(data: str, *, id: int | str | None = None, event: str | None = None) -> bytes:
    """One server-sent event. Line ends of any kind inside `data` arrive as one newline each."""
    head = ("" if event is None else f"event: {event}\n") + ("" if id is None else f"id: {id}\n")
    return (head + "".join(f"data: {line}\n" for line in _LINE_END.split(data)) + "\n").encode()


async def frames(
    log: EventLog,
    encode: Callable[[int, Event], bytes],
    *,
    after: int = 0,
    ping_s: float = PING_S,
    resumable: bool = True,
) -> AsyncIterator[bytes]:
    """The body of an SSE response: each event after number `after` through `encode(number, event)`.

    resumable: tell the browser to come back soon after a cut; a client of an API would ask its question again.

    What is there already goes out as one chunk: a browser that comes back catches up in one write.
    """
    if resumable:
        yield RETRY
    while True:
        chunk = b""
        for n, event in log.since(after):
            chunk += encode(n, event)
            after = n
        if chunk:
            yield chunk
        if log.ended and after >= log.last:
            return
        if not await log.wait(after, ping_s):
            yield PING


class SSEResponse(StreamingResponse):
    """text/event-stream, with the headers that keep caches and proxies (nginx reads X-Accel-*) from holding it back."""

    media_type = "text/event-stream"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        super().init_headers({"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", **(headers or {})})
