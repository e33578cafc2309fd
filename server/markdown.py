"""Markdown of an answer to HTML that is safe to show: render(source), and the blocks that it consists of.

    source ── markdown-it ──> blocks ── highlight, outline ──> HTML ── nh3 ──> what stands in the page

Two walls: raw HTML is text to the parser and links lead to http, https or mailto only; and whatever comes out passes
an allow-list. Nothing in one block of the top level changes another (definitions like `[x]: url` are off for that), so
an answer can be shown block by block while it grows: the parts joined are render(whole).
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned
from markdown_it.token import Token

from server.highlight import highlight

MARK = "\ufdd0"
"""A character that Unicode reserves for a program's own use: where `server.live` wants its tail. No text holds it."""

MAX_INLINE = 8_000
"""Characters of one paragraph that are parsed: a model in a loop writes `[[[[…`, and each `[` looks for its end."""

CACHE_CHARS = 2_000_000
"""Of sources and their HTML. A chat of 500 messages has some 400,000."""

_Env = dict[str, Any]
Outline = list[int]
"""The levels, as written, of the headings that the next one stands under."""


@dataclass(frozen=True)
class Block:
    """One block of the top level: lines [start, end) of its source."""

    tokens: Sequence[Token]
    start: int
    end: int

    def is_closed(self, has_blank_line_below: bool) -> bool:
        """No line that may follow belongs to it. (A list waits for what comes below a blank line.)"""
        first = self.tokens[0]
        if first.type == "fence":
            return is_closed_fence(first)
        if first.type == "heading_open" and "|" in self.tokens[1].content:
            return has_blank_line_below  # `|-|-|` makes a table of it
        return first.type in ("heading_open", "hr") or (has_blank_line_below and first.type in _END_AT_A_BLANK_LINE)


_END_AT_A_BLANK_LINE = {"paragraph_open", "table_open", "blockquote_open"}


def is_closed_fence(fence: Token) -> bool:
    """Its last line closes it. Lines of a source that is growing all end in a newline."""
    start, end = fence.map or (0, 0)
    return end - start == fence.content.count("\n") + 2


def tidy(text: str) -> str:
    """The text as all else here expects it: lines end in one newline, and MARK is no character of it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace(MARK, "\ufffd")


def render(source: str) -> str:
    """The whole answer as HTML."""
    known = _cache.get(source)
    if known is None:
        outline: Outline = []
        known = "".join(html(block, outline) for block in blocks(tidy(source)))
        _cache.put(source, known)
    return known


def blocks(source: str) -> list[Block]:
    """The blocks of the top level of a tidy source. Lines between them are blank."""
    tokens = _md.parse(source)
    ends = [at for at, token in enumerate(tokens) if token.level == 0 and token.nesting <= 0]
    found, start = [], 0
    for end in ends:
        first_line, last_line = tokens[start].map or (0, 0)
        found.append(Block(tokens[start : end + 1], first_line, last_line))
        start = end + 1
    return found


def html(block: Block, outline: Outline, *, is_growing: bool = False) -> str:
    """One block as HTML. Its headings are added to the outline. Code that is growing has no colours before its end."""
    tokens = block.tokens
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.tag = tokens[at + 2].tag = _heading(outline, int(token.tag[1]))
        elif token.type == "paragraph_open":
            # A list's items are "loose" once a blank line stands between any two: all of it would jump.
            token.hidden = tokens[at + 2].hidden = at > 0 and tokens[at - 1].type == "list_item_open"
        if token.level == 0 and token.nesting == 1:
            token.attrSet("dir", "auto")
    return _cleaner.clean(_md.renderer.render(tokens, _md.options, {"is_growing": is_growing}))


def inline(text: str) -> str:
    """What stands inside of a paragraph, as HTML."""
    return _cleaner.clean(_md.renderInline(text))


def _heading(outline: Outline, level: int) -> str:
    """Below the page's own two levels, and none is left out: people who listen jump from heading to heading."""
    while outline and outline[-1] >= level:
        outline.pop()
    outline.append(level)
    return f"h{min(6, len(outline) + 2)}"


