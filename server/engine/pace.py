"""How many prompt tokens fit into a step while somebody reads an answer, learned from the steps before. Pure.

No fixed number would do: a Raspberry Pi is ten times slower than a laptop, and the same machine is slower when it is
hot. A step costs what its decode rows cost, and so much more per prompt token; both are running means.
"""

from __future__ import annotations

LEAST = 8
"""Prompt tokens that go into every step all the same, or a slow device would never read a prompt beside a stream."""

FRESH = 0.3
"""Weight of the newest step in the running means: three steps after a change, two thirds of it are learned."""


class Pace:
    """Seconds of steps in, tokens per step out. `budget_s`: what a step may take while somebody reads along."""

    def __init__(self, budget_s: float, n_most: int) -> None:
        """n_most: tokens that a step may have at all."""
        self._budget_s = budget_s
        self._n_most = n_most
        self._decode_s = 0.0
        self._token_s: float | None = None

    def observe(self, n_decode: int, n_prefill: int, seconds: float) -> None:
        """A step of so many decode rows and prompt tokens took so long."""
        if n_prefill == 0:
            self._decode_s += FRESH * (seconds - self._decode_s) if self._decode_s else seconds
            return
        token_s = max(1e-6, seconds - (self._decode_s if n_decode else 0.0)) / n_prefill
        self._token_s = token_s if self._token_s is None else self._token_s + FRESH * (token_s - self._token_s)

    def n_prefill(self, n_decode: int) -> int:
        """Prompt tokens for the next step beside n_decode decode rows; all that a step holds when there are none."""
        room = self._n_most - n_decode
        if not n_decode or self._token_s is None:
            return room if not n_decode else min(room, LEAST)
        return max(min(room, LEAST), min(room, int((self._budget_s - self._decode_s) / self._token_s)))
