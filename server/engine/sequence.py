"""One request's state: the tokens that are known, and how many of them the KV cache holds. Pure.

    tokens   prompt + sampled                n_past   how many of them are in the KV cache
    pending = tokens[n_past:]                invariant: 0 <= n_past <= len(tokens)

There is no phase flag: more than one pending token is a prefill, exactly one is a decode step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from server.errors import SparrowError

FinishReason = Literal["stop", "length", "time", "cancelled", "error"]
"""stop: the model or a stop string ended it; length: it has the most tokens that it may have; time: it took the most
seconds that it may take."""

_arrivals = itertools.count()


class Sequence:
    """A prompt and what was sampled after it. `slot` is the llama.cpp sequence id it runs in, None while it waits."""

    def __init__(
        self,
        prompt: Iterable[int],
        n_max: int,
        *,
        is_draft: bool = False,
        is_closing: bool = False,
        is_embedding: bool = False,
        client: str = "",
    ) -> None:
        """prompt: at least one token id. n_max: most tokens that the sequence may come to hold, prompt included.

        is_draft: only to be read, so that it is in a slot when it is asked for; nobody waits for it.
        is_closing: a draft of how an answer that was given closes and the next question opens: read at once or not at
        all, and no secret.
        is_embedding: only to be read, and what the model makes of each token is wanted. client: whose it is.
        """
        assert is_draft or not is_closing
        self.is_draft = is_draft
        self.is_closing = is_closing
        self.is_embedding = is_embedding
        self.client = client
        self.after: Sequence | None = None
        """One with the same prompt, which is read once: this one begins when that one has."""
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)
        self.n_max = n_max
        self.n_past = 0
        self.guesses: list[int] = []
        """Tokens that may come next, evaluated behind the last known one and kept as far as they were right."""
        self.slot: int | None = None
        self.n_reused: int | None = None
        """Prompt tokens that the slot held already when the sequence was first admitted."""
        self.n_overtaken = 0
        self.arrival = next(_arrivals)
        assert 0 < self.n_prompt < n_max, f"{self.n_prompt} prompt tokens, room for {n_max}"

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_past

    @property
    def may_begin(self) -> bool:
        return self.after is None or self.after.n_completion > 0

    @property
    def is_decoding(self) -> bool:
        """One token is left to evaluate: its row is what a reader waits for."""
        return self.n_pending == 1 and not self.is_draft and not self.is_embedding

    @property
    def n_completion(self) -> int:
        return len(self.tokens) - self.n_prompt

    @property
    def is_full(self) -> bool:
        return len(self.tokens) >= self.n_max

    def upcoming(self, n: int) -> list[int]:
        """The next n tokens to evaluate: pending ones, then guesses."""
        return (self.tokens[self.n_past : self.n_past + n] + self.guesses)[:n]

    def advance(self, n: int) -> None:
        """n pending tokens are in the KV cache now."""
        assert 0 < n <= self.n_pending
        self.n_past += n

    def append(self, token: int) -> None:
        """A token was sampled from the logits of the last one."""
        assert self.n_pending == 0 and not self.is_full
        self.tokens.append(token)

    def place(self, slot: int | None, n_past: int) -> None:
        """The sequence runs in `slot`, which holds its first n_past tokens; or (None, 0): it waits again."""
        assert 0 <= n_past < len(self.tokens) and (slot is not None or n_past == 0)
        self.slot, self.n_past, self.guesses = slot, n_past, []


@dataclass(frozen=True)
class Progress:
    """How far a request is from its first token."""

    place: int
    """In the queue for a slot: 1 is next, 0 has one."""
    n_done: int
    """Prompt tokens that are read, or need no reading."""
    n_prompt: int
    left_s: float | None = None
    """Estimated seconds until the first token; None: nobody can tell yet."""
    loading_s: float | None = None
    """Estimated seconds until the model, which was unloaded while idle, is in memory again; None: it is."""


@dataclass(frozen=True)
class Usage:
    """What a request cost. n_* are tokens; times are seconds."""

    n_prompt: int
    n_completion: int
    n_reused: int
    """How many prompt tokens were found in a slot and not read again."""
    queue_s: float
    prompt_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token, its bytes, and its natural log probability before anything but the model had a say."""

    token: int
    piece: bytes
    logprob: float
    at: int = 0
    """Characters of the answer before its text."""
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The most probable tokens in its place, most probable first: (id, bytes, log probability)."""


@dataclass(frozen=True)
class TextDelta:
    """Text that may be shown: it ends on a whole character, and no part of it can still become a stop string."""

    text: str
    tokens: tuple[int, ...] = ()
    """The sampled tokens since the last delta. All of an answer's together are what it can be resumed from."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens whose text this is, if the request asked for them; a token that is shown in parts comes with its
    first."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """vector: [n_embd] of length 1, the mean of what the model makes of each token."""

    vector: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Finished:
    """The one terminal event of every accepted request. `error` is set exactly when reason is "error"."""

    reason: FinishReason
    usage: Usage
    error: SparrowError | None = None


Event = TextDelta | Finished
