"""Alive or not, and the tiny /stream that older pages are written for: one message, one streamed answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.api.answering import Prompt, error_frame, respond, submit
from server.api.choice import Choice, Step
from server.api.report import Report
from server.api.table import Field, Table, Text
from server.api.tool_splitter import Said
from server.body import read_json
from server.chat import ChatMessage
from server.clients import is_known
from server.engine.sequence import Event
from server.errors import InvalidField, SparrowError
from server.sse import sse
from server.state import AppState

STREAM = Table((Field("message", Text(1), "Give the text to answer.", required=True),))


_HEALTH = {"awake": "ok", "asleep": "asleep", "waking": "loading"}


async def health(request: Request[AppState]) -> Response:
    """GET /health: 200 once the model answers, asleep, too: it wakes for whoever asks. What it is, only for who may use
    it."""
    status = _HEALTH[request.state["engine"].rest.state]
    if not is_known(request):
        return JSONResponse({"status": status})
    model = request.state["engine"].model
    return JSONResponse({"status": status, "model": model.name, "quant": model.quant, "n_ctx": model.n_ctx})


async def stream(request: Request[AppState]) -> Response:
    """GET /stream?message=… and POST /stream {"message": …}: data: {"text": …} per piece, then the end of the body."""
    given = (await read_json(request)) if request.method == "POST" else dict(request.query_params)
    report = Report()
    message = STREAM.read(given, "", report)["message"]
    if not message.strip():
        raise InvalidField("message", "give a text that is not empty.")
    report.settle(is_strict=request.state["settings"].strict)
    with request.state["engine"].expecting():
        tokens = await run_in_threadpool(request.state["chat"].prompt, [ChatMessage("user", message)])
        running = await submit(request, [Prompt(tokens, [request.state["engine"].sampling_defaults])], "message")
    return await respond(request, running, _Texts(), report, True)


class _Texts:
    """Nothing but the text."""

    def __init__(self) -> None:
        self.choices = [Choice()]

    def begin(self) -> bytes:
        return b""

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        texts = [step.part.text for step in steps if isinstance(step.part, Said)]
        return b"".join(sse(json.dumps({"text": text}, ensure_ascii=False)) for text in texts)

    def end(self) -> bytes:
        return b""

    def fail(self, error: SparrowError) -> bytes:
        return error_frame(error)

    def whole(self) -> dict[str, Any]:
        return {"text": self.choices[0].text}
