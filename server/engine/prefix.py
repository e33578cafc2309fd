"""What each llama.cpp sequence id ("slot") holds, so that a prompt continues where its prefix already is. Pure.

    empty ──claim──> busy ──release──> idle ──claim──> busy …        evict: idle -> empty      fail: busy -> empty

A slot's tokens are always exactly what llama.cpp holds under its id: check_integrity() compares the two.
A scan over all slots is enough: 32 slots of 8,192 tokens take 0.28 ms; no tree is needed.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

MIN_COPY = 16
"""Tokens that a copy must save: copying a slot takes 10 to 20 ms here, reading 16 tokens four times as much."""

Ids = npt.NDArray[np.int32]


class Memory(Protocol):
    """The KV cache, as far as bookkeeping needs it. llama.Context is one; tests have a fake."""

    def truncate(self, slot: int, keep: int) -> bool:
        """Forget all but the first `keep` tokens; False: this architecture can't forget a part, nothing was changed."""
        ...

    def clear(self, slot: int) -> None:
        """Forget the slot's tokens altogether; never fails."""
        ...

    def copy(self, source: int, target: int) -> None:
        """`target`, which is empty, holds all that `source` holds, too; costs as much as copying its memory."""
        ...

    def n_held(self, slot: int) -> int:
        """How many tokens llama.cpp holds for this slot."""
        ...


class Claim(NamedTuple):
    slot: int
    n_past: int
    """How many of the claimed tokens the slot holds already; the rest has been forgotten."""


class _Slot:
    """One sequence id. `ids[:n]` are its tokens; the array is allocated once, as long as a conversation may be."""

    def __init__(self, n_ctx: int) -> None:
        self.ids: Ids = np.empty(n_ctx, dtype=np.int32)
        self.n = 0
        self.busy = False
        self.last_used = 0

    def n_common(self, tokens: Ids) -> int:
        n = min(self.n, len(tokens))
        differs = np.flatnonzero(self.ids[:n] != tokens[:n])
        return int(differs[0]) if len(differs) else n


class SlotTable:
    """Claims and releases slots, and keeps `memory` in step. Not thread-safe: the engine's thread owns it."""

    def __init__(self, n_slots: int, n_ctx: int, memory: Memory) -> None:
        self._slots = [_Slot(n_ctx) for _ in range(n_slots)]
        self._memory = memory
        self._clock = 0

    @property
    def n_free(self) -> int:
        """Slots that a new sequence could claim: empty or idle."""
        return sum(not slot.busy for slot in self._slots)

    def n_common(self, tokens: Tokens[int]) -> int:
        """Longest prefix of `tokens` that a free slot holds. Valid until the next claim, release or evict."""
        wanted = np.asarray(tokens, dtype=np.int32)
        return max((slot.n_common(wanted) for slot in self._slots if not slot.busy), default=0)

    def claim(self, tokens: Tokens[int]) -> Claim:
        """Take a free slot for `tokens`, the one that wastes least, and forget in it what does not belong to them.

        At most len(tokens) - 1 are kept: one token has to be evaluated to have logits. There must be a free slot;
        whoever claims must release or fail it.
        """
        wanted = np.asarray(tokens, dtype=np.int32)
        at = self._choose(wanted)
        slot = self._slots[at]
        self._copy_longer_prefix(at, wanted)
        keep = min(slot.n_common(wanted), len(wanted) - 1)
        if keep < slot.n and not (keep and self._memory.truncate(at, keep)):
            self._memory.clear(at)
            keep = 0
        slot.n, slot.busy = keep, True
        return Claim(at, keep)

    def _copy_longer_prefix(self, at: int, wanted: Ids) -> None:
        """A system prompt, or the trunk of a branch, is read once: another slot, busy or not, may hold more of it."""
        slot = self._slots[at]
        n, source = max((other.n_common(wanted), index) for index, other in enumerate(self._slots))
        if n - slot.n_common(wanted) >= MIN_COPY:
            self._forget(at)
            self._memory.copy(source, at)
            slot.n = self._slots[source].n
            slot.ids[: slot.n] = self._slots[source].ids[: slot.n]

    def _choose(self, wanted: Ids) -> int:
        """The slot of the same conversation, else an empty one, else the one not used for longest.

        "Same conversation" is a slot of which at least half would be reused: two conversations that share no more
        than a system prompt must not throw each other out while another slot is free.
        """
        free = [(at, slot, slot.n_common(wanted)) for at, slot in enumerate(self._slots) if not slot.busy]
        assert free, "claim without a free slot"
        same = [(n, at) for at, slot, n in free if n and 2 * n >= slot.n]
        if same:
            return max(same)[1]
        return min(free, key=lambda entry: (entry[1].n > 0, entry[1].last_used))[0]

    def extend(self, at: int, tokens: Tokens[int], n_more: int = 0) -> None:
        """`tokens` were evaluated in this busy slot, behind what it held, and n_more that are forgotten again."""
        slot = self._slots[at]
        assert slot.busy
        slot.ids[slot.n : slot.n + len(tokens)] = tokens
        slot.n += len(tokens)
        if n_more:
            kept = self._memory.truncate(at, slot.n)
            assert kept, "guesses need an architecture that can forget a part"

    def undo(self, at: int) -> bool:
        """Forget what llama.cpp holds of this busy slot beyond the books; False: it had to forget all of it."""
        slot = self._slots[at]
        if slot.n and self._memory.truncate(at, slot.n):
            return True
        self._memory.clear(at)
        slot.n = 0
        return False

    def release(self, at: int) -> None:
        """The sequence is done with the slot; its tokens stay for whoever continues them."""
        slot = self._slots[at]
        assert slot.busy
        self._clock += 1
        slot.busy, slot.last_used = False, self._clock

    def fail(self, at: int) -> None:
        """What the slot holds is not known any more: forget it."""
        self.release(at)
        self._forget(at)

    def evict(self) -> bool:
        """Empty the idle slot that was not used for longest: a unified cache has room then. False: there is none."""
        idle = [(slot.last_used, at) for at, slot in enumerate(self._slots) if not slot.busy and slot.n]
        if idle:
            self._forget(min(idle)[1])
        return bool(idle)

    def reset(self) -> None:
        """Forget all that is idle, whatever the books say of it."""
        for at, slot in enumerate(self._slots):
            if not slot.busy:
                self._forget(at)

    def _forget(self, at: int) -> None:
        self._memory.clear(at)
        self._slots[at].n = 0

    def held(self, at: int) -> list[int]:
        """A copy of the slot's tokens."""
        slot = self._slots[at]
        return [int(token) for token in slot.ids[: slot.n]]

    def is_busy(self, at: int) -> bool:
        return self._slots[at].busy

    def check_integrity(self) -> None:
        """Assert that every slot holds as many tokens as llama.cpp does. Cheap: one call per slot."""
        for at, slot in enumerate(self._slots):
            n_held = self._memory.n_held(at)
            assert slot.n == n_held, f"slot {at} should hold {slot.n} tokens, llama.cpp holds {n_held}"
