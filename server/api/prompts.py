"""A prompt that is no chat: a text, tokens, or a list of either."""

from __future__ import annotations

from typing import Any, Protocol

from server.api.table import Custom, Field, ListOf, Number, Schema
from server.errors import InvalidField

MAX_PROMPTS = 2048
"""As many as OpenAI's embeddings take in one request."""

Prompts = list[str | list[int]]

_HINT = "give a text, a list of texts, a list of token ids, or a list of such lists."


def _prompts(given: Any, where: str) -> Prompts:
    if isinstance(given, str):
        return [_one(given, where)]
    if not isinstance(given, list) or not given:
        raise InvalidField(where, _HINT)
    if _is_tokens(given):
        return [list(map(int, given))]
    if len(given) > MAX_PROMPTS:
        raise InvalidField(where, f"{len(given)} are too many; give at most {MAX_PROMPTS}.")
    return [_one(entry, f"{where}[{at}]") for at, entry in enumerate(given)]


def _one(given: Any, where: str) -> str | list[int]:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, list) and given and _is_tokens(given):
        return list(map(int, given))
    raise InvalidField(where, "it is empty; give some text." if given in ("", []) else _HINT)


def _is_tokens(given: list[Any]) -> bool:
    """JSON knows one kind of number: 5.0 is a whole one."""
    return all(
        isinstance(token, (int, float)) and not isinstance(token, bool) and 0 <= token < 2**31 and token == int(token)
        for token in given
    )


TOKENS = ListOf(Number(int, 0, 2**31 - 1), most=1_000_000, what="token ids")

_TOKENS: Schema = {**TOKENS.schema(), "minItems": 1}
_TEXT: Schema = {"type": "string", "minLength": 1}
_LIST: Schema = {
    "type": "array",
    "items": {"anyOf": [_TEXT, _TOKENS]},
    "minItems": 1,
    "maxItems": MAX_PROMPTS,
}

PROMPTS = Custom(_prompts, {"anyOf": [_TEXT, _TOKENS, _LIST]})
PROMPT = Field(
    "prompt", PROMPTS, "A text or token ids, or a list of several. Special tokens inside a text are text.", True
)


class Vocabulary(Protocol):
    """The engine's, as far as it is needed here."""

    n_tokens: int

    def tokenize(self, text: str) -> list[int]: ...


def token_ids(vocab: Vocabulary, prompt: str | list[int], field: str) -> list[int]:
    """Special tokens inside a text are text; who means them gives tokens. Raises InvalidField that names the field."""
    if isinstance(prompt, str):
        return vocab.tokenize(prompt)
    unknown = [token for token in prompt if token >= vocab.n_tokens]
    if unknown:
        raise InvalidField(field, f"{unknown[0]} is no token of this model; give 0 to {vocab.n_tokens - 1}.")
    return prompt
