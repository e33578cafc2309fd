"""Who computes what in the next step. Pure: it sees tokens and slots, never llama.cpp, a thread or a clock.

A step is one batch: the next row of every sequence that decodes, or a chunk of the oldest prompt that is read. While
there are both, they take turns, so nobody's stream waits for somebody else's prompt longer than one chunk. One batch of
both would be slower: where each slot has its own part of the KV cache, llama.cpp computes what is of different length
one after the other, and the rows of slots that are not neighbours too (8 rows in order 60 ms, in disorder 95 ms).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.engine.prefix import Memory, Shelf, SlotTable
from server.engine.sequence import Progress, Sequence

MAX_OVERTAKEN = 4
"""How often a waiting sequence may be passed by a later one whose prefix is at hand."""


@dataclass(frozen=True)
class Span:
    """n_tokens pending tokens of one sequence, then its guesses, evaluated in consecutive rows of a batch."""

    sequence: Sequence
    n_tokens: int

    @property
    def n_logits(self) -> int:
        """How many of its last rows have logits: those of the last known token and of each guess; a draft has none."""
        return 0 if self.sequence.is_draft else max(0, self.n_tokens - self.sequence.n_pending + 1)


@dataclass
class Batch:
    """What one llama_decode computes: spans in row order."""

    spans: list[Span] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(span.n_tokens for span in self.spans)

    @property
    def n_logits(self) -> int:
        return sum(span.n_logits for span in self.spans)

    @property
    def n_prefill(self) -> int:
        """How many of its tokens are a prompt's; valid until it is committed."""
        return sum(span.n_tokens for span in self.spans if not span.sequence.is_decoding)

    def sampled_rows(self) -> list[tuple[range, Sequence]]:
        """The rows that have logits, by sequence."""
        found, at = [], 0
        for span in self.spans:
            at += span.n_tokens
            if span.n_logits:
                found.append((range(at - span.n_logits, at), span.sequence))
        return found


