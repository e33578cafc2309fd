"""Messages -> prompt tokens: the GGUF's own chat template in a Jinja2 sandbox, and history that fits the context.

A user's text never becomes a control token: special tokens written inside a message are broken before rendering
and made whole again after the prompt was cut at the real ones.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import ContextOverflow, InvalidRequest, ModelFileError

Role = Literal["system", "user", "assistant", "tool"]

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
class ChatMessage:
    role: Role
    content: str


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


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class Chat:
    """Renders conversations for one model. Thread-safe; a call takes up to some milliseconds."""

    def __init__(self, template: str | None, tokenizer: Tokenizer) -> None:
        """Raises ModelFileError when the GGUF's template can't be parsed."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(template or CHATML)
        except TemplateError as error:
            raise ModelFileError(f"The chat template inside the model file can't be read: {error}") from None
        self._tokenizer = tokenizer
        special = "|".join(re.escape(text) for text in sorted(tokenizer.special, key=len, reverse=True))
        self._special = re.compile(f"({special})") if special else None

    def render(self, messages: Sequence[ChatMessage], *, opening: bool = True) -> str:
        """The prompt as text, special tokens in messages still broken. Raises InvalidRequest if it refuses."""
        shielded = [{"role": message.role, "content": self._shield(message.content)} for message in messages]
        try:
            return self._template.render(messages=shielded, add_generation_prompt=opening)
        except Exception as error:  # a template is a program of a stranger: whatever it raises is about these messages
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None

    def prompt(self, messages: Sequence[ChatMessage], *, opening: bool = True) -> list[int]:
        """Token ids of the prompt, ending where the assistant begins to speak, or, without the opening, before that."""
        text = self.render(messages, opening=opening)
        parts = self._special.split(text) if self._special else [text]
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                ids.append(self._tokenizer.special[part])
            elif part:
                ids.extend(self._tokenizer.tokenize(part.replace(_BREAK, "")))
        return ids

    def fit(self, messages: Sequence[ChatMessage], n_ctx: int, n_reserve: int, *, opening: bool = True) -> Fitted:
        """The prompt of `messages` in at most n_ctx - n_reserve tokens: the oldest whole turns go, system prompts stay.

        They go in steps of a third of the room, counted from the beginning of the conversation: so the prompt begins
        at the same message for several turns, and what was read of it is not read again at each of them.
        Raises ContextOverflow when not even the last turn fits.
        """
        tokens = self.prompt(messages, opening=opening)
        room = n_ctx - n_reserve
        if len(tokens) <= room:
            return Fitted(tokens, 0)
        for kept in self._shorter(messages, max(1, room // 3)):
            tokens = self.prompt(kept, opening=opening)
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

    def _shield(self, content: str) -> str:
        content = content.replace(_BREAK, "")
        if self._special is None:
            return content
        return self._special.sub(lambda found: found[0][0] + _BREAK + found[0][1:], content)
