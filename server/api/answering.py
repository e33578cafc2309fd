"""From prompts to a reply, whole or streamed: a response owns its answers, and who goes away cancels them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from server import logs
from server.api.choice import Choice, Step
from server.api.errors import error_json
from server.api.report import Report
from server.chat import MAX_RESERVE, ChatMessage, Fitted, Tool
from server.clients import client_of
from server.engine.engine import Engine
from server.engine.request import Handle
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished
from server.errors import ContextOverflow, SparrowError
from server.sse import PING, PING_S, SSEResponse, sse
from server.state import AppState
from server.streams import log_end

DONE = sse("[DONE]")
"""What ends a stream that is complete."""


@dataclass(frozen=True)
class Prompt:
    """Tokens, and one set of parameters for each answer to them."""

    tokens: Sequence[int]
    params: Sequence[SamplingParams]


EventT = TypeVar("EventT")


@dataclass
class Running(Generic[EventT]):
    """Answers of one request that are being written, and their events in the order in which they came."""

    n_open: int
    handles: list[Handle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = logs.request_id.get()
        self._events: list[tuple[int, EventT]] = []
        self._grown: asyncio.Future[None] = self._loop.create_future()

    def sink(self, index: int) -> Callable[[EventT], None]:
        """For the engine's thread: it never waits and never raises."""

        def push(event: EventT) -> None:
            try:
                self._loop.call_soon_threadsafe(self._append, index, event)
            except RuntimeError:  # the loop is closed: the process ends, and nobody can read this any more
                pass

        return push

    def cancel(self) -> None:
        """End what is not at its end."""
        for handle in self.handles:
            handle.cancel()

    async def batches(self) -> AsyncIterator[list[tuple[int, EventT]]]:
        """What has come since the last batch, until all have ended; an empty batch after PING_S of silence."""
        while True:
            batch, self._events = self._events, []
            if batch:
                yield batch
            elif not self.n_open:
                return
            elif not (await asyncio.wait([self._grown], timeout=PING_S))[0]:
                yield []

    def _append(self, index: int, event: EventT) -> None:
        self._events.append((index, event))
        if isinstance(event, Finished):
            self.n_open -= 1
            log_end(event, self._request)
        self._grown.set_result(None)
        self._grown = self._loop.create_future()


class Reply(Protocol):
    """How a route writes its answers. `choices` are pushed to by who calls it."""

    choices: list[Choice]

    def begin(self) -> bytes:
        """What a stream says before the first word."""

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        """The stream's frames for an event of choice `index`, and for what it added to that choice."""

    def end(self) -> bytes:
        """What a stream says behind the end of all choices."""

    def fail(self, error: SparrowError) -> bytes:
        """The last that a stream says: a client must not take a part for the whole."""

    def whole(self) -> dict[str, Any]: ...


async def fitted(
    request: Request[AppState],
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    params: SamplingParams,
    *,
    truncates: bool,
) -> Fitted:
    """The messages as a prompt. truncates: leave the oldest turns out when they don't fit, instead of refusing."""
    chat, n_ctx = request.state["chat"], request.state["engine"].model.n_ctx
    if not truncates:
        return Fitted(await run_in_threadpool(chat.prompt, messages, tools), 0)
    n_reserve = min(params.max_tokens or MAX_RESERVE, n_ctx // 2)
    return await run_in_threadpool(chat.fit, messages, n_ctx, n_reserve, tools)


async def submit(request: Request[AppState], prompts: Sequence[Prompt], field: str = "messages") -> Running[Event]:
    """Have all prompts answered. field: which one they come from, for what is wrong with them.

    Raises what Engine.submit raises, and then none of them runs. In a thread: a large grammar takes a while to be read.
    """
    running = Running[Event](sum(len(prompt.params) for prompt in prompts))
    try:
        await run_in_threadpool(_submit, request.state["engine"], client_of(request), prompts, running)
    except BaseException as error:
        running.cancel()
        if isinstance(error, ContextOverflow):
            error.param = field
        raise
    return running


def _submit(engine: Engine, client: str, prompts: Sequence[Prompt], running: Running[Event]) -> None:
    n = 0
    for prompt in prompts:
        sinks = [running.sink(n + at) for at in range(len(prompt.params))]
        running.handles += engine.submit_all(prompt.tokens, prompt.params, sinks, client=client)
        n += len(sinks)


def reply_headers(request: Request[AppState], running: Running[Any], report: Report) -> dict[str, str]:
    """x-queue-position: how many are before it, 0 where a slot is free; x-ignored-params: what was not honoured."""
    place, stats = running.handles[0].progress().place, request.state["engine"].stats()
    n_free = len(stats.slots) - stats.n_running  # drafts give way
    return {"x-queue-position": str(max(0, place - n_free)), **report.headers()}


async def respond(
    request: Request[AppState],
    running: Running[Event],
    reply: Reply,
    report: Report,
    stream: bool,
    then: BackgroundTask | None = None,
) -> Response:
    """The answers as `reply` writes them. Raises the first error of an answer that is not streamed.

    then: run when all has gone out."""
    headers = reply_headers(request, running, report)
    if stream:
        return OwningResponse(_frames(running, reply), running, headers, then)
    try:
        is_complete = await complete_or_gone(request, _collect(running, reply))
    finally:
        running.cancel()
    if not is_complete:
        return Response(status_code=499)
    return JSONResponse(reply.whole(), headers=headers, background=then)


class OwningResponse(SSEResponse):
    """Cancels its answers however the response ends; after their own end that does nothing."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        running: Running[Event],
        headers: dict[str, str] | None = None,
        then: BackgroundTask | None = None,
    ) -> None:
        super().__init__(body, headers=headers, background=then)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


async def _frames(running: Running[Event], reply: Reply) -> AsyncIterator[bytes]:
    """What is there goes out as one write."""
    yield reply.begin()
    async for batch in running.batches():
        frames = b"" if batch else PING
        for index, event in batch:
            steps = reply.choices[index].push(event)
            if isinstance(event, Finished) and event.error is not None:
                yield frames + reply.fail(event.error)
                return
            frames += reply.encode(index, steps, event)
        yield frames
    yield reply.end()


def error_frame(error: SparrowError) -> bytes:
    return sse(json.dumps(error_json(error), ensure_ascii=False))


async def _collect(running: Running[Event], reply: Reply) -> None:
    """Raises the first error of an answer."""
    async for batch in running.batches():
        for index, event in batch:
            reply.choices[index].push(event)
            if isinstance(event, Finished) and event.error is not None:
                raise event.error


async def complete_or_gone(request: Request[AppState], work: Coroutine[Any, Any, None]) -> bool:
    """False: the reader hung up before the work was done, nobody is there to read a reply. Raises what work does."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        working.cancel()
        leaving.cancel()
