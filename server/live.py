"""An answer's HTML while it is written: push() pieces of it, flush() at its end; each says what changes in the page.

    settled                                   open
    blocks that nothing can change any more   the block that is being written, and in it a `.tail` where text goes on

At the end of a line the open block is parsed anew. Within a line text is appended to the tail, and only what may be
emphasis, code or a link parses the line again. The beginning of a line is held back while it may still become
a marker: nobody sees a `##` turn into a heading. Settled parts joined are render(whole), wherever the pieces were cut.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from html import escape

from server.markdown import MARK, Block, Outline, blocks, html, inline, is_closed_fence, tidy

BIG = 6_000
BIG_LINE = 600
"""An open block that weighs more (its characters, and 60 for each line: 2 ms), and a line that is longer, are parsed
again only after a sixteenth more (a line: an eighth): what came in between stands in the tail as it was written. So
a token in a list of 500 items costs no more than one in a list of 50."""

MAX_HELD = 40
MAX_FENCE_LINE = 200
"""Characters of a line that are held back at most."""

_HELD = re.compile(r"[ \t>\-+*#=_|:`~\d.)]*")
_FENCE_LINE = re.compile(r"[ \t>*+-]*(?:\d{1,9}[.)][ \t]+)?(?:`{3,}[^`]*|~{3,}.*)")
_MARKERS = re.compile(r"(?:[ \t]+|>|[-+*](?=[ \t])|\d{1,9}[.)](?=[ \t])|#{1,6}(?=[ \t]))*")
_ROW = re.compile(r" {0,3}\|")
_PIPE = re.compile(r"(?<!\\)\|")
_SPECIAL = re.compile(r"[*_`~\[\]()!<>&\\]")
_UNFINISHED_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*$|!?\[$|\\$")
_BLOCK_ENDS = re.compile(r"(?:</code></pre></div>|</(?:p|h\d|li|[uo]l|t[dhr]|thead|tbody|table|div|blockquote)>|\s)*$")
_PAIRED = re.compile(r"\\.|`+|\*\*|[*_]|~~")


@dataclass(frozen=True)
class Patch:
    """What changes in the page, in this order; None and "" change nothing.

    settled  HTML of blocks to append before the open one
    open     HTML that replaces the open block; it holds exactly one <span class="tail">, at the very end it is ""
    tail     HTML that replaces the content of the tail
    text     plain text to append to the tail
    """

    settled: str = ""
    open: str | None = None
    tail: str | None = None
    text: str = ""

    @property
    def changes(self) -> dict[str, str]:
        """Only what changes something."""
        return {
            name: value for name, value in asdict(self).items() if value or (value == "" and name in ("open", "tail"))
        }


class Live:
    """One answer. `settled` and `open` are what all patches until now have made."""

    def __init__(self) -> None:
        self._settled: list[str] = []
        self._outline: Outline = []
        self._source = ""
        """Complete lines, from the first open block on; `_line` is the one that is being written."""
        self._line = ""
        self._n_shown = 0
        """Characters of both that are in the page."""
        self._parsed_weight = 0
        self._carriage_return = ""
        self._fence: re.Pattern[str] | None = None
        """What closes the open code block."""
        self._is_raw = False
        self._is_done = False
        self._show()

    @property
    def settled(self) -> str:
        return "".join(self._settled)

    @property
    def open(self) -> str:
        return "" if self._is_done else f'{self._before}<span class="tail">{self._tail}</span>{self._after}'

    @property
    def _weight(self) -> int:
        return len(self._source) + 60 * self._source.count("\n")

    def push(self, text: str) -> Patch:
        """More of the answer has come."""
        whole, newline, line = self._tidied(text).rpartition("\n")
        if not newline:
            return self._grow(line)
        ended = self._line + whole + newline
        self._source, self._line = self._source + ended, line
        is_small_step = BIG < self._weight < self._parsed_weight * 17 // 16
        if is_small_step or (self._fence and not any(map(self._fence.fullmatch, ended.split("\n")))):
            self._is_raw = True
            return self._append()
        return self._parse()

    def flush(self) -> Patch:
        """The answer has ended: all of it is settled."""
        self._source += self._line + self._carriage_return.replace("\r", "\n")
        settled = self._settle(blocks(self._source))
        self._source, self._line, self._is_done = "", "", True
        return Patch(settled, open="")

    def _tidied(self, text: str) -> str:
        """A carriage return at the end waits: a newline may follow that belongs to it."""
        text = self._carriage_return + text
        self._carriage_return = "\r" if text.endswith("\r") else ""
        return tidy(text.removesuffix("\r"))

    def _parse(self) -> Patch:
        """Lines have ended: settle what is closed, and show the rest as it is now."""
        was_open = self.open
        found, lines = blocks(self._source), self._source.split("\n")[:-1]
        last = found[-1] if found else None
        if last and not last.is_closed("" in (line.strip(" \t") for line in lines[last.end :])):
            self._source = "".join(f"{line}\n" for line in lines[last.start :])
            found.pop()
        else:
            self._source, last = "", None
        self._fence = _closing(last)
        self._parsed_weight = self._weight
        settled = self._settle(found)
        self._show(last)
        return Patch(settled, open=self.open if self.open != was_open else None)

    def _settle(self, found: list[Block]) -> str:
        settled = "".join(html(block, self._outline) for block in found)
        self._settled.append(settled)
        return settled

    def _grow(self, text: str) -> Patch:
        """The line goes on."""
        if not text:
            return Patch()
        self._line += text
        if self._is_raw or self._is_code and self._is_shown:
            return self._append()
        is_row = _ROW.match(self._line) is not None
        if not self._is_shown or self._cell_has_ended or (is_row and "|" in text):
            return self._grow_block()
        content = self._line[self._start :]
        is_small_step = BIG_LINE < len(content) < self._n_inline * 9 // 8
        if is_small_step or not (self._is_unfinished or _SPECIAL.search(text)):
            return self._append()
        was_tail = self._tail
        self._show_content(content)
        return Patch(tail=self._tail if self._tail != was_tail else None)

    def _grow_block(self) -> Patch:
        """The line has become one that can be shown, or the next cell of a row has begun."""
        if self._is_shown and self._weight > BIG // 3:
            return self._append()
        if not self._is_shown and _is_held(self._line):
            return Patch()
        self._show()
        return Patch(open=self.open)

    def _append(self) -> Patch:
        """What is not shown yet goes into the tail as it is; in code, a line that may close it waits."""
        whole = self._source + self._line
        is_held = self._fence and not self._line.lstrip(" ").lstrip("`~").strip(" \t")
        # A newline waits too: a line that may never come would make the block higher.
        end = len(self._source) - 1 if is_held else len(whole)
        text = whole[self._n_shown : end]
        self._n_shown = max(end, self._n_shown)
        self._tail += escape(text, quote=False)
        return Patch(text=text)

    def _show(self, known: Block | None = None) -> None:
        """Put the open block into the page, and the line where it belongs: item, cell, heading, code.

        known: the block of the complete lines, when it was parsed a moment ago.
        """
        self._tail, self._start = "", 0
        self._cell_has_ended = self._is_unfinished = False
        self._n_shown = len(self._source)
        self._is_raw = self._fence is not None
        self._is_shown = self._is_raw or not _is_held(self._line)
        if not self._is_shown:
            self._place(self._source, known)
        elif self._is_raw:
            self._place(self._source + MARK)
            self._append()
        else:
            self._start, end = _content(self._line)
            self._cell_has_ended = end < len(self._line)
            self._place(self._source + self._line[: self._start] + MARK + self._line[end:])
            self._show_content(self._line[self._start : end])

    def _place(self, source: str, known: Block | None = None) -> None:
        outline, rule = list(self._outline), _rule(source)
        found = [known] if known and not rule else blocks(source + rule)
        page = "".join(html(block, outline, is_growing=True) for block in found)
        self._before, mark, self._after = page.partition(MARK)
        if not mark:  # behind the last word: alone below the block it would be a line that goes again
            ends = _BLOCK_ENDS.search(page, max(0, len(page) - 300))  # 20 levels of them fit into that
            at = ends.start() if ends else len(page)
            self._before, self._after = page[:at], page[at:]
        self._is_code = self._before.rfind("<code") > self._before.rfind("</code")

    def _show_content(self, content: str) -> None:
        self._n_inline = len(content)
        self._n_shown = len(self._source) + len(self._line)
        if self._is_code:
            self._tail = escape(content, quote=False)
            return
        shown = _closed(_UNFINISHED_LINK.sub(r"\1", content))
        self._is_unfinished = shown != content or _SPECIAL.match(content[-1:]) is not None
        self._tail = inline(shown)


def _closing(block: Block | None) -> re.Pattern[str] | None:
    """The line that closes the open code block; None when the open block is another one."""
    if block is None or block.tokens[0].type != "fence" or is_closed_fence(block.tokens[0]):
        return None
    marks = block.tokens[0].markup
    return re.compile(rf" {{0,3}}{marks}{marks[0]}*[ \t]*")


def _is_held(line: str) -> bool:
    """It may still become a marker of a kind that nobody can see yet."""
    is_marker = len(line) <= MAX_HELD and _HELD.fullmatch(line) is not None
    return is_marker or (len(line) <= MAX_FENCE_LINE and _FENCE_LINE.fullmatch(line) is not None)


def _content(line: str) -> tuple[int, int]:
    """Where the text of the line begins, behind its markers, and where it ends; of a table's row, its newest cell."""
    if not _ROW.match(line):
        markers = _MARKERS.match(line)
        return (markers.end() if markers else 0), len(line)
    pipes = [found.start() for found in _PIPE.finditer(line)]
    has_ended = len(pipes) > 1 and not line[pipes[-1] + 1 :].strip()
    start, end = (pipes[-2] + 1, pipes[-1]) if has_ended else (pipes[-1] + 1, len(line))
    cell = line[start:end]
    start += len(cell) - len(cell.lstrip())
    return start, max(start, end - len(cell) + len(cell.rstrip())) if has_ended else end


def _rule(source: str) -> str:
    """The line that makes a table of its first row, before it has come."""
    above, row = ("\n" + source.removesuffix("\n")).rsplit("\n", 1)
    if not _ROW.match(row) or _ROW.match(above.rpartition("\n")[2]):
        return ""
    n_cells = len(_PIPE.findall(row.strip().removeprefix("|").removesuffix("|"))) + 1
    return ("" if source.endswith("\n") else "\n") + "|" + "-|" * n_cells + "\n"


def _closed(text: str) -> str:
    """The text with the ends of the emphasis and code that it has begun; without a mark that has only begun."""
    is_open: list[str] = []
    cut = len(text)
    for found in _PAIRED.finditer(text):
        mark, before, after = found[0], text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        if mark[0] == "\\" or (is_open and is_open[-1][0] == "`" != mark[0]):
            continue
        if mark in is_open and not before.isspace():
            del is_open[is_open.index(mark) :]
        elif not after:
            cut = found.start()
        elif not after.isspace() and not (before.isascii() and before.isalnum()):
            is_open.append(mark)
    shown = text[:cut]
    words = shown.rstrip()
    return words + "".join(reversed(is_open)) + shown[len(words) :]
