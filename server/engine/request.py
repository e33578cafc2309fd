"""One accepted request inside the engine: its sequence, its sampler, its text, its receiver, its times."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.engine.constraint import Constraint
from server.engine.lookup import Lookup
from server.engine.sampler import SamplerChain
from server.engine.sampling import PENALTY_LAST_N, SamplingParams, plan
from server.engine.scores import Scores
from server.engine.sequence import Embedding, Event, Finished, FinishReason, Progress, TextDelta, Usage
from server.engine.sequence import Sequence as TokenSequence
from server.engine.text import TextStream
from server.engine.topk import Best, Logits
from server.engine.vocab import Vocab
from server.errors import InvalidField, SparrowError

Sink = Callable[[Event], None]
"""Called on the engine's thread, at most once per step and sequence: it must return at once and not raise."""

EmbeddingSink = Callable[[Embedding | Finished], None]
"""The same for what embed() gives."""

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


def constraint_of(params: SamplingParams, vocab: Vocab, said: Sequence[int]) -> Constraint | None:
    """The grammar of `params`, as far as what was said has come. Raises InvalidField for what this model can't do."""
    for token, _ in params.logit_bias:
        if not 0 <= token < vocab.n_tokens:
            raise InvalidField("logit_bias", f"{token} is no token of this model; give 0 to {vocab.n_tokens - 1}.")
    return Constraint(vocab, params.grammar, params.grammar_trigger, said) if params.grammar else None


class Request:
    """One accepted request, from its prompt to its terminal event. Only the engine's thread touches it."""

    def __init__(
        self,
        sequence: TokenSequence,
        params: SamplingParams,
        sink: Callable[[Any], None],
        constraint: Constraint | None = None,
        shown: bytes = b"",
        limit_s: float = 0.0,
    ) -> None:
        """shown: what the end of the prompt, an answer that was cut off, has said already.

        limit_s: seconds that it may take from its first step; 0: any.
        """
        self.id = next(_ids)
        self.sequence = sequence
        self.sink = sink
        self.has_stopped = False
        """The model ended its answer, or a stop string or the grammar's end did."""
        self.error: SparrowError | None = None
        """Why no further token can be chosen."""
        self._constraint = constraint
        self._limit_s = limit_s
        self._params = params
        self._text = TextStream(params.stop)
        self._text.push(shown)
        self._states = np.zeros(0, dtype=np.float64)
        self._ready = ""
        self._n_taken = sequence.n_prompt
        self._t_taken = -EMIT_S
        self._scores = None if params.logprobs is None else Scores(params.logprobs)
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
            self._chain = SamplerChain(
                vocab, self._params, plan(self._params, random.getrandbits(32)), self._constraint
            )
            for token in self.sequence.tokens[-PENALTY_LAST_N:]:
                self._chain.accept(token)
        return self._chain

    @property
    def reason(self) -> FinishReason | None:
        """Why the answer ends here; None: it goes on."""
        if self.error:
            return "error"
        return "stop" if self.has_stopped else "length" if self.sequence.is_full else None

    @property
    def is_late(self) -> bool:
        """It has taken as long as it may, or waited so long for a moment in which nobody asks for anything."""
        began = self._t_started or (self._t_submitted if self.sequence.is_draft else None)
        return bool(self._limit_s and began and time.monotonic() - began >= self._limit_s)

    def choose(self, logits: Logits, vocab: Vocab, best: Best | None = None) -> int | None:
        """The next token; None: there is none, and the answer ends here. `logits` may be changed."""
        raw = logits.copy() if self._scores else logits
        try:
            token = self.sampler(vocab).sample(logits, best)
        except InvalidField as error:
            self.error = error
            return None
        if token is None:
            self._end_early()
        elif self._scores:
            self._scores.push(raw, token, vocab, self._text.n_decoded)
        return token

    def _end_early(self) -> None:
        """The grammar allows no token: it is at its end, or it leads nowhere."""
        self.has_stopped = self._constraint is not None and self._constraint.may_end
        if not self.has_stopped:
            self.error = InvalidField("grammar", "no token may follow what the answer has so far; it leads nowhere.")

    def show(self, token: int, vocab: Vocab) -> bool:
        """A token was chosen: its text is ready as far as it is safe to show. True: it was the last one."""
        self._t_first = self._t_first or time.monotonic()
        self.has_stopped = token in vocab.eog
        if not self.has_stopped:
            if self._constraint is not None and self._constraint.was_triggered:  # a call must not end in its middle
                self._text.disarm()
            self._ready += self._text.push(vocab.piece(token))
            self.has_stopped = self._text.stopped or (self._constraint is not None and self._constraint.is_over)
        return self.has_stopped

    def flush(self) -> None:
        """No token follows: what was held back is ready too."""
        self._ready += self._text.flush()

    def take(self, *, is_last: bool = False) -> TextDelta | None:
        """What has become ready since the last time that something was taken; within EMIT_S of it only the last."""
        now = time.monotonic()
        if not self._ready or (now - self._t_taken < EMIT_S and not is_last):
            return None
        logprobs = self._scores.take(self._text.n_shown) if self._scores else ()
        delta = TextDelta(self._ready, tuple(self.sequence.tokens[self._n_taken :]), logprobs)
        self._ready, self._n_taken, self._t_taken = "", len(self.sequence.tokens), now
        return delta

    def pool(self, states: npt.NDArray[np.float32], at: int) -> None:
        """[n, n_embd] of its tokens from place `at` on."""
        new = states.sum(axis=0, dtype=np.float64)
        self._states = self._states + new if at else new

    def embedding(self) -> Embedding:
        """Of all tokens that were pooled."""
        return Embedding((self._states / max(1e-12, float(np.linalg.norm(self._states)))).astype(np.float32))

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
