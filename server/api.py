"""The APIs for programs: OpenAI's /v1/*, /health, and the tiny /stream that older pages are written for.

Here a response owns its answer: nobody can come back to it, so a client that goes away cancels it.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.api_request import ChatRequest, parse_chat
from server.body import read_json
from server.chat import MAX_RESERVE, ChatMessage, Fitted
from server.engine.request import Handle
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.errors import InvalidField, SparrowError
from server.sse import SSEResponse, sse
from server.state import AppState
from server.streams import EventLog, frames

_FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "error"}


def error_json(error: SparrowError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


class _OwningResponse(SSEResponse):
    """Cancels its answer however the response ends; after the answer's own end that does nothing."""

    def __init__(self, body: AsyncIterator[bytes], handle: Handle) -> None:
        super().__init__(body)
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancel()


async def _start(request: Request[AppState], tokens: list[int], params: SamplingParams) -> tuple[EventLog, Handle]:
    events = EventLog(asyncio.get_running_loop())
    return events, request.state["engine"].submit(tokens, params, events.sink)


async def _prompt(request: Request[AppState], asked: ChatRequest) -> Fitted:
    chat, n_ctx = request.state["chat"], request.state["engine"].model.n_ctx
    if not asked.truncates:
        return Fitted(await run_in_threadpool(chat.prompt, asked.messages), 0)
    n_reserve = min(asked.params.max_tokens or MAX_RESERVE, n_ctx // 2)
    return await run_in_threadpool(chat.fit, asked.messages, n_ctx, n_reserve)


class _Completion:
    """The JSON of one /v1/chat/completions answer: whole, or chunk by chunk."""

    def __init__(self, model: str, n_dropped: int) -> None:
        """n_dropped: how many of the oldest messages the model does not see; said only where there are any."""
        self._head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if n_dropped:
            self._head["truncation"] = {"dropped_messages": n_dropped}

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[finished.reason]}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(finished.usage)}

    def chunk(self, delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._frame({"choices": [choice]})

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._frame({"choices": [], "usage": _usage(usage)})

    def _frame(self, fields: dict[str, Any]) -> bytes:
        return sse(json.dumps({**self._head, "object": "chat.completion.chunk", **fields}, ensure_ascii=False))


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "total_tokens": usage.n_prompt + usage.n_completion,
        "prompt_tokens_details": {"cached_tokens": usage.n_reused},
    }


async def chat_completions(request: Request[AppState]) -> Response:
    """POST /v1/chat/completions, streamed or whole."""
    asked = parse_chat(await read_json(request), request.state["engine"].sampling_defaults)
    prompt = await _prompt(request, asked)
    events, handle = await _start(request, prompt.tokens, asked.params)
    completion = _Completion(request.state["engine"].model.name, prompt.n_dropped)
    if asked.stream:
        return _OwningResponse(_chunks(events, completion, asked), handle)
    try:
        await _finished_or_gone(request, events)
    finally:
        handle.cancel()
    finished = events.finished
    if finished is None:  # nobody is there to read this
        return Response(status_code=499)
    if finished.error is not None:
        raise finished.error
    return JSONResponse(completion.whole(events.text, finished))


async def _chunks(events: EventLog, completion: _Completion, asked: ChatRequest) -> AsyncIterator[bytes]:
    def encode(_n: int, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            return completion.chunk({"content": event.text})
        if event.error is not None:
            return sse(json.dumps(error_json(event.error), ensure_ascii=False))
        usage = completion.usage_chunk(event.usage) if asked.include_usage else b""
        return completion.chunk({}, _FINISH[event.reason]) + usage + sse("[DONE]")

    yield completion.chunk({"role": "assistant", "content": ""})
    async for frame in frames(events, encode, resumable=False):
        yield frame


async def _finished_or_gone(request: Request[AppState], events: EventLog) -> None:
    """Returns when the answer is complete, or its reader hung up."""

    async def complete() -> None:
        async for _ in events.subscribe():
            pass

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(complete()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def models(request: Request[AppState]) -> Response:
    """GET /v1/models: the one that is loaded."""
    model = request.state["engine"].model
    entry = {"id": model.name, "object": "model", "created": request.state["started_at"], "owned_by": "sparrow"}
    return JSONResponse({"object": "list", "data": [{**entry, "context_length": model.n_ctx, "quant": model.quant}]})


async def health(request: Request[AppState]) -> Response:
    """GET /health: 200 once the model answers."""
    model = request.state["engine"].model
    return JSONResponse({"status": "ok", "model": model.name, "quant": model.quant, "n_ctx": model.n_ctx})


async def stream(request: Request[AppState]) -> Response:
    """GET /stream?message=… and POST /stream {"message": …}: data: {"text": …} per piece, then the end of the body."""
    given = (await read_json(request)) if request.method == "POST" else request.query_params
    message = given.get("message")
    if not isinstance(message, str) or not message.strip():
        raise InvalidField("message", "give the text to answer.")
    tokens = await run_in_threadpool(request.state["chat"].prompt, [ChatMessage("user", message)])
    events, handle = await _start(request, tokens, request.state["engine"].sampling_defaults)
    return _OwningResponse(frames(events, _text_only, resumable=False), handle)


def _text_only(_n: int, event: Event) -> bytes:
    if isinstance(event, TextDelta):
        return sse(json.dumps({"text": event.text}, ensure_ascii=False))
    return sse(json.dumps({"error": event.error.message}, ensure_ascii=False)) if event.error else b""


routes = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/stream", stream, methods=["GET", "POST"]),
]
