"""Messages -> prompt tokens: the GGUF's own chat template in a Jinja2 sandbox, and history that fits the context.

A user's text never becomes a control token: special tokens written inside a message are broken before rendering
and made whole again after the prompt was cut at the real ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from server import tool_text
from server.chat_template import ChatTemplate
from server.errors import ContextOverflow

Role = Literal["system", "user", "assistant", "tool"]

Tool = Mapping[str, Any]
"""A function that the model may call, as OpenAI's API describes it: {"type": "function", "function": {…}}."""

MAX_RESERVE = 1024
"""Tokens kept free for an answer whose length nobody has limited."""

_BREAK = "\ufdd0"
"""A code point that Unicode keeps free for such use: it breaks a special token in a person's text."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a GGUF without a template of its own: the form that Qwen's models speak."""


@dataclass(frozen=True)
class ToolCall:
    """arguments: the text of a JSON object, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's message asks for."""
    tool_call_id: str = ""
    """Which of them a tool's message answers."""


@dataclass(frozen=True)
class Fitted:
    """A prompt that fits, and how many of the oldest messages were left out for it."""

    tokens: list[int]
    n_dropped: int


class Tokenizer(Protocol):
    """llama.Vocab is one."""

    @property
    def special(self) -> dict[str, int]: ...

    def tokenize(self, text: str) -> list[int]: ...


class Chat:
    """Renders conversations for one model. Thread-safe; a call takes up to some milliseconds."""

    def __init__(self, template: str | None, tokenizer: Tokenizer) -> None:
        """Raises ModelFileError when the GGUF's template can't be used."""
        self._template = ChatTemplate(template or CHATML)
        self._tokenizer = tokenizer
        special = "|".join(re.escape(text) for text in sorted(tokenizer.special, key=len, reverse=True))
        self._special = re.compile(f"({special})") if special else None

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = (), *, opening: bool = True) -> str:
        """The prompt as text, special tokens in messages and tools still broken. Raises InvalidRequest if it refuses.

        opening: it ends where the assistant begins to speak, else before that.
        A template that knows no tools gets them as text, in Qwen's form.
        """
        shielded = self._shield_all([_as_template_wants(message) for message in messages])
        shown = self._shield_all(list(tools)) or None
        if not self._template.asks_for("tools"):
            shielded, shown = tool_text.without_tools(shielded, shown or ()), None
        return self._template.render(messages=shielded, tools=shown, add_generation_prompt=opening)

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of the prompt, ending where the assistant begins to speak."""
        return self.tokenize(self.render(messages, tools))

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a rendered prompt: special ones where the template wrote them, none inside messages."""
        parts = self._special.split(text) if self._special else [text]
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                ids.append(self._tokenizer.special[part])
            elif part:
                ids.extend(self._tokenizer.tokenize(part.replace(_BREAK, "")))
        return ids

    def fit(
        self,
        messages: Sequence[ChatMessage],
        n_ctx: int,
        n_reserve: int,
        tools: Sequence[Tool] = (),
    ) -> Fitted:
        """The prompt of `messages` in at most n_ctx - n_reserve tokens: the oldest whole turns go, system prompts stay.

        They go in steps of a third of the room, counted from the beginning of the conversation: so the prompt begins
        at the same message for several turns, and what was read of it is not read again at each of them.
        Raises ContextOverflow when not even the last turn fits.
        """
        tokens = self.prompt(messages, tools)
        room = n_ctx - n_reserve
        if len(tokens) <= room:
            return Fitted(tokens, 0)
        for kept in self._shorter(messages, max(1, room // 3)):
            tokens = self.prompt(kept, tools)
            if len(tokens) <= room:
                return Fitted(tokens, len(messages) - len(kept))
        raise ContextOverflow(len(tokens), n_ctx)

    def _shorter(self, messages: Sequence[ChatMessage], step: int) -> Iterator[list[ChatMessage]]:
        """`messages` without their first 1, 2, … steps of so many tokens, cut before a user's message; the last turn
        comes last."""
        turns = [at for at, message in enumerate(messages) if message.role == "user"][1:]
        n_gone, wanted = 0, step
        for begin, end in zip([0, *turns], turns, strict=False):
            n_gone += sum(len(self._tokenizer.tokenize(message.content)) for message in messages[begin:end])
            if n_gone >= wanted or end == turns[-1]:
                wanted = (n_gone // step + 1) * step
                yield [message for message in messages[:end] if message.role == "system"] + list(messages[end:])

    def _shield_all(self, value: Any) -> Any:
        """JSON whose texts and names can't become control tokens."""
        if isinstance(value, str):
            return self._shield(value)
        if isinstance(value, Mapping):
            return {self._shield(name): self._shield_all(entry) for name, entry in value.items()}
        return [self._shield_all(entry) for entry in value] if isinstance(value, list) else value

    def _shield(self, content: str) -> str:
        content = content.replace(_BREAK, "")
        if self._special is None:
            return content
        return self._special.sub(lambda found: found[0][0] + _BREAK + found[0][1:], content)


def _as_template_wants(message: ChatMessage) -> dict[str, Any]:
    """The dicts that chat templates are written for: arguments are an object there, and not its text."""
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        made["tool_calls"] = [_call(call) for call in message.tool_calls]
    return made | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):  # an answer that was cut off inside of them
        arguments = call.arguments
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
