"""What people choose: a conversation's settings, over their owner's preferences, over the model's official values.

    ChatSettings            Preferences(ChatSettings)          SamplingParams
    of one conversation  >  of one owner                    >  of the model        field by field; None: the next one's

Names are OpenAI's and llama.cpp's where they have any. In the store and on the wire a field that is None is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from server.engine.sampling import SamplingParams
from server.errors import InvalidField
from server.fields import flag, number, text

MAX_SYSTEM_PROMPT = 20_000
"""Characters; more than the default context holds."""

Theme = Literal["auto", "light", "dark"]
THEMES = ("auto", "light", "dark")

S = TypeVar("S", bound="ChatSettings")


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How answers are chosen. Raises InvalidField naming the field that can't be."""

    system_prompt: str | None = None
    """"" is the chat template's own."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidField("max_tokens", f"{self.max_tokens} is out of range; give 1 or more.")
        self.sampling(SamplingParams())

    def over(self, defaults: ChatSettings) -> ChatSettings:
        """These, and the defaults' where these are None."""
        mine = {name: getattr(self, name) for name in CHAT_FIELDS}
        return ChatSettings(
            **{name: getattr(defaults, name) if value is None else value for name, value in mine.items()}
        )

    def sampling(self, official: SamplingParams) -> SamplingParams:
        """What the engine is asked for."""
        chosen = {name: getattr(self, name) for name in CHAT_FIELDS if name != "system_prompt"}
        return replace(official, **{name: value for name, value in chosen.items() if value is not None})

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


CHAT_FIELDS = tuple(field.name for field in fields(ChatSettings))


@dataclass(frozen=True, slots=True)
class Preferences(ChatSettings):
    """One owner's defaults for every conversation, and how the page is to be."""

    theme: Theme = "auto"
    language: str = ""
    """"" is the browser's."""
    reads_drafts: bool = True


def changed(known: S, body: Mapping[str, Any], languages: frozenset[str] = frozenset()) -> S:
    """`known` with the fields of a request's JSON in it; null takes one back. Raises InvalidField, also for a name
    that is none."""
    names = {field.name: field.default for field in fields(known)}
    unknown = sorted(set(body) - set(names))
    if unknown:
        raise InvalidField(unknown[0][:40], f"this is no setting; there are {', '.join(names)}.")
    values: dict[str, Any] = {
        name: names[name] if given is None else _value(name, given, languages) for name, given in body.items()
    }
    return replace(known, **values)


def _value(name: str, given: Any, languages: frozenset[str]) -> Any:
    if name == "system_prompt":
        return text(given, name, MAX_SYSTEM_PROMPT)
    if name == "reads_drafts":
        return flag(given, name)
    if name in ("theme", "language"):
        allowed = THEMES if name == "theme" else ("", *sorted(languages))
        if given not in allowed:
            raise InvalidField(name, f"give one of {', '.join(map(repr, allowed))}.")
        return given
    return number(given, name, int if name in ("top_k", "max_tokens", "seed") else float)
