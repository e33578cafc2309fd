"""What a page and a stream say, for tests that read them without a browser."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import Any

from tests.answer_page import AnswerPage
from tests.answer_page import text_of as visible

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
    markup: str

    @property
    def page(self) -> AnswerPage:
        """An answer as it was loaded, to go on from `after`."""
        found = re.fullmatch(r'<div class="settled">(.*)</div><div class="open">(.*)</div>', self.markup, re.DOTALL)
        assert found, self.markup
        return AnswerPage(found[1], found[2])


def articles(page: str) -> list[Article]:
    """The messages of a page, in order."""
    found = []
    for role, id, busy, after, text, rest in _ARTICLE.findall(page.partition("<template")[0]):
        note = re.search(r'<p class="note"( hidden)?><span class="why">(.*?)</span>', rest)
        why = html.unescape(note[2]) if note and not note[1] else ""
        buttons = {name for name, hidden in re.findall(r'class="(retry|continue)"( hidden)?', rest) if not hidden}
        can = ("retry" in buttons, "continue" in buttons)
        found.append(Article(role, int(id), bool(busy), int(after or 0), visible(text).strip(), why, *can, text))
    return found


def events(stream: str) -> list[tuple[str, str, Any]]:
    """(event, id, data) of each event of a stream."""
    found = re.findall(r"event: (\w+)\nid: (\w+)\ndata: (.*)\n\n", stream)
    return [(event, id, json.loads(data)) for event, id, data in found]


def page_of(stream: str) -> AnswerPage:
    """What the page shows at the end of a stream that begins with the answer."""
    page = AnswerPage()
    for event, _, data in events(stream):
        page.take(event, data)
    return page


def text_of(stream: str) -> str:
    return page_of(stream).text
