"""One accepted request inside the engine: its sequence, its sampler, its text, its receiver, its times."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.llama import SamplerChain
from server.engine.lookup import Lookup
from server.engine.sampling import PENALTY_LAST_N, SamplingParams, plan
from server.engine.sequence import Event, Progress, TextDelta, Usage
from server.engine.sequence import Sequence as TokenSequence
from server.engine.text import TextStream
from server.engine.vocab import Vocab

Sink = Callable[[Event], None]
"""Called on the engine's thread, at most once per step and sequence: it must return at once and not raise."""

EMIT_S = 0.02
"""At most 50 deliveries a second and answer: each takes a core from the next step for a moment, and no screen shows
more. One stream over HTTP: 70.2 tokens/s, 67.0 with a delivery per token; llama_decode alone does 72.3."""

_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Handle:
    """What a caller holds of a submitted request. For any thread."""

    id: int
    cancel: Callable[[], None]
    """Stop it now; the terminal event is then Finished("cancelled"). After the end: nothing."""
    progress: Callable[[], Progress]


class Request:
    """One accepted request, from its prompt to its terminal event. Only the engine's thread touches it."""

    def __init__(self, sequence: TokenSequence, params: SamplingParams, sink: Sink, shown: bytes = b"") -> None:
        """shown: what the end of the prompt, an answer that was cut off, has said already."""
        self.id = next(_ids)
        self.sequence = sequence
        self.sink = sink
        self.has_stopped = False
        """The model ended its answer, or a stop string did."""
        self._params = params
        self._text = TextStream(params.stop)
        self._text.push(shown)
        self._ready = ""
        self._n_taken = sequence.n_prompt
        self._t_taken = -EMIT_S
        self._chain: SamplerChain | None = None
        self._lookup: Lookup | None = None
        self._t_submitted = time.monotonic()
        self._t_started: float | None = None
        self._t_first: float | None = None

    def start(self) -> None:
        """The first of its tokens is about to be computed; later calls change nothing."""
        self._t_started = self._t_started or time.monotonic()

    def sampler(self, vocab: Vocab) -> SamplerChain:
        """Made when the first token is chosen: the penalties count the end of the prompt too."""
        if self._chain is None:
            self._chain = SamplerChain(vocab, self._params, plan(self._params, random.getrandbits(32)))
            for token in self.sequence.tokens[-PENALTY_LAST_N:]:
                self._chain.accept(token)
        return self._chain

    def show(self, token: int, vocab: Vocab) -> bool:
        """A token was chosen: its text is ready as far as it is safe to show. True: it was the last one."""
        self._t_first = self._t_first or time.monotonic()
        self.has_stopped = token in vocab.eog
        if not self.has_stopped:
            self._ready += self._text.push(vocab.piece(token))
            self.has_stopped = self._text.stopped
        return self.has_stopped

    def flush(self) -> None:
        """No token follows: what was held back is ready too."""
        self._ready += self._text.flush()

    def take(self, *, is_last: bool = False) -> TextDelta | None:
        """What has become ready since the last time that something was taken; within EMIT_S of it only the last."""
        now = time.monotonic()
        if not self._ready or (now - self._t_taken < EMIT_S and not is_last):
            return None
        delta = TextDelta(self._ready, tuple(self.sequence.tokens[self._n_taken :]))
        self._ready, self._n_taken, self._t_taken = "", len(self.sequence.tokens), now
        return delta

    def guesses(self, n_most: int) -> list[int]:
        """What probably comes next, at most n_most tokens."""
        if self._lookup is None:
            self._lookup = Lookup(self.sequence.tokens)
        return self._lookup.guesses()[: max(0, n_most)]

    def learn(self, chosen: Sequence[int]) -> None:
        """These tokens were chosen; the sequence's guesses are still those that they were compared with."""
        if self._lookup is None:
            return
        for token in chosen:
            self._lookup.push(token)
        if self.sequence.guesses:
            self._lookup.learn(len(self.sequence.guesses), len(chosen) - 1)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()

    def usage(self) -> Usage:
        now = time.monotonic()
        started = self._t_started or now
        first = self._t_first or now
        return Usage(
            n_prompt=self.sequence.n_prompt,
            n_completion=self.sequence.n_completion,
            n_reused=self.sequence.n_reused or 0,
            queue_s=started - self._t_submitted,
            prompt_s=max(0.0, first - started),
            decode_s=now - first,
        )
