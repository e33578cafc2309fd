"""What a conversation consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from server.engine.sequence import FinishReason, Usage
from server.preferences import ChatSettings

Role = Literal["user", "assistant"]
Status = Literal["streaming", "done", "stopped", "error", "interrupted"]
"""stopped: by the person; interrupted: by the server's end, in the middle."""

MAX_TITLE = 60
"""Characters; the page cuts what its width can't show."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Times are seconds since 1970."""

    id: str
    title: str
    created_at: float
    updated_at: float
    pinned: bool = False
    settings: ChatSettings = ChatSettings()
    snippet: tuple[tuple[str, bool], ...] = ()
    """Of a message that a search found: its text around what was looked for, in parts; True: this part is it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a SparrowError said: its code for programs, its message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Message:
    id: int
    conversation_id: str
    parent_id: int | None
    role: Role
    content: str
    status: Status
    created_at: float
    finish_reason: FinishReason | None
    n_resumed: int
    """How often this answer was cut off and went on."""
    n_dropped: int
    """How many of the oldest messages that say anything were left out for this answer: they had no room."""
    failure: Failure | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer as far as it goes, and what it goes on from: the tokens behind the text, in the vocabulary's ids."""

    content: str
    tokens: tuple[int, ...] = ()
    vocab: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: its whole text, and why there is no more."""

    content: str
    status: Status
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its newest answer. `is_new` is False when the same key was sent before."""

    conversation: Conversation
    question: Message
    answer: Message
    is_new: bool


def title_of(text: str) -> str:
    """The first words of a message, on one line; cut inside a word only where there are no spaces (Chinese)."""
    words = " ".join(text.split())
    if len(words) <= MAX_TITLE:
        return words
    cut = words[:MAX_TITLE]
    return (cut.rpartition(" ")[0] if " " in cut[MAX_TITLE // 2 :] else cut) + "…"
