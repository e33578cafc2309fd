"""Guessing the next tokens from the conversation itself: an answer that quotes or edits its prompt repeats it. Pure.

Guesses that llama.cpp then checks in one batch cost a row each, and on a small CPU a row is not cheap (16 rows take as
long as 6 or 7 single steps). So nothing is guessed aloud until the last tokens were guessed right in silence, which
costs microseconds: text that has nothing to quote is as fast as without.
"""

from __future__ import annotations

from collections.abc import Sequence

N_GRAM = 3
"""Tokens that have to be the same for a place to count as quoted."""

N_HITS = 4
"""Tokens guessed right in silence before the first guess aloud."""

N_FIRST, N_MOST = 4, 15
"""Guesses at first; they double while all of them are right."""


class Lookup:
    """One conversation's tokens, and where in them its end has stood before."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._next_of: dict[tuple[int, ...], int] = {}
        self._at: int | None = None
        self._n_hits = 0
        self._width = N_FIRST
        for token in tokens:
            self.push(token)
        self._n_hits = 0

    def push(self, token: int) -> None:
        """A token was added to the conversation."""
        hit = self._at is not None and self._tokens[self._at] == token
        self._n_hits = self._n_hits + 1 if hit else 0
        self._tokens.append(token)
        end = tuple(self._tokens[-N_GRAM:])
        if hit and self._at is not None:
            self._at += 1
        else:
            self._at = self._next_of.get(end)
        self._next_of[end] = len(self._tokens)

    def guesses(self) -> list[int]:
        """The tokens that probably come next; none unless the last ones were foreseen."""
        if self._at is None or self._n_hits < N_HITS:
            return []
        return self._tokens[self._at : self._at + self._width]

    def learn(self, n_guessed: int, n_right: int) -> None:
        """How the last guesses went, after the tokens were pushed."""
        self._width = min(2 * self._width, N_MOST) if n_right == n_guessed else N_FIRST