class _State(StateInline):
    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """As CommonMark, but `**注意：**请` is bold: between Chinese letters no blanks tell where a word ends."""
        scanned = super().scanDelims(start, canSplitWord)
        before, after = (
            self.src[max(0, start - 1) : start],
            self.src[start + scanned.length : start + scanned.length + 1],
        )
        if not (_is_wide(before) or _is_wide(after)):
            return scanned
        return Scanned(not (after or " ").isspace(), not (before or " ").isspace(), scanned.length)


def _is_wide(character: str) -> bool:
    return character > "\u1100" and unicodedata.east_asian_width(character) in "WF"


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: Any, tokens: list[Token]) -> list[Token]:
        if len(src) > MAX_INLINE:
            tokens.append(Token("text", "", 0, content=src))
            return tokens
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


def _plain_cells(state: StateCore) -> None:
    """The Content-Security-Policy takes no style attribute."""
    for token in state.tokens:
        style = token.attrs.pop("style", None)
        if style is not None:
            token.attrs["align"] = str(style).removeprefix("text-align:")


_LANGUAGE = re.compile(r"[a-z0-9_+.#-]{1,32}")


def _code(_: Any, tokens: Sequence[Token], at: int, __: Any, env: _Env) -> str:
    token = tokens[at]
    is_growing = env["is_growing"] and (MARK in token.content or not is_closed_fence(token))
    first_word = token.info.strip().partition(" ")[0].lower()
    language = first_word if _LANGUAGE.fullmatch(first_word) else ""
    name = f' class="language-{language}"' if language else ""
    code = highlight(token.content, "" if is_growing else language)
    return f'<div class="code"><pre tabindex="0" dir="ltr"><code{name}>{code}</code></pre></div>\n'


def _image(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: _Env) -> str:
    """A link: to load a picture would tell a stranger who reads this."""
    token = tokens[at]
    alt = renderer.renderInlineAsText(token.children or [], options, env)
    link = Token("link_open", "a", 1, attrs={"href": str(token.attrs["src"])})
    name = Token("text", "", 0, content=alt or str(token.attrs["src"]))
    return str(renderer.renderInline([link, name, Token("link_close", "a", -1)], options, env))


_SCHEME = re.compile(r"(?:https?|mailto):", re.IGNORECASE)


def _parser() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "breaks": True})
    md.inline = _Inline()
    md.configure("commonmark", {"html": False, "breaks": True})
    md.enable(["table", "strikethrough"]).disable(["reference", "html_block", "html_inline"])
    md.core.ruler.push("plain_cells", _plain_cells)
    md.validateLink = lambda url: _SCHEME.match(url) is not None  # type: ignore[method-assign]
    md.add_render_rule("fence", _code)
    md.add_render_rule("code_block", _code)
    md.add_render_rule("image", _image)
    md.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table dir="auto">\n')
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    md.render("*a*")  # compiles its rules now: two threads that did so at once would see half of them
    return md


_md = _parser()

_cleaner = nh3.Cleaner(
    tags=set(
        "p br hr h3 h4 h5 h6 ul ol li blockquote pre code em strong s a table thead tbody tr th td div span".split()
    ),
    attributes={
        "*": {"dir"},
        "a": {"href", "title"},
        "ol": {"start"},
        "th": {"align"},
        "td": {"align"},
        "code": {"class"},
        "div": {"class", "tabindex"},
        "pre": {"tabindex"},
        "span": {"class"},
    },
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


class _Cache:
    """What was rendered last, up to CACHE_CHARS; pages are rendered on several threads."""

    def __init__(self) -> None:
        self._html: dict[str, str] = {}
        self._n_chars = 0
        self._lock = threading.Lock()

    def get(self, source: str) -> str | None:
        with self._lock:
            found = self._html.pop(source, None)
            if found is not None:
                self._html[source] = found  # the newest stands last
            return found

    def put(self, source: str, html: str) -> None:
        with self._lock:
            if source not in self._html:
                self._n_chars += len(source) + len(html)
            self._html[source] = html
            while self._n_chars > CACHE_CHARS:
                oldest = next(iter(self._html))
                self._n_chars -= len(oldest) + len(self._html.pop(oldest))


_cache = _Cache()
