"""The event log of each answer, and how it goes out as server-sent events.

    engine thread ── sink ──> EventLog: 1, 2, 3, … n  <── frames(after=0), frames(after=17), subscribe()

The answer owns itself; a response only listens: a log knows no reader, so a browser may leave, come back with the
number of the last event that it saw, and miss nothing. All readers read the one list; a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import Any, Protocol

from server import logs
from server.answer_frames import Frames, View
from server.engine.sequence import Event, Finished, TextDelta
from server.errors import ShuttingDown
from server.sse import PING, PING_S, RETRY

log = logging.getLogger("sparrow.answers")

N_KEEP = 64
"""Finished logs that stay for those who come back; older answers come out of the store."""

RUN = 1_000_000
"""Numbers that one run of an answer may use, far more than a context has tokens. An answer that was cut off and goes on
is another run: its numbers are larger than any that a reader has seen, whatever the crash took."""


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
        self._request = logs.request_id.get()

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
        if isinstance(event, Finished):
            log_end(event, self._request)

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


def log_end(end: Finished, request: str) -> None:
    """request: the id of the request that the answer belongs to."""
    if log.isEnabledFor(logging.INFO):
        log.info("answer", extra=logs.fields(request=request, **_told(end)))


def _told(end: Finished) -> dict[str, Any]:
    """An answer's end, for the log: numbers, never its text."""
    usage, error = end.usage, None if end.error is None else end.error.code
    return {
        "reason": end.reason,
        **({"error": error} if error else {}),
        "n_prompt": usage.n_prompt,
        "n_completion": usage.n_completion,
        "n_reused": usage.n_reused,
        "queue_ms": round(usage.queue_s * 1000, 1),
        "prompt_ms": round(usage.prompt_s * 1000, 1),
        "decode_ms": round(usage.decode_s * 1000, 1),
    }


class Reading(Protocol):
    """How far the engine is with what comes before the first word."""

    @property
    def place(self) -> int:
        """In the queue, from 1; 0: its turn has come."""

    @property
    def n_done(self) -> int:
        """Tokens of the prompt that are read, of n_prompt."""

    @property
    def n_prompt(self) -> int: ...

    @property
    def left_s(self) -> float | None:
        """Seconds until the first word, as far as the engine can tell."""

    @property
    def loading_s(self) -> float | None:
        """Seconds until the model is loaded again; None: it is."""


class AnswerLog(EventLog):
    """The log of one run of an answer that a page shows: its readers get frames (see server.answer_frames)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, n_resumed: int = 0) -> None:
        super().__init__(loop, n_resumed)
        self.reading: Callable[[], Reading | None] = lambda: None
        """Set by who submits it to the engine. None: nobody knows."""
        self._n_read = 0
        self._frames = Frames(n_resumed * RUN)

    @property
    def is_waiting(self) -> bool:
        """For its first word."""
        return not self._events

    def view(self) -> View:
        """All that is written until now, as a page that is loaded shows it."""
        return self._read().view

    def frames_after(self, n: int, end: Callable[[Finished], dict[str, Any]]) -> tuple[bytes, int]:
        """The frames after number n, b"" when there are none, and the number of the last. `end` makes the final one."""
        frames = self._read()
        if self.finished is not None and not frames.is_closed:
            frames.close(end(self.finished))
        return frames.since(n), frames.last

    def has_told_all(self, n: int) -> bool:
        """Frame n was the last one that there will ever be."""
        return self._frames.is_closed and n == self._frames.last

    def _read(self) -> Frames:
        """What came since the last time becomes one frame; nobody asked for more."""
        new, self._n_read = self._events[self._n_read :], len(self._events)
        said = [event.text for event in new if isinstance(event, TextDelta)]
        if said:
            self._frames.push("".join(said))
        if new and self.finished:
            self._frames.flush()
        return self._frames


class Streams:
    """The logs by the id of their answer: all unfinished ones, and the last N_KEEP of the others."""

    def __init__(self, n_keep: int = N_KEEP) -> None:
        self._logs: dict[Hashable, AnswerLog] = {}
        self._n_keep = n_keep
        self._closed = False

    def open(self, id: Hashable, n_resumed: int = 0) -> AnswerLog:
        """A new log, in the place of an earlier run's. Call it on the event loop. Raises ShuttingDown after `close`."""
        if self._closed:
            raise ShuttingDown("The server is going down: try again in a moment.")
        old = self._logs.pop(id, None)
        assert old is None or old.ended, f"answer {id!r} is being written"
        ended = [key for key, log in self._logs.items() if log.ended]
        for key in ended[: max(0, len(ended) - self._n_keep)]:
            del self._logs[key]
        log = self._logs[id] = AnswerLog(asyncio.get_running_loop(), n_resumed)
        return log

    def get(self, id: Hashable) -> AnswerLog | None:
        """None: there never was one, or it is too old; the text is in the store."""
        return self._logs.get(id)

    def close(self) -> None:
        """End all readers. uvicorn waits for open responses before the lifespan ends, so call this before it does."""
        self._closed = True
        for log in self._logs.values():
            log.close()


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
