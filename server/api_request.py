"""OpenAI's request JSON -> messages and SamplingParams. Everything wrong is an InvalidRequest that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from server.chat import ChatMessage, Role
from server.engine.sampling import SamplingParams
from server.errors import InvalidField
from server.fields import number

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}

_NUMBERS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}

# Asking for one of these and getting plain text would be a wrong answer, not a worse one.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "logit_bias": ({},),
}


@dataclass(frozen=True)
class ChatRequest:
    messages: list[ChatMessage]
    params: SamplingParams
    stream: bool
    include_usage: bool
    truncates: bool
    """Leave the oldest turns out when they don't fit, instead of refusing."""


def parse_chat(body: Mapping[str, Any], defaults: SamplingParams) -> ChatRequest:
    """defaults: what a field that is absent or null means."""
    for field, allowed in _UNSUPPORTED.items():
        if body.get(field) is not None and body[field] not in allowed:
            raise InvalidField(field, "this server can't do that; leave it out.")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InvalidField("stream_options", 'give an object, like {"include_usage": true}.')
    return ChatRequest(
        _messages(body.get("messages")),
        _params(body, defaults),
        _flag(body, "stream"),
        _flag(options, "include_usage", "stream_options.include_usage"),
        _truncates(body.get("truncation")),
    )


def _messages(given: Any) -> list[ChatMessage]:
    if not isinstance(given, list) or not given:
        raise InvalidField("messages", 'give a list of at least one message, like {"role": "user", "content": "Hi"}.')
    return [_message(message, f"messages[{at}]") for at, message in enumerate(given)]


def _message(given: Any, where: str) -> ChatMessage:
    if not isinstance(given, dict):
        raise InvalidField(where, "give an object with role and content.")
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidField(f"{where}.role", f"{role!r} is no role; give system, user or assistant.")
    return ChatMessage(cast(Role, _ROLES[role]), _content(given.get("content"), f"{where}.content"))


def _content(given: Any, where: str) -> str:
    """A text, or OpenAI's list of parts, of which a text model takes those of type "text"."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise InvalidField(where, "give a text.")
    texts = []
    for at, part in enumerate(given):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidField(f"{where}[{at}]", "this model reads only parts of type text.")
        texts.append(part["text"])
    return "".join(texts)


def _params(body: Mapping[str, Any], defaults: SamplingParams) -> SamplingParams:
    given: dict[str, Any] = {
        field: number(body[field], field, kind) for field, kind in _NUMBERS.items() if _has(body, field)
    }
    for field in ("max_tokens", "max_completion_tokens"):
        if _has(body, field):
            given["max_tokens"] = number(body[field], field, int)
    if _has(body, "stop"):
        given["stop"] = _stops(body["stop"])
    return replace(defaults, ignore_eos=_flag(body, "ignore_eos"), **given)


def _has(body: Mapping[str, Any], field: str) -> bool:
    return body.get(field) is not None


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidField("stop", "give a text or a list of texts.")
    return tuple(stops)


def _truncates(given: Any) -> bool:
    if given not in (None, "disabled", "auto"):
        raise InvalidField("truncation", 'give "auto" (leave the oldest turns out) or "disabled" (refuse).')
    return bool(given == "auto")


def _flag(body: Mapping[str, Any], field: str, name: str | None = None) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(name or field, "give true or false.")
    return bool(value)
