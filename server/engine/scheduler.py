"""Who computes what in the next step. Pure: it sees tokens and slots, never llama.cpp, a thread or a clock.

A step is one batch: the next row of every sequence that decodes, or a chunk of prompts that are read. While there are
both, they take turns, so nobody's stream waits for somebody else's prompt longer than one chunk. One batch of both
would be slower: where each slot has its own part of the KV cache, llama.cpp computes what is of different length one
after the other, and the rows of slots that are not neighbours too (8 rows in order 60 ms, in disorder 95 ms).

So a chunk has the same number of tokens of each prompt in it, and these are neighbours. Only short prompts share one:
people who come together begin to read together, and their streams stay in step. Long ones are read one after the other,
in turns with the short ones: who says "hello" does not wait for somebody's book, and the book does not wait for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from server.engine.chunks import in_groups, neighbours
from server.engine.prefix import Memory, Shelf, SlotTable
from server.engine.sequence import Sequence

SHORT = 64
"""Tokens left to read up to which a prompt is a short one: a chunk of an idle machine."""

MAX_OVERTAKEN = 4
"""How often a waiting sequence may be passed by a later one whose prefix is at hand."""


@dataclass(frozen=True)
class Span:
    """n_tokens pending tokens of one sequence, then its guesses, evaluated in consecutive rows of a batch."""

    sequence: Sequence
    n_tokens: int

    @property
    def n_logits(self) -> int:
        """How many of its last rows have logits: those of the last known token and of each guess; a draft has none.

        An embedding's rows all have what llama.cpp calls outputs, too.
        """
        if self.sequence.is_embedding:
            return self.n_tokens
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
    def is_embedding(self) -> bool:
        return any(span.sequence.is_embedding for span in self.spans)

    @property
    def n_prefill(self) -> int:
        """How many of its tokens are a prompt's; valid until it is committed."""
        return sum(span.n_tokens for span in self.spans if not span.sequence.is_decoding)

    def sampled_rows(self) -> list[tuple[range, Sequence]]:
        """The rows that a token is chosen from, by sequence."""
        found, at = [], 0
        for span in self.spans:
            at += span.n_tokens
            if span.n_logits and not span.sequence.is_embedding:
                found.append((range(at - span.n_logits, at), span.sequence))
        return found


