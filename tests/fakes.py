"""A KV cache made of lists, for tests of the bookkeeping that need no model."""

from __future__ import annotations

import random

from server.engine.scheduler import Batch


class FakeMemory:
    """Holds token lists per slot; `shared` limits all of them together, as a unified KV cache does."""

    def __init__(self, n_slots: int, n_shared: int = 10**9, can_truncate: bool = True) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(n_slots)]
        self.n_shared = n_shared
        self.can_truncate = can_truncate

    def truncate(self, slot: int, keep: int) -> bool:
        assert keep <= len(self.tokens[slot])
        if self.can_truncate:
            del self.tokens[slot][keep:]
        return self.can_truncate

    def clear(self, slot: int) -> None:
        self.tokens[slot].clear()

    def copy(self, source: int, target: int) -> None:
        assert not self.tokens[target]
        self.tokens[target] = self.tokens[source][:]

    def n_held(self, slot: int) -> int:
        return len(self.tokens[slot])

    def decode(self, batch: Batch) -> bool:
        """False: no room, nothing changed."""
        if sum(map(len, self.tokens)) + batch.n_tokens > self.n_shared:
            return False
        for span in batch.spans:
            sequence = span.sequence
            assert sequence.slot is not None
            held = self.tokens[sequence.slot]
            assert held == sequence.tokens[: sequence.n_past], "the slot holds something else"
            held.extend(sequence.upcoming(span.n_tokens))
        return True

    def break_some(self, batch: Batch, rng: random.Random) -> None:
        """A failed computation: some spans were written, some half."""
        for span in batch.spans:
            assert span.sequence.slot is not None
            self.tokens[span.sequence.slot].extend([-1] * rng.randint(0, span.n_tokens))
