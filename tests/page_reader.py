"""What a page and a stream say, for tests that read them without a browser."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

_ARTICLE = re.compile(
    r'<article data-role="(\w+)" data-id="(\d+)"(?: aria-busy="(true)" data-after="(\d+)")?>.*?'
    r'<div class="text" dir="auto">(.*?)</div><!--/text-->(.*?)</article>',
    re.DOTALL,
)


@dataclass(frozen=True)
class Article:
    role: str
    id: int
    is_busy: bool
    after: int
    text: str
    note: str
    can_retry: bool
    can_continue: bool


_TAG = re.compile(r"<[^>]*>")


def articles(page: str) -> list[Article]:
    """The messages of a page, in order."""
    found = []
    for role, id, busy, after, text, rest in _ARTICLE.findall(page.partition("<template")[0]):
        note = re.search(r'<p class="note"( hidden)?><span class="why">(.*?)</span>', rest)
        why = html.unescape(note[2]) if note and not note[1] else ""
        buttons = {name for name, hidden in re.findall(r'class="(retry|continue)"( hidden)?', rest) if not hidden}
        can = ("retry" in buttons, "continue" in buttons)
        found.append(Article(role, int(id), bool(busy), int(after or 0), html.unescape(_TAG.sub("", text)), why, *can))
    return found


def events(stream: str) -> list[tuple[str, str, Any]]:
    """(event, id, data) of each event of a stream."""
    found = re.findall(r"event: (\w+)\nid: (\w+)\ndata: (.*)\n\n", stream)
    return [(event, id, json.loads(data)) for event, id, data in found]


def text_of(stream: str) -> str:
    return "".join(data["text"] for _, _, data in events(stream)[:-1])
