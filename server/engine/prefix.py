"""What each llama.cpp sequence id ("slot") holds, so that a prompt continues where its prefix already is. Pure.

    empty ──claim──> busy ──release──> idle ──claim──> busy …        evict: idle -> empty      fail: busy -> empty

A slot's tokens are always exactly what llama.cpp holds under its id: check_integrity() compares the two.
A scan over all slots is enough: 32 slots of 8,192 tokens take 0.28 ms; no tree is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Tokens
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from server.engine.stats import SlotInfo

MIN_COPY = 16
"""Tokens that a copy must save: copying a slot takes 10 to 20 ms here, reading 16 tokens four times as much."""

MIN_RESTORE = 64
"""Tokens that a snapshot must save: 1,250 tokens are restored in the time of reading ten here."""

SLIGHT = 8
"""Tokens that are soon read again: what stands between an answer and the next question, say."""

Ids = npt.NDArray[np.int32]


def n_common(one: Ids, other: Ids) -> int:
    """Length of the common prefix."""
    n = min(len(one), len(other))
    differs = np.flatnonzero(one[:n] != other[:n])
    return int(differs[0]) if len(differs) else n


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


class Shelf(Protocol):
    """Snapshots of what slots held once. snapshots.Snapshots is one."""

    def n_common(self, tokens: Ids) -> int:
        """Longest prefix of `tokens` that a snapshot holds."""
        ...

    def restore(self, slot: int, tokens: Ids) -> Ids | None:
        """Load the snapshot with the longest prefix of `tokens` into the slot, which is empty; all that it holds.

        None: it was of no use, and the slot is empty.
        """
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
        self.n_said = 0
        """How many of the tokens may be written to disk: a draft is its author's until it is sent."""
        self.busy = False
        self.last_used = 0
        self.offered = 0
        """When it was last offered for a snapshot, on the clock of last_used."""

    def n_common(self, tokens: Ids) -> int:
        return n_common(self.ids[: self.n], tokens)

    def info(self, at: int) -> SlotInfo:
        n, n_said = self.n, self.n_said
        return SlotInfo(at, "busy" if self.busy else "idle" if n else "empty", n, not self.busy and n > n_said)


