"""GET /answers/{id}/events: an answer as server-sent events, resumable from any number.

delta  {"settled"?, "open"?, "tail"?, "text"?}   see server.live.Patch: a field that is not there changes nothing
reset  {"settled", "open"}                       all that is written: forget what was shown
wait   {"queue", "read", "left_s"}               before the first word: place in the queue, part of the prompt read
       {"loading", "left_s"}                     the same while the model, unloaded when idle, is loaded again
end    {"status", "reason", "error", "dropped", "stats"}
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.answer_frames import frame
from server.answers import ending
from server.engine.sequence import Finished, Usage
from server.markdown import render
from server.records import Ending, Message, Status
from server.session import owner_of
from server.sse import PING, PING_S, RETRY, SSEResponse
from server.state import AppState
from server.streams import AnswerLog, Reading

WAIT_S = 0.5
"""Seconds between two events that say how the waiting goes."""


async def events(request: Request[AppState]) -> Response:
    """GET /answers/{id}/events?after=n: what came after event n; Last-Event-ID, when a browser comes back, wins.

    An answer that the server's end has cut off goes on now that somebody listens.
    """
    owner = owner_of(request)
    answer = await request.state["store"].message(owner, request.path_params["id"])
    answer = await request.state["answers"].revive(owner, answer)
    seen = request.headers.get("last-event-id") or request.query_params.get("after", "0")
    log = request.state["streams"].get(answer.id)
    after = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else 0
    if seen == "end" or (log is not None and log.has_told_all(after)):
        return Response(status_code=204)  # the only status that keeps an EventSource from asking again
    if log is None:
        return SSEResponse(_stored(answer))
    return SSEResponse(frames(log, answer, after))


async def frames(log: AnswerLog, answer: Message, after: int = 0, *, ping_s: float = PING_S) -> AsyncIterator[bytes]:
    """The body: what is there already as one chunk, then each frame as it comes, until the end of answer or server."""

    def end(event: Finished) -> dict[str, Any]:
        # Whoever still listens pressed Stop: a server that goes down lets its listeners go before it cancels.
        return _end(ending(event, "", stopped=True), answer)

    yield RETRY
    waiting = Waiting(log)
    while True:
        chunk, after = log.frames_after(after, end)
        n, is_over = log.last, log.ended  # as of now: more may come while the chunk is on its way
        if chunk:
            yield chunk
        if is_over:
            return
        silent_s, step_s = 0.0, min(ping_s, WAIT_S if log.is_waiting else ping_s)
        while not await log.wait(n, step_s):
            silent_s += step_s
            news = waiting.news(time.monotonic()) if log.is_waiting else None
            if news is not None or silent_s >= ping_s:
                yield PING if news is None else frame("wait", None, news)
                silent_s = 0.0


class Waiting:
    """What one reader is told until the first word comes."""

    def __init__(self, log: AnswerLog) -> None:
        self._log = log
        self._told: dict[str, Any] | None = None
        self._began: tuple[float, int] | None = None

    def news(self, now: float) -> dict[str, Any] | None:
        """At time `now`, in seconds; None: nothing new."""
        reading = self._log.reading()
        if reading is None:
            return None
        told = self._of(reading, now)
        if told == self._told:
            return None
        self._told = told
        return told

    def _of(self, reading: Reading, now: float) -> dict[str, Any]:
        if reading.loading_s is not None:
            return {"loading": True, "left_s": round(reading.loading_s, 1)}
        read = round(reading.n_done / max(1, reading.n_prompt), 3)
        return {"queue": reading.place, "read": read, "left_s": self._left_s(now, reading)}

    def _left_s(self, now: float, reading: Reading) -> float | None:
        """The engine's own estimate, which knows who else is there; else as long as the rest takes at the speed since
        reading began. None while nobody can tell."""
        if reading.left_s is not None:
            return round(reading.left_s, 1)
        if reading.place:
            return None
        self._began = self._began or (now, reading.n_done)
        seconds, n_read = now - self._began[0], reading.n_done - self._began[1]
        return round((reading.n_prompt - reading.n_done) * seconds / n_read, 1) if n_read > 0 else None


async def _stored(answer: Message) -> AsyncIterator[bytes]:
    """The events of an answer whose log has gone: the whole text at once, and the end."""
    status: Status = "interrupted" if answer.status == "streaming" else answer.status
    settled = await run_in_threadpool(render, answer.content)
    yield frame("reset", 0, {"settled": settled, "open": ""})
    end = Ending("", status, answer.finish_reason, answer.failure, answer.usage)
    yield frame("end", "end", _end(end, answer))


def _end(end: Ending, answer: Message) -> dict[str, Any]:
    failure = end.failure
    return {
        "status": end.status,
        "reason": end.finish_reason,
        "error": None if failure is None else {"code": failure.code, "message": failure.message},
        "dropped": answer.n_dropped,
        "stats": stats(end.usage),
    }


def stats(usage: Usage | None) -> dict[str, Any] | None:
    """What an answer cost, for who wants to know. None: it never came to the engine."""
    if usage is None or not usage.n_prompt:
        return None
    return {
        "n_prompt": usage.n_prompt,
        "n_reused": usage.n_reused,
        "n_completion": usage.n_completion,
        "first_token_s": round(usage.queue_s + usage.prompt_s, 3),
        "tokens_per_s": round(usage.n_completion / usage.decode_s, 1) if usage.decode_s > 0 else 0.0,
    }


routes: list[BaseRoute] = [Route("/answers/{id:int}/events", events)]
