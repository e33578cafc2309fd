"""OpenAI's messages -> what the chat template is given."""

from __future__ import annotations

from typing import Any, cast

from server.api.table import Choice, Custom, Either, Field, ListOf, Number, Schema, Table, Text
from server.chat import ChatMessage, Role, ToolCall
from server.errors import InvalidField

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def _part(given: Any, where: str) -> str:
    if not isinstance(given, dict) or given.get("type") not in ("text", "input_text", "output_text"):
        raise InvalidField(where, "this model reads only parts of type text.")
    if not isinstance(given.get("text"), str):
        raise InvalidField(f"{where}.text", "give a text.")
    return str(given["text"])


_PART_SCHEMA: Schema = {
    "type": "object",
    "properties": {"type": {"enum": ["text", "input_text", "output_text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
CONTENT = Either((Text(), ListOf(Custom(_part, _PART_SCHEMA), 1, what="parts")), "give a text.")

_FUNCTION = Table(
    (
        Field("name", Text(1), "Which function was called.", required=True),
        Field("arguments", Text(), "JSON, as a text.", required=True),
    )
)
_CALL = Table(
    (
        Field("id", Text(1), "The name that the tool's answer refers to.", required=True),
        Field("type", Choice(("function",))),
        Field("function", _FUNCTION, "What was called, and with what.", required=True),
        Field("index", Number(int), "Accepted; streams have it."),
    )
)
_NOTHING = "only text and tool calls of an answer are read."

_MESSAGE = Table(
    (
        Field("role", Choice(tuple(_ROLES)), "Who speaks.", required=True),
        Field("content", CONTENT, "What is said. An assistant's message with tool_calls needs none."),
        Field("name", Text(), "Accepted; the model's template has no place for names."),
        Field("tool_calls", ListOf(_CALL, what="calls"), "What an assistant's message asked for."),
        Field("tool_call_id", Text(), "Which call a tool's message answers."),
        Field("refusal", Text(), ignored=_NOTHING),
        Field("reasoning_content", Text(), ignored=_NOTHING, allows=("",)),
        Field("annotations", ListOf(Table((Field("type", Text()),))), ignored=_NOTHING, allows=([],)),
        Field("audio", Table((Field("id", Text()),)), ignored=_NOTHING),
        Field("function_call", Table((Field("name", Text()),)), refused="give tool_calls instead.", allows=({},)),
    )
)

MESSAGES = Field(
    "messages",
    ListOf(_MESSAGE, 1, what='messages, like {"role": "user", "content": "Hi"}'),
    'Give a list of at least one message, like {"role": "user", "content": "Hi"}.',
    required=True,
)


def chat_messages(given: list[dict[str, Any]]) -> list[ChatMessage]:
    """given: what MESSAGES has read. Raises InvalidField."""
    return [_chat_message(message, f"messages[{at}]") for at, message in enumerate(given)]


def _chat_message(given: dict[str, Any], where: str) -> ChatMessage:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in given.get("tool_calls", ())
    )
    if calls and given["role"] != "assistant":
        raise InvalidField(f"{where}.tool_calls", "only an assistant's message has calls.")
    if "content" not in given and not calls:
        raise InvalidField(f"{where}.content", "give a text.")
    role = cast(Role, _ROLES[given["role"]])
    return ChatMessage(role, joined(given.get("content", "")), calls, given.get("tool_call_id", ""))


def joined(content: str | list[str]) -> str:
    """A text, or the texts of its parts."""
    return content if isinstance(content, str) else "".join(content)
