"""POST /v1/responses, stateless: items in, items out, and OpenAI's named events in between."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.api.ahead import ahead
from server.api.answering import Prompt, fitted, respond, submit
from server.api.choice import Choice, Step, logprobs_json, timings_json
from server.api.errors import error_json
from server.api.parameters import check_model
from server.api.report import Report
from server.api.response_request import ResponseRequest, parse_response
from server.api.tool_splitter import Argued, Called, Said
from server.body import read_json
from server.engine.sequence import Event, Usage
from server.errors import SparrowError
from server.sse import sse
from server.state import AppState

Fields = dict[str, Any]


async def responses(request: Request[AppState]) -> Response:
    """POST /v1/responses, streamed or whole."""
    engine, report, body = request.state["engine"], Report(), await read_json(request)
    with engine.expecting():
        asked = await run_in_threadpool(parse_response, body, engine.sampling_defaults, report)
        check_model(body, engine.model.name, report)
        report.settle(is_strict=request.state["settings"].strict)
        prompt = await fitted(request, asked.messages, asked.form.tools, asked.params, truncates=asked.truncates)
        running = await submit(request, [Prompt(prompt.tokens, [asked.params])], "input")
    reply = _Reply(engine.model.name, asked, report, prompt.n_dropped)
    return await respond(request, running, reply, report, asked.stream, ahead(request, asked, reply.choices))


class _Items:
    """The output's items as they grow: texts and calls, and the events that tell of them."""

    def __init__(self) -> None:
        self.items: list[Fields] = []

    def push(self, step: Step, choice: Choice) -> list[Fields]:
        """A part of the answer, and the events that it makes."""
        part, events = step.part, list[Fields]()
        if isinstance(part, Called):
            call = choice.calls[step.call]
            made = {"type": "function_call", "id": _id("fc"), "call_id": call.id, "name": call.name, "arguments": ""}
            return [*self.close(), self._open(made)]
        if isinstance(part, Argued):
            self.items[-1]["arguments"] += part.text
            return [self._event("function_call_arguments.delta", delta=part.text)]
        assert isinstance(part, Said)
        if not self.items or self.items[-1]["type"] != "message":
            events += [*self.close(), *self._open_message()]
        content = self._content()
        content["text"] += part.text
        scored = logprobs_json(step.scores)["content"]
        content["logprobs"] += scored
        return [*events, self._event("output_text.delta", content_index=0, delta=part.text, logprobs=scored)]

    def close(self, status: str = "completed") -> list[Fields]:
        """The last item is at its end."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return []
        item = self.items[-1]
        item["status"] = status
        done = {"output_index": len(self.items) - 1, "item": dict(item)}
        if item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            events = [self._event("function_call_arguments.done", **told)]
        else:
            content = self._content()
            events = [
                self._event("output_text.done", content_index=0, text=content["text"], logprobs=content["logprobs"]),
                self._event("content_part.done", content_index=0, part=dict(content)),
            ]
        return [*events, {"type": "response.output_item.done", **done}]

    def _open(self, item: Fields) -> Fields:
        self.items.append({**item, "status": "in_progress"})
        return {
            "type": "response.output_item.added",
            "output_index": len(self.items) - 1,
            "item": _copy(self.items[-1]),
        }

    def _open_message(self) -> list[Fields]:
        opened = self._open({"type": "message", "id": _id("msg"), "role": "assistant", "content": []})
        self.items[-1]["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        return [opened, self._event("content_part.added", content_index=0, part=_copy(self._content()))]

    def _content(self) -> Fields:
        content: Fields = self.items[-1]["content"][0]
        return content

    def _event(self, kind: str, /, **fields: Any) -> Fields:
        """An event of the last item."""
        at = len(self.items) - 1
        return {"type": f"response.{kind}", "item_id": self.items[at]["id"], "output_index": at, **fields}


class _Reply:
    """The JSON of one response, whole or event by event."""

    def __init__(self, model: str, asked: ResponseRequest, report: Report, n_dropped: int = 0) -> None:
        """n_dropped: how many of the oldest messages the model does not see; said only where there are any."""
        self.choices = [Choice(has_tools=bool(asked.form.tools))]
        self._asked, self._report, self._n_sent = asked, report, 0
        self._items = _Items()
        self._head: Fields = {"id": _id("resp"), "object": "response", "created_at": int(time.time()), "model": model}
        if n_dropped:
            self._head["dropped_messages"] = n_dropped

    def whole(self) -> Fields:
        choice = self.choices[0]
        for step in choice.steps:
            self._items.push(step, choice)
        self._items.close(self._status())
        return self._ended()

    def begin(self) -> bytes:
        begun = self._response("in_progress")
        return self._send([{"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")])

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        return self._send([made for step in steps for made in self._items.push(step, self.choices[0])])

    def end(self) -> bytes:
        closing = self._items.close(self._status())
        return self._send([*closing, {"type": f"response.{self._status()}", "response": self._ended()}])

    def fail(self, error: SparrowError) -> bytes:
        told = error_json(error)["error"]
        failed = self._response("failed", error={"code": "server_error", "message": error.message})
        event = {"code": told["code"], "message": told["message"], "param": told["param"]}
        return self._send([{"type": "error", **event}, {"type": "response.failed", "response": failed}])

    def _status(self) -> str:
        return "incomplete" if self.choices[0].finish_reason == "length" else "completed"

    def _ended(self) -> Fields:
        status, usage = self._status(), self.choices[0].usage
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        made = self._response(status, incomplete_details=details, usage=_usage(usage))
        return {**made, "timings": timings_json([usage]), **self._report.json()}

    def _response(self, status: str, **fields: Any) -> Fields:
        more = {"error": None, "incomplete_details": None, "usage": None, **fields}
        return {**self._head, "status": status, "output": _copy(self._items.items), **self._asked.echo, **more}

    def _send(self, events: Sequence[Fields]) -> bytes:
        frames = b""
        for event in events:
            frames += sse(
                json.dumps({**event, "sequence_number": self._n_sent}, ensure_ascii=False), event=event["type"]
            )
            self._n_sent += 1
        return frames


def _usage(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.n_prompt,
        "input_tokens_details": {"cached_tokens": usage.n_reused},
        "output_tokens": usage.n_completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.n_prompt + usage.n_completion,
    }


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def _copy(value: Any) -> Any:
    """What goes out now; the items go on growing."""
    return json.loads(json.dumps(value))
