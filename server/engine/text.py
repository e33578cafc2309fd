"""From sampled bytes to text that may be shown: push()/flush() objects that give the same text for every cut. Pure.

pieces (bytes) -> Utf8Decoder -> StopMatcher -> text
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StopMatcher:
    """Holds back what may be the beginning of a stop string; ends the text before the first one that is complete.

    "First complete" is the only rule that does not depend on how the text was cut: of "b" and "aba", "b" ends "aba".
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False
        """True once a stop string was met: all further text is dropped."""

    def push(self, text: str) -> str:
        """More text in; out comes what is certainly before any stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = [(self._held.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in self._held]
        if found:
            self.stopped = True
            end, minus_length = min(found)
            return self._release(end + minus_length)
        return self._release(len(self._held) - self._n_undecided())

    def disarm(self) -> None:
        """Whatever comes from now on is text."""
        self._stops = ()

    def flush(self) -> str:
        """The text has ended: what was held back is no stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, n: int) -> str:
        released, self._held = self._held[:n], self._held[n:]
        return released

    def _n_undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0


class TextStream:
    """The whole pipeline of one answer. Half a code point is never shown; bytes that are none become U+FFFD."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopMatcher(stops)
        self.n_decoded = self.n_shown = 0
        """Characters that came in, as far as they are whole, and that came out."""

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def disarm(self) -> None:
        """No stop string is looked for from now on."""
        self._stops.disarm()

    def push(self, piece: bytes) -> str:
        text = self._decoder.decode(piece)
        return self._count(text, self._stops.push(text))

    def flush(self) -> str:
        """The rest, when generation ends for another reason than a stop string."""
        text = self._decoder.decode(b"", final=True)
        return self._count(text, self._stops.push(text) + self._stops.flush())

    def _count(self, decoded: str, shown: str) -> str:
        self.n_decoded += len(decoded)
        self.n_shown += len(shown)
        return shown