class SlotTable:
    """Claims and releases slots, and keeps `memory` in step. Not thread-safe: the engine's thread owns it."""

    def __init__(self, n_slots: int, n_ctx: int, memory: Memory, shelf: Shelf | None = None) -> None:
        self._slots = [_Slot(n_ctx) for _ in range(n_slots)]
        self._memory = memory
        self._shelf = shelf
        self._clock = 0

    @property
    def n_free(self) -> int:
        """Slots that a new sequence could claim: empty or idle."""
        return sum(not slot.busy for slot in self._slots)

    def n_common(self, tokens: Tokens[int]) -> int:
        """Longest prefix of `tokens` that a free slot holds. Valid until the next claim, release or evict."""
        wanted = np.asarray(tokens, dtype=np.int32)
        return max((slot.n_common(wanted) for slot in self._slots if not slot.busy), default=0)

    def claim(self, tokens: Tokens[int], *, anew: bool = False) -> Claim:
        """Take a free slot for `tokens`, the one that wastes least, and forget in it what does not belong to them.

        anew: all of them have to be evaluated. Else at most len(tokens) - 1 are kept: one token has to be evaluated to
        have logits. There must be a free slot; whoever claims must release or fail it.
        """
        wanted = np.asarray(() if anew else tokens, dtype=np.int32)
        at = self._longest_unused() if anew or self.is_missed(wanted) else self._choose(wanted)
        slot = self._slots[at]
        if not self._restore_longer_prefix(at, wanted):
            self._copy_longer_prefix(at, wanted)
        keep = max(0, min(slot.n_common(wanted), len(wanted) - 1))
        if keep < slot.n and not (keep and self._memory.truncate(at, keep)):
            self._memory.clear(at)
            keep = 0
        slot.n, slot.n_said, slot.busy = keep, min(slot.n_said, keep), True
        return Claim(at, keep)

    def is_missed(self, wanted: Ids) -> bool:
        """A snapshot holds so much more of `wanted` than the slots do that a claim would restore it."""
        n = self._shelf.n_common(wanted) if self._shelf else 0
        return n - max(slot.n_common(wanted) for slot in self._slots) >= MIN_RESTORE

    def _restore_longer_prefix(self, at: int, wanted: Ids) -> bool:
        if self._shelf is None or not self.is_missed(wanted):
            return False
        self._forget(at)
        ids = self._shelf.restore(at, wanted)
        if ids is not None:
            slot = self._slots[at]
            slot.n = slot.n_said = len(ids)
            slot.ids[: slot.n] = ids
        return ids is not None

    def _copy_longer_prefix(self, at: int, wanted: Ids) -> None:
        """A system prompt, or the trunk of a branch, is read once: another slot, busy or not, may hold more of it."""
        slot = self._slots[at]
        n, source = max((other.n_common(wanted), index) for index, other in enumerate(self._slots))
        if n - slot.n_common(wanted) >= MIN_COPY:
            self._forget(at)
            self._memory.copy(source, at)
            slot.n, slot.n_said = self._slots[source].n, self._slots[source].n_said
            slot.ids[: slot.n] = self._slots[source].ids[: slot.n]

    def _choose(self, wanted: Ids) -> int:
        """The slot of the same conversation, else an empty one, else the one not used for longest.

        "Same conversation" is a slot of which at least half would be reused: two conversations that share no more
        than a system prompt must not throw each other out while another slot is free.
        """
        free = [(at, slot, slot.n_common(wanted)) for at, slot in enumerate(self._slots) if not slot.busy]
        same = [(n, at) for at, slot, n in free if n and 2 * n >= slot.n]
        return max(same)[1] if same else self._longest_unused()

    def _longest_unused(self) -> int:
        free = [(slot.n > 0, slot.last_used, at) for at, slot in enumerate(self._slots) if not slot.busy]
        assert free, "claim without a free slot"
        return min(free)[2]

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
        self._forget(at)
        return False

    def release(self, at: int, is_draft: bool = False) -> None:
        """The sequence is done with the slot; its tokens stay for whoever continues them."""
        slot = self._slots[at]
        assert slot.busy
        self._clock += 1
        slot.busy, slot.last_used = False, self._clock
        if not is_draft:
            slot.n_said = slot.n

    def fail(self, at: int) -> None:
        """What the slot holds is not known any more: forget it."""
        self.release(at)
        self._forget(at)

    def next_unsaved(self, may_cut: bool) -> tuple[int, Ids] | None:
        """An idle slot that a snapshot should be made of, and its tokens; each slot once after each use.

        A draft behind what was said is forgotten if it is slight or with may_cut, else the slot is passed over.
        """
        for at, slot in enumerate(self._slots):
            if slot.busy or slot.offered == slot.last_used or not self._gains(slot.ids[: slot.n_said]):
                continue
            is_slight = slot.n - slot.n_said <= SLIGHT
            if slot.n > slot.n_said and not ((may_cut or is_slight) and self._memory.truncate(at, slot.n_said)):
                continue
            slot.n, slot.offered = slot.n_said, slot.last_used
            return at, slot.ids[: slot.n].copy()
        return None

    def _gains(self, ids: Ids) -> bool:
        """A snapshot of these would one day save enough that no other one does."""
        return self._shelf is not None and len(ids) - self._shelf.n_common(ids) >= MIN_RESTORE

    def evict(self) -> bool:
        """Empty the idle slot that was not used for longest: a unified cache has room then. False: there is none."""
        idle = [(slot.last_used, at) for at, slot in enumerate(self._slots) if not slot.busy and slot.n]
        if idle:
            self._forget(min(idle)[1])
        return bool(idle)

    def erase(self, find: Callable[[Ids], int | None]) -> None:
        """Forget what idle slots hold from the place on that `find` gives of what was said in them; None: nothing."""
        for at, slot in enumerate(self._slots):
            keep = None if slot.busy else find(slot.ids[: slot.n_said])
            if keep is None:
                continue
            if keep and self._memory.truncate(at, keep):
                slot.n, slot.n_said = keep, min(slot.n_said, keep)
            else:
                self._forget(at)

    def reset(self) -> None:
        """Forget all that is idle, whatever the books say of it."""
        for at, slot in enumerate(self._slots):
            if not slot.busy:
                self._forget(at)

    def _forget(self, at: int) -> None:
        self._memory.clear(at)
        self._slots[at].n = self._slots[at].n_said = 0

    def held(self, at: int) -> list[int]:
        """A copy of the slot's tokens."""
        slot = self._slots[at]
        return [int(token) for token in slot.ids[: slot.n]]

    def infos(self) -> tuple[SlotInfo, ...]:
        """How the slots stand; for any thread."""
        return tuple(slot.info(at) for at, slot in enumerate(self._slots))

    def is_busy(self, at: int) -> bool:
        return self._slots[at].busy

    def check_integrity(self) -> None:
        """Assert that every slot holds as many tokens as llama.cpp does. Cheap: one call per slot."""
        for at, slot in enumerate(self._slots):
            n_held = self._memory.n_held(at)
            assert slot.n == n_held, f"slot {at} should hold {slot.n} tokens, llama.cpp holds {n_held}"
