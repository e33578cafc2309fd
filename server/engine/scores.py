"""Log probabilities of chosen tokens, handed out with the text that they are. Pure."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np

from server.engine.sequence import TokenLogprob
from server.engine.topk import Logits, log_probabilities, top_ids


class Pieces(Protocol):
    """The vocabulary, as far as it is needed here."""

    def piece(self, token: int) -> bytes: ...


class Scores:
    """What one answer's tokens scored, until their text is shown. A token without text (the end) is never shown."""

    def __init__(self, n_top: int) -> None:
        """n_top: alternatives for each token."""
        self._n_top = n_top
        self._waiting: deque[TokenLogprob] = deque()

    def push(self, logits: Logits, token: int, pieces: Pieces, at: int) -> None:
        """`token` was chosen from these logits, as the model gave them. at: where in the answer its text begins."""
        best = top_ids(logits, self._n_top) if self._n_top else np.empty(0, dtype=np.int64)
        best = best[np.argsort(-logits[best], kind="stable")]
        chosen, *others = log_probabilities(logits, np.array([token, *best])).tolist()
        top = tuple((int(id), pieces.piece(int(id)), score) for id, score in zip(best, others, strict=True))
        if pieces.piece(token):
            self._waiting.append(TokenLogprob(token, pieces.piece(token), chosen, at, top))

    def take(self, n_shown: int) -> tuple[TokenLogprob, ...]:
        """Those whose text begins within the first n_shown characters, once each."""
        taken = list[TokenLogprob]()
        while self._waiting and self._waiting[0].at < n_shown:
            taken.append(self._waiting.popleft())
        return tuple(taken)
