"""A conversation outside of the store, and Sparrow's own file of them:

    {"format": "sparrow", "version": 1, "conversations": [{"id", "title", "created_at", "updated_at", "pinned",
     "settings", "leaf", "messages": [{"id", "parent", "role", "content", "status", "created_at", "finish_reason"}]}]}

Times are seconds since 1970; leaf is the last message of the branch that is shown. imports.py reads it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from server.engine.sequence import FinishReason
from server.preferences import ChatSettings
from server.records import Message, Role, Status

HEAD = '{"format": "sparrow", "version": 1, "conversations": [\n'
TAIL = "\n]}\n"
MAX_NAME = 80


@dataclass(frozen=True, slots=True)
class PortableMessage:
    """id and parent name messages inside of their conversation only; a parent stands before its children."""

    id: str
    parent: str | None
    role: Role
    content: str
    status: Status
    created_at: float
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Portable:
    """id: the one it had where it comes from, "" when that tells nothing; leaf: None for the newest."""

    id: str
    title: str
    created_at: float
    updated_at: float
    pinned: bool
    settings: ChatSettings
    leaf: str | None
    messages: tuple[PortableMessage, ...]

    def as_json(self) -> str:
        known: dict[str, Any] = asdict(self) | {"settings": self.settings.as_json()}
        return json.dumps(known, ensure_ascii=False)


def markdown(title: str, thread: Sequence[Message], you: str, answer: str) -> str:
    """One branch to read; you, answer: the headings above what is said."""
    said = (f"## {you if message.role == 'user' else answer}\n\n{message.content}\n" for message in thread)
    return "\n".join([f"# {title}\n", *said])


def attachment(title: str, ending: str) -> str:
    """Content-Disposition of a file that is named by people (RFC 6266): an old browser gets the ASCII of the name."""
    name = _file_name(title) + ending
    plain = _file_name(unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()) + ending
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _file_name(title: str) -> str:
    """Without what means something to a file system, a shell or a reader's eye (marks that turn the text around)."""
    visible = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in title)
    return re.sub(r'[/\\:*?"<>|%\s]+', " ", visible)[:MAX_NAME].strip(" .~-") or "chat"
