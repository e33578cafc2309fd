"""GET /answers/{id}/events: an answer as server-sent events (delta, reset, end), resumable from any number."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.answers import ending
from server.engine.sequence import Event, TextDelta
from server.records import Ending, Message, Status
from server.session import owner_of
from server.state import AppState
from server.streams import RUN, SSEResponse, frames, sse


async def events(request: Request[AppState]) -> Response:
    """GET /answers/{id}/events?after=n: what came after event n; Last-Event-ID, when a browser comes back, wins.

    An answer that the server's end has cut off goes on now that somebody listens.
    """
    owner = owner_of(request)
    answer = await request.state["store"].message(owner, request.path_params["id"])
    answer = await request.state["answers"].revive(owner, answer)
    seen = request.headers.get("last-event-id") or request.query_params.get("after", "0")
    log = request.state["streams"].get(answer.id)
    if seen == "end" or (log is not None and log.finished and seen == str(log.last)):
        return Response(status_code=204)  # the only status that keeps an EventSource from asking again
    if log is None:
        return SSEResponse(_stored(answer))
    after = int(seen) if seen.isascii() and seen.isdigit() else 0
    return SSEResponse(frames(log, partial(_encode, answer.n_dropped), after=after))


def _encode(n_dropped: int, n: int, event: Event) -> bytes:
    if isinstance(event, TextDelta):
        is_resumed_from = n > RUN and n % RUN == 1
        return _frame("reset" if is_resumed_from else "delta", n, {"text": event.text})
    # Whoever still listens pressed Stop: a server that goes down lets its listeners go before it cancels.
    return _frame("end", n, _end(ending(event, "", stopped=True), n_dropped))


async def _stored(answer: Message) -> AsyncIterator[bytes]:
    """The events of an answer whose log has gone: the whole text at once, and the end."""
    status: Status = "interrupted" if answer.status == "streaming" else answer.status
    yield _frame("reset", 0, {"text": answer.content})
    yield _frame("end", "end", _end(Ending("", status, answer.finish_reason, answer.failure), answer.n_dropped))


def _end(end: Ending, n_dropped: int) -> dict[str, Any]:
    failure = end.failure
    error = None if failure is None else {"code": failure.code, "message": failure.message}
    return {"status": end.status, "reason": end.finish_reason, "error": error, "dropped": n_dropped}


def _frame(event: str, id: int | str, data: dict[str, Any]) -> bytes:
    return sse(json.dumps(data, ensure_ascii=False, separators=(",", ":")), id=id, event=event)


routes: list[BaseRoute] = [Route("/answers/{id:int}/events", events)]