class Scheduler:
    """Holds every accepted sequence until it is finished, aborted or failed. The engine's thread owns it."""

    def __init__(self, n_slots: int, n_ctx: int, memory: Memory, shelf: Shelf | None = None) -> None:
        self.slots = SlotTable(n_slots, n_ctx, memory, shelf)
        self.waiting: list[Sequence] = []
        self.drafts: list[Sequence] = []
        """Drafts that wait: they run while nothing else does, and give way at once."""
        self.running: list[Sequence] = []
        self._is_prompts_turn = False
        """It was, in the last step."""

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.drafts)

    @property
    def n_decoding(self) -> int:
        """Sequences whose readers wait for the next token: while there are any, a step should be short."""
        return sum(sequence.is_decoding for sequence in self.running)

    def progress(self, sequence: Sequence) -> Progress:
        """For any thread, so it looks at each thing once: a step may be going on."""
        waiting = list(self.waiting)
        place = waiting.index(sequence) + 1 if sequence in waiting else 0
        return Progress(place, min(sequence.n_past, sequence.n_prompt), sequence.n_prompt)

    def add(self, sequence: Sequence) -> None:
        (self.drafts if sequence.is_draft else self.waiting).append(sequence)

    def schedule(self, n_prefill: int) -> Batch:
        """The next step: all decode rows, or at most n_prefill prompt tokens. Empty only when there is no work."""
        if self.waiting:
            self._park_drafts()
        while self.waiting and self.slots.n_free:
            chosen = self._next_waiting()
            self.waiting.remove(chosen)
            self._admit(chosen)
        if self.drafts and not self.running:
            self._admit(self.drafts.pop(0))
        decoding = [sequence for sequence in self.running if sequence.is_decoding]
        reading = [sequence for sequence in self.running if not sequence.is_decoding]
        self._is_prompts_turn = bool(reading) and not (decoding and self._is_prompts_turn)
        if self._is_prompts_turn:
            return Batch([Span(reading[0], min(n_prefill, reading[0].n_pending))])
        decoding.sort(key=lambda sequence: sequence.slot or 0)
        return Batch([Span(sequence, 1 + len(sequence.guesses)) for sequence in decoding])

    def _next_waiting(self) -> Sequence:
        """The one whose prefix is at hand, so that it is not evicted by others; but nobody is passed for ever."""
        chosen = self.waiting[0]
        if chosen.n_overtaken < MAX_OVERTAKEN and len(self.waiting) > 1:
            chosen = max(self.waiting, key=lambda sequence: (self.slots.n_common(sequence.tokens), -sequence.arrival))
        for sequence in self.waiting[: self.waiting.index(chosen)]:
            sequence.n_overtaken += 1
        return chosen

    def _park_drafts(self) -> None:
        """Somebody waits for an answer: no draft may hold a slot. What was read of it stays there for now."""
        for sequence in [running for running in self.running if running.is_draft]:
            self.preempt(sequence)

    def _admit(self, sequence: Sequence) -> None:
        claim = self.slots.claim(sequence.tokens)
        sequence.place(claim.slot, claim.n_past)
        if sequence.n_reused is None:  # after a preemption it would count its own tokens
            sequence.n_reused = claim.n_past
        self.running.append(sequence)
        self.running.sort(key=lambda running: running.arrival)

    def commit(self, batch: Batch, sampled: Mapping[Sequence, list[int]]) -> None:
        """The batch was computed. sampled: by batch.sampled_rows(), the guesses that were right and one more."""
        for span in batch.spans:
            sequence, new = span.sequence, sampled.get(span.sequence, [])
            assert sequence.slot is not None
            n_guessed = max(0, span.n_tokens - sequence.n_pending)
            n_kept = span.n_tokens - n_guessed + max(0, len(new) - 1)
            self.slots.extend(sequence.slot, sequence.upcoming(n_kept), n_more=span.n_tokens - n_kept)
            sequence.advance(span.n_tokens - n_guessed)
            for right in new[:-1]:
                sequence.append(right)
                sequence.advance(1)
            for token in new[-1:]:
                sequence.append(token)
            sequence.guesses = []

    def undo(self, batch: Batch) -> None:
        """The batch was broken off: some of its tokens may be in the cache, none of them is booked."""
        for span in batch.spans:
            assert span.sequence.slot is not None
            span.sequence.guesses = []
            if not self.slots.undo(span.sequence.slot):
                span.sequence.place(span.sequence.slot, 0)

    def remove(self, sequence: Sequence) -> None:
        """Finished or aborted: the slot becomes idle and keeps its tokens. A sequence that is not here is ignored."""
        for queue in (self.waiting, self.drafts):
            if sequence in queue:
                queue.remove(sequence)
        if sequence in self.running:
            self.slots.release(self._leave(sequence), sequence.is_draft)

    def fail(self, sequence: Sequence) -> None:
        """llama.cpp could not compute it: what its slot holds is unknown, so it is cleared."""
        self.slots.fail(self._leave(sequence))

    def make_room(self) -> bool:
        """The KV cache had no room: evict an idle prefix, else preempt the youngest. False: only one runs, too long."""
        if self.slots.evict():
            return True
        if len(self.running) < 2:
            return False
        self.preempt(self.running[-1])
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Give the slot back and wait again, first in line; the tokens known so far become its prompt to read."""
        self.slots.release(self._leave(sequence), sequence.is_draft)
        sequence.place(None, 0)
        (self.drafts if sequence.is_draft else self.waiting).insert(0, sequence)

    def _leave(self, sequence: Sequence) -> int:
        """Stop running; the slot that was used is for the caller to give back."""
        self.running.remove(sequence)
        assert sequence.slot is not None
        return sequence.slot

    def check_integrity(self) -> None:
        """Assert that sequences, slots and llama.cpp agree. Run when idle, and after every step in tests."""
        self.slots.check_integrity()
        busy = [sequence.slot for sequence in self.running if sequence.slot is not None]
        assert len(busy) == len(set(busy)) == len(self.running), "two sequences share a slot"
        assert all(sequence.slot is None and sequence.n_past == 0 for sequence in [*self.waiting, *self.drafts])
        for sequence in self.running:
            assert sequence.slot is not None and self.slots.is_busy(sequence.slot)
            assert self.slots.held(sequence.slot) == sequence.tokens[: sequence.n_past]
