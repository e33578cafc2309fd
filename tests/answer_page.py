"""An answer as its page shows it: what the script makes of the events, without a browser."""

from __future__ import annotations

import html
import re
from typing import Any

_TAIL = re.compile(r'(<span class="tail">)(.*?)(</span>)', re.DOTALL)  # what is in a tail has no spans
_TAG = re.compile(r"<[^>]*>")


def text_of(markup: str) -> str:
    """What a person reads in it."""
    return html.unescape(_TAG.sub("", markup))


class AnswerPage:
    """`settled` and `open` are the HTML of the two elements of that name."""

    def __init__(self, settled: str = "", open: str = "") -> None:
        self.settled = settled
        self.open = open

    @property
    def text(self) -> str:
        return text_of(self.settled + self.open).strip()

    def take(self, event: str, data: dict[str, Any]) -> None:
        """A delta or a reset; others change nothing."""
        if event == "reset":
            self.settled, self.open = "", ""
        if event in ("reset", "delta"):
            self.settled += data.get("settled", "")
            self.open = data.get("open", self.open)
            if "tail" in data:
                self._change_tail(lambda _: str(data["tail"]))
            if "text" in data:
                self._change_tail(lambda tail: tail + html.escape(data["text"], quote=False))

    def _change_tail(self, change: Any) -> None:
        assert self.open.count('class="tail"') == 1, f"one tail, in {self.open!r}"
        self.open = _TAIL.sub(lambda found: found[1] + change(found[2]) + found[3], self.open)
