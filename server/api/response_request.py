"""The JSON of POST /v1/responses -> messages, SamplingParams and the form of the answer. Nothing is kept here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from server.api.messages import CONTENT, joined
from server.api.parameters import (
    CALLERS,
    MAX_TOKENS,
    MAX_TOP,
    MODEL,
    SAMPLING,
    STREAM,
    STREAM_OPTIONS,
    sampling_params,
)
from server.api.report import Report
from server.api.table import Anything, Choice, Either, Field, Flag, ListOf, Number, Table, Text
from server.api.tools import JSON_SCHEMA, MAX_TOOLS, NAME, PARALLEL, Asked, Described, Form, form_of, function
from server.chat import ChatMessage, Role, ToolCall
from server.engine.grammar import JSON_OBJECT
from server.engine.sampling import SamplingParams
from server.errors import InvalidField

_SCORES = "message.output_text.logprobs"
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_ITEM = Table(
    (
        Field("type", Choice(("message", "function_call", "function_call_output", "reasoning")), "Default: message."),
        Field("role", Choice(tuple(_ROLES)), "Of a message: who speaks."),
        Field("content", CONTENT, "Of a message: what is said."),
        Field("call_id", Text(1), "Of a function_call, and of the function_call_output that answers it."),
        Field("name", Text(1), "Of a function_call."),
        Field("arguments", Text(), "Of a function_call: JSON, as a text."),
        Field("output", CONTENT, "Of a function_call_output."),
        Field("id", Text(), "Accepted."),
        Field("status", Text(), "Accepted."),
        Field("summary", Anything(), "Accepted."),
    )
)
_TOOL = Table(
    (
        Field("type", Choice(("function",)), "Functions only.", True),
        Field("name", NAME, "What the model calls it by.", True),
        Field("description", Text(), "What it does, for the model."),
        Field("parameters", JSON_SCHEMA, "The JSON Schema of its arguments; none takes none."),
        Field("strict", Flag(), "Refuse a schema that can't be held; else the arguments are any JSON object then."),
    )
)
_NAMED = Table(
    (Field("type", Choice(("function",)), 'Give "function".', True), Field("name", NAME, "Give the tool's name.", True))
)
_FORMAT = Table(
    (
        Field("type", Choice(("text", "json_object", "json_schema")), "text, json_object or json_schema.", True),
        Field("name", NAME),
        Field("description", Text(), "Accepted."),
        Field("schema", JSON_SCHEMA, "With type json_schema: the JSON Schema that the answer follows."),
        Field("strict", Flag(), "Refuse a schema that can't be held; else the answer is any JSON object then."),
    )
)
_TEXT = Table(
    (
        Field("format", _FORMAT, "The form of the answer."),
        Field("verbosity", Text(), ignored="ask for short or long answers in the input.", allows=("medium",)),
    )
)

RESPONSES = Table(
    (
        MODEL,
        Field(
            "input",
            Either((Text(1), ListOf(_ITEM, 1, what="items")), "give a text or a list of items."),
            "Give a text, or the items of a conversation.",
            required=True,
        ),
        Field("instructions", Text(), "The system prompt."),
        *SAMPLING,
        Field("max_output_tokens", MAX_TOKENS.kind, "Most tokens of the answer."),
        STREAM,
        STREAM_OPTIONS,
        Field("text", _TEXT, "The form of the answer."),
        Field("tools", ListOf(_TOOL, most=MAX_TOOLS, what="tools"), "Functions that the model may call."),
        Field(
            "tool_choice",
            Either((Choice(("none", "auto", "required")), _NAMED), 'give "none", "auto", "required" or a tool.'),
            "Whether a tool is called, or which.",
        ),
        PARALLEL,
        Field("top_logprobs", Number(int, 0, MAX_TOP), f'So many alternatives; include "{_SCORES}" to see them.'),
        Field("include", ListOf(Text()), f'"{_SCORES}" gives log probabilities; all else has nothing to include.'),
        Field("truncation", Choice(("disabled", "auto")), '"auto" leaves the oldest turns out where they don\'t fit.'),
        *CALLERS,
        Field("store", Flag(), ignored="nothing is kept here.", allows=(False,)),
        Field("reasoning", Anything(), ignored="this model does not think before it speaks.", allows=({},)),
        Field("max_tool_calls", Anything(), ignored="no tool is run here."),
        Field("background", Flag(), refused="this server answers at once; ask without it.", allows=(False,)),
        Field("previous_response_id", Text(), refused="nothing is kept here; send the whole conversation as input."),
        Field("conversation", Anything(), refused="nothing is kept here; send the whole conversation as input."),
        Field("prompt", Anything(), refused="no prompts are stored here; send the text as input."),
    )
)


@dataclass(frozen=True)
class ResponseRequest:
    """echo: fields of the request that the reply repeats."""

    messages: list[ChatMessage]
    params: SamplingParams
    form: Form
    stream: bool
    truncates: bool
    echo: Mapping[str, Any]


def parse_response(body: Mapping[str, Any], defaults: SamplingParams, report: Report) -> ResponseRequest:
    """defaults: what a field that is absent or null means. What is not honoured goes into report."""
    given = RESPONSES.read(body, "", report)
    asked = _asked(given, report)
    form = form_of(asked, report)
    n_top = given.get("top_logprobs", 0) if _SCORES in given.get("include", []) else None
    if "max_output_tokens" in given:
        given["max_tokens"] = given["max_output_tokens"]
    params = sampling_params(given, defaults, form.grammar, form.trigger, n_top)
    system = [ChatMessage("system", given["instructions"])] if "instructions" in given else []
    messages = [*system, *_messages(given["input"])]
    return ResponseRequest(
        messages, params, form, given.get("stream", False), given.get("truncation") == "auto", _echo(body, params)
    )


def _asked(given: Mapping[str, Any], report: Report) -> Asked:
    choice = given.get("tool_choice", "auto")
    is_named = isinstance(choice, Mapping)
    return Asked(
        [function(tool, f"tools[{at}]") for at, tool in enumerate(given.get("tools", []))],
        choice["name"] if is_named else choice,
        is_named,
        given.get("parallel_tool_calls", True),
        _answer(given.get("text", {}).get("format", {"type": "text"}), report),
    )


def _answer(form: Mapping[str, Any], report: Report) -> str:
    if form["type"] == "text":
        return ""
    if form["type"] == "json_object":
        return JSON_OBJECT
    if "schema" not in form:
        raise InvalidField("text.format.schema", "it is missing; give the JSON Schema of the answer.")
    return Described(form["schema"], "text.format.schema", form.get("strict", False)).grammar(report)


def _messages(given: str | list[dict[str, Any]]) -> list[ChatMessage]:
    if isinstance(given, str):
        return [ChatMessage("user", given)]
    messages: list[ChatMessage] = []
    for at, item in enumerate(given):
        where = f"input[{at}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, where))
        elif kind == "function_call":
            _add_call(messages, _call(item, where))
        elif kind == "function_call_output":
            messages.append(
                ChatMessage("tool", joined(_need(item, "output", where)), (), _need(item, "call_id", where))
            )
    if not messages:
        raise InvalidField("input", "there is nothing to answer; give a message.")
    return messages


def _message(item: Mapping[str, Any], where: str) -> ChatMessage:
    role = cast(Role, _ROLES[_need(item, "role", where)])
    return ChatMessage(role, joined(_need(item, "content", where)))


def _call(item: Mapping[str, Any], where: str) -> ToolCall:
    return ToolCall(*(_need(item, name, where) for name in ("call_id", "name", "arguments")))


def _add_call(messages: list[ChatMessage], call: ToolCall) -> None:
    """Calls are items of their own here; in a conversation they belong to what the assistant said before them."""
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant":
        messages[-1] = ChatMessage("assistant", last.content, (*last.tool_calls, call))
    else:
        messages.append(ChatMessage("assistant", "", (call,)))


def _need(item: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in item:
        raise InvalidField(f"{where}.{name}", "it is missing.")
    return item[name]


def _echo(body: Mapping[str, Any], params: SamplingParams) -> dict[str, Any]:
    """What OpenAI's replies repeat of their request."""
    repeated = {
        "instructions": body.get("instructions"),
        "max_output_tokens": params.max_tokens,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": params.temperature,
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": params.top_p,
        "truncation": body.get("truncation") or "disabled",
    }
    return {name: _finite(value) for name, value in repeated.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, though they can be read."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