class Scheduler:
    """Holds every accepted sequence until it is finished, aborted or failed. The engine's thread owns it."""

    def __init__(
        self,
        n_slots: int,
        n_ctx: int,
        memory: Memory,
        shelf: Shelf | None = None,
        n_embedded: int = 1,
        last_apart: bool = False,
    ) -> None:
        """n_embedded: tokens of an embedding that a step may have. Each takes room for logits, too, so they are few: 16
        at a time take 2.5 times as long as a prompt, and no more memory.
        last_apart: a prompt's last token is in no chunk; it is a row beside those of others who wait for a token.
        """
        self._last_apart = last_apart
        self._n_embedded = n_embedded
        self.slots = SlotTable(n_slots, n_ctx, memory, shelf)
        self.waiting: list[Sequence] = []
        self.drafts: list[Sequence] = []
        """Drafts that wait: they run while nothing else does, and give way at once."""
        self.running: list[Sequence] = []
        self._turns: dict[str, float] = {}
        """When each client got its last slot, or came to wait: it stands behind all who have waited since before."""
        self._n_turns = 0
        self._is_prompts_turn = self._is_long_ones_turn = False
        """It was, in the last step; in the last chunk."""

    @property
    def has_work(self) -> bool:
        """A step would compute something: one that waits for another to be read can't begin before that has come."""
        return bool(self.running or self.drafts or any(sequence.may_begin for sequence in self.waiting))

    @property
    def n_decoding(self) -> int:
        """Sequences whose readers wait for the next token: while there are any, a step should be short."""
        return sum(sequence.is_decoding for sequence in self.running)

    @property
    def lapsed(self) -> list[Sequence]:
        """Drafts to be given up: once somebody has come, their slot may soon hold more than they would add to it."""
        has_come = self.waiting or any(not sequence.is_draft for sequence in self.running)
        return [draft for draft in self.drafts if draft.is_closing] if has_come else []

    def place(self, sequence: Sequence) -> int:
        """In the queue for a slot: 1 is next, 0 waits for none. For any thread: a step may be going on."""
        waiting = self._in_turn(list(self.waiting))
        return waiting.index(sequence) + 1 if sequence in waiting else 0

    def _in_turn(self, waiting: list[Sequence]) -> list[Sequence]:
        """Who was preempted, then clients in turns, the one first that got a slot longest ago."""
        preempted = [sequence for sequence in waiting if sequence.n_reused is not None]
        queues = dict[str, list[Sequence]]()
        for sequence in waiting:
            if sequence.n_reused is None:
                queues.setdefault(sequence.client, []).append(sequence)
        clients = sorted(queues, key=lambda client: self._turns.get(client, 0.0))
        rounds = zip_longest(*(queues[client] for client in clients))
        return preempted + [sequence for turn in rounds for sequence in turn if sequence is not None]

    def add(self, sequence: Sequence) -> None:
        if all(other.client != sequence.client for other in self.waiting):  # before the one that got the last slot
            self._turns[sequence.client] = max(self._turns.get(sequence.client, 0.0), self._n_turns - 0.5)
        (self.drafts if sequence.is_draft else self.waiting).append(sequence)

    def schedule(self, n_prefill: int) -> Batch:
        """The next step: all decode rows, or at most n_prefill prompt tokens. Empty only when there is no work."""
        if self.waiting:
            self._park_drafts()
        while self.slots.n_free and (chosen := self._next_waiting()) is not None:
            self._admit(chosen)
            self.waiting.remove(chosen)  # only now: a mistake in between must not lose it
        if self.drafts and not self.running:
            self._admit(self.drafts.pop(0))
        decoding = [sequence for sequence in self.running if sequence.is_decoding]
        reading = [sequence for sequence in self.running if not sequence.is_decoding]
        self._is_prompts_turn = bool(reading) and not (decoding and self._is_prompts_turn)
        if self._is_prompts_turn:
            return self._chunk(reading, n_prefill)
        decoding.sort(key=lambda sequence: sequence.slot or 0)
        return Batch([Span(sequence, 1 + len(sequence.guesses)) for sequence in decoding])

    def _chunk(self, reading: list[Sequence], n_prefill: int) -> Batch:
        """At most n_prefill tokens of the oldest long prompt, or of the oldest short one and its neighbours.

        An embedding is as slow as a long one: a step has few of its tokens, and none of anybody else's.
        """
        short = [sequence for sequence in reading if sequence.n_pending <= SHORT and not sequence.is_embedding]
        long = next((sequence for sequence in reading if sequence not in short), None)
        self._is_long_ones_turn = long is not None and not (short and self._is_long_ones_turn)
        if long is not None and self._is_long_ones_turn:
            n_most = min(n_prefill, self._n_embedded) if long.is_embedding else n_prefill
            return Batch([Span(long, in_groups(n_most, 1, self._n_readable(long)))])
        together = neighbours(short)[:n_prefill]
        n_tokens = in_groups(n_prefill, len(together), min(map(self._n_readable, together)))
        return Batch([Span(sequence, n_tokens) for sequence in together])

    def _n_readable(self, sequence: Sequence) -> int:
        """Tokens that chunks may have of it."""
        keeps_last = self._last_apart and not sequence.is_draft and not sequence.is_embedding
        return sequence.n_pending - keeps_last

    def _next_waiting(self) -> Sequence | None:
        """Of the client whose turn it is, the one whose prefix is at hand, so that it is not evicted by others; but
        nobody is passed for ever. None: nobody may begin."""
        able = self._in_turn([sequence for sequence in self.waiting if sequence.may_begin])
        if not able:
            return None
        chosen = able[0]
        of_client = [sequence for sequence in self.waiting if sequence.client == chosen.client and sequence.may_begin]
        if chosen.n_overtaken < MAX_OVERTAKEN and chosen.n_reused is None and len(of_client) > 1:
            chosen = max(of_client, key=lambda sequence: (self.slots.n_common(sequence.tokens), -sequence.arrival))
        for sequence in of_client[: of_client.index(chosen)]:
            sequence.n_overtaken += 1
        return chosen

    def _park_drafts(self) -> None:
        """Somebody waits for an answer: no draft may hold a slot. What was read of it stays there for now."""
        for sequence in [running for running in self.running if running.is_draft]:
            self.preempt(sequence)

    def _admit(self, sequence: Sequence) -> None:
        self._take_turn(sequence.client)
        claim = self.slots.claim(sequence.tokens, anew=sequence.is_embedding)
        sequence.place(claim.slot, claim.n_past)
        if sequence.n_reused is None:  # after a preemption it would count its own tokens
            sequence.n_reused = claim.n_past
        self.running.append(sequence)
        self.running.sort(key=lambda running: running.arrival)

    def _take_turn(self, client: str) -> None:
        """It is the last of all now; clients that nobody waits for are forgotten."""
        known = {sequence.client for sequence in [*self.waiting, *self.running]}
        self._turns = {name: turn for name, turn in self._turns.items() if name in known}
        self._n_turns += 1
        self._turns[client] = self._n_turns

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
            for other in queue:
                other.after = None if other.after is sequence else other.after
        if sequence in self.running:
            self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        """Its slot becomes idle; nobody goes on from an embedding, so nothing of it stays."""
        slot = self._leave(sequence)
        if sequence.is_embedding:
            return self.slots.fail(slot)
        self.slots.release(slot, sequence.is_draft and not sequence.is_closing)

    def fail(self, sequence: Sequence) -> None:
        """llama.cpp could not compute it: what its slot holds, if it has one, is unknown, so it is cleared."""
        if sequence in self.running:
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
        self._give_back(sequence)
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
