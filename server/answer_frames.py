"""An answer as its readers get it: text becomes HTML once, whoever and however many listen. Pure.

    push(text), flush(), close() ──> Live ──> frames first + 1, first + 2, … last  <── since(n)
                                       └──> view: the page as it is loaded, and the n that it goes on from

A frame is a server-sent event with its number. Only the newest stay: a reader who is further behind gets a `reset` to
all that is written, which costs less, too.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import Any

from server.live import Live
from server.sse import sse

N_KEEP = 64
"""Frames that stay for those who come back: some seconds of an answer, 10 kB."""


@dataclass(frozen=True)
class View:
    """An answer's HTML; `after` is the number of the last frame in it: its reader goes on behind it, and hears the end.
    `open` is "" when all is settled."""

    settled: str
    open: str
    after: int


def frame(event: str, id: int | str | None, data: dict[str, Any]) -> bytes:
    return sse(json.dumps(data, ensure_ascii=False, separators=(",", ":")), id=id, event=event)


class Frames:
    """`last` is the number of the newest frame, `first` of the one before them all: larger than 0 in a run that goes on
    with what an earlier one has written. That run begins with a `reset`: who listened may have seen more, or less."""

    def __init__(self, first: int = 0) -> None:
        self.last = first
        self.is_closed = False
        self._first = first
        self._live = Live()
        self._kept: deque[bytes] = deque(maxlen=N_KEEP)

    @property
    def view(self) -> View:
        return View(self._live.settled, self._live.open, self.last - self.is_closed)

    def push(self, text: str) -> None:
        changes = self._live.push(text).changes
        if self.last == self._first > 0:
            self._add("reset", self._whole())
        elif changes:
            self._add("delta", changes)

    def flush(self) -> None:
        """No text follows."""
        self._add("delta", self._live.flush().changes)

    def close(self, end: dict[str, Any]) -> None:
        """No frame follows."""
        self._add("end", end)
        self.is_closed = True

    def since(self, n: int) -> bytes:
        """The frames after number n. Who saw an earlier run's, or those that are gone, gets all there is anew."""
        n_missing = self.last - max(n, self._first)
        if 0 <= n_missing <= len(self._kept):
            return b"".join(list(self._kept)[len(self._kept) - n_missing :])
        end = self._kept[-1] if self.is_closed else b""
        return frame("reset", self.last - self.is_closed, self._whole()) + end

    def _whole(self) -> dict[str, str]:
        return {"settled": self._live.settled, "open": self._live.open}

    def _add(self, event: str, data: dict[str, Any]) -> None:
        self.last += 1
        self._kept.append(frame(event, self.last, data))
