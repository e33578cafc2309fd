"""How many prompt tokens fit into a step while somebody reads an answer, learned from the steps before. Pure.

No fixed number would do: a Raspberry Pi is ten times slower than a laptop, and the same machine is slower when it is
hot. Decode steps and chunks of prompts take turns: what both take together is what a reader waits for the next word.
"""

from __future__ import annotations

LEAST = 8
"""Prompt tokens that a chunk has all the same, or a slow device would never read a prompt beside a stream."""

TILE = 8
"""Larger chunks are multiples of it: llama.cpp computes 16 rows as fast as 13 of them, and 24 in the time of 21."""

FRESH = 0.3
"""Weight of the newest step in the running means: three steps after a change, two thirds of it are learned."""


class Pace:
    """Seconds of steps in, tokens per chunk out. `budget_s`: what a decode step and a chunk may take together."""

    def __init__(self, budget_s: float, n_most: int) -> None:
        """n_most: tokens that a step may have at all."""
        self._budget_s = budget_s
        self._n_most = n_most
        self._decode_s: float | None = None
        self._token_s: float | None = None

    def observe(self, n_prefill: int, seconds: float) -> None:
        """A step took so long: a chunk of so many prompt tokens, or a decode step (0)."""
        if n_prefill:
            self._token_s = _mean(self._token_s, seconds / n_prefill)
        else:
            self._decode_s = _mean(self._decode_s, seconds)

    def n_prefill(self, is_read_along: bool) -> int:
        """Prompt tokens for the next chunk; all that a step holds when nobody reads an answer meanwhile."""
        if not is_read_along:
            return self._n_most
        if not self._token_s:
            return LEAST
        n = int((self._budget_s - (self._decode_s or 0.0)) / self._token_s)
        return min(self._n_most, max(LEAST, n // TILE * TILE))

    def reading_s(self, n_tokens: int, is_read_along: bool) -> float | None:
        """Seconds that so many prompt tokens will take, decode steps between their chunks too; None: unknown yet."""
        if self._token_s is None:
            return None
        n_turns = n_tokens / self.n_prefill(True) if is_read_along else 0.0
        return n_tokens * self._token_s + n_turns * (self._decode_s or 0.0)


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + FRESH * (newest - mean)
