"""POST /v1/chat/completions: whole answers, and answers in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.api.ahead import ahead
from server.api.answering import DONE, Prompt, error_frame, fitted, respond, submit
from server.api.choice import Choice, Step, logprobs_json, timings_json, usage_json
from server.api.parameters import check_model, choices
from server.api.report import Report
from server.api.request import ChatRequest, parse_chat
from server.api.tool_splitter import Argued, Said
from server.body import read_json
from server.engine.sequence import Event, Finished, TextDelta
from server.errors import SparrowError
from server.sse import sse
from server.state import AppState


async def chat_completions(request: Request[AppState]) -> Response:
    """POST /v1/chat/completions, streamed or whole."""
    engine, report, body = request.state["engine"], Report(), await read_json(request)
    with engine.expecting():
        asked = await run_in_threadpool(parse_chat, body, engine.sampling_defaults, report)
        check_model(body, engine.model.name, report)
        report.settle(is_strict=request.state["settings"].strict)
        prompt = await fitted(request, asked.messages, asked.form.tools, asked.params, truncates=asked.truncates)
        running = await submit(request, [Prompt(prompt.tokens, choices(asked.params, asked.n))])
    reply = _Completion(engine.model.name, asked, prompt.n_dropped, report)
    return await respond(request, running, reply, report, asked.stream, ahead(request, asked, reply.choices))


class _Completion:
    """The JSON of one reply, whole or chunk by chunk."""

    def __init__(self, model: str, asked: ChatRequest, n_dropped: int, report: Report) -> None:
        """n_dropped: how many of the oldest messages the model does not see; said only where there are any."""
        self.choices = [Choice(has_tools=bool(asked.form.tools)) for _ in range(asked.n)]
        self._asked, self._report = asked, report
        self._has_scores = asked.params.logprobs is not None
        self._head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        if n_dropped:
            self._head["truncation"] = {"dropped_messages": n_dropped}

    def whole(self) -> dict[str, Any]:
        made = [self._choice(index, choice) for index, choice in enumerate(self.choices)]
        usage = usage_json([choice.usage for choice in self.choices], self._asked.n)
        return {**self._head, "object": "chat.completion", "choices": made, "usage": usage, **self._remarks()}

    def begin(self) -> bytes:
        first = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, first) for index in range(len(self.choices)))

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        deltas = [self._delta(index, step) for step in steps]
        scores = event.logprobs if isinstance(event, TextDelta) and self._has_scores else None
        if scores and not deltas:
            deltas = [{}]  # the text is held back, since a call may begin with it
        frames = b"".join(
            self._chunk(index, delta, scores=scores if at == 0 else None) for at, delta in enumerate(deltas)
        )
        return frames + (self._finish(index) if isinstance(event, Finished) else b"")

    def end(self) -> bytes:
        if not self._asked.include_usage:
            return DONE
        usage = usage_json([choice.usage for choice in self.choices], self._asked.n)
        return self._frame({"choices": [], "usage": usage, **self._remarks()}) + DONE

    def fail(self, error: SparrowError) -> bytes:
        return error_frame(error)

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [_call_json(call.id, call.name, call.arguments) for call in choice.calls]
        scores = logprobs_json(choice.logprobs) if self._has_scores else None
        return {"index": index, "message": message, "logprobs": scores, "finish_reason": choice.finish_reason}

    def _delta(self, index: int, step: Step) -> dict[str, Any]:
        if isinstance(step.part, Said):
            return {"content": step.part.text}
        if isinstance(step.part, Argued):
            return {"tool_calls": [{"index": step.call, "function": {"arguments": step.part.text}}]}
        call = self.choices[index].calls[step.call]
        return {"tool_calls": [{"index": step.call, **_call_json(call.id, call.name, "")}]}

    def _finish(self, index: int) -> bytes:
        """The last chunk of the last choice says what there is to say of all, unless the usage's chunk follows."""
        is_last = all(choice.finished for choice in self.choices) and not self._asked.include_usage
        return self._chunk(index, {}, self.choices[index].finish_reason, **(self._remarks() if is_last else {}))

    def _remarks(self) -> dict[str, Any]:
        timings = timings_json([choice.usage for choice in self.choices], self._asked.n)
        return {"timings": timings, **self._report.json()}

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, *, scores: Any = None, **more: Any
    ) -> bytes:
        logprobs = logprobs_json(scores) if scores else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._asked.include_usage else {}
        return self._frame({"choices": [choice], **usage, **more})

    def _frame(self, fields: dict[str, Any]) -> bytes:
        return sse(json.dumps({**self._head, "object": "chat.completion.chunk", **fields}, ensure_ascii=False))


def _call_json(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
