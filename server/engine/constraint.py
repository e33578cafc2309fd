"""Which tokens a grammar allows next. Pure: it sees pieces of bytes and logits.

A token is chosen without the grammar first, and the choice is looked at: that costs a few microseconds and is right
most of the time. Only when it was refused are the best tokens that the grammar allows looked for.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.engine.automaton import Automaton, State
from server.engine.beginnings import read_checked
from server.engine.gbnf import LAST
from server.engine.topk import Logits
from server.errors import InvalidField

Ids = npt.NDArray[np.int64]

_SOME = 256
"""The best candidates, which are looked at before all others."""

_MANY = 2048
"""Tokens that are looked at one by one before the rest is left: 8 ms. All of 151,936 inside a text take 0.6 s, in which
nobody gets a token, and what is behind so many likelier ones hardly ever comes."""

_FEW = 32
"""Tokens that are looked at one by one."""

_LEADS = ((0xC2, 0xDF, 2), (0xE0, 0xEF, 3), (0xF0, 0xF4, 4))
"""First bytes of characters of 2, 3 and 4 bytes."""


class Vocabulary(Protocol):
    """The vocabulary, as far as it is needed here."""

    @property
    def eog(self) -> Collection[int]: ...

    @property
    def first_bytes(self) -> npt.NDArray[np.int16]:
        """Of each token; -1 for one that has no text."""
        ...

    def bytes_at(self, ids: Ids, at: int) -> npt.NDArray[np.int16]:
        """The byte at this place of each of these tokens; -1 for one that is shorter."""
        ...

    def piece(self, token: int) -> bytes: ...


class Constraint:
    """One answer and its grammar."""

    def __init__(self, vocab: Vocabulary, grammar: str, trigger: str = "", said: Sequence[int] = ()) -> None:
        """trigger: see SamplingParams. said: tokens that the answer has already.

        Raises InvalidField when the grammar is none, is too much for this engine, or forbids what was said.
        """
        self._vocab = vocab
        self._automaton = Automaton(read_checked(grammar))
        self._trigger = trigger.encode()
        self._state: State | None = None if trigger else self._automaton.start
        """None: the trigger was not met yet."""
        self._rest = b""
        """The beginning of a character whose end has not come; before the trigger: what may begin it."""
        for token in said:
            if not self.allows(token):
                raise InvalidField("grammar", "the answer so far does not follow it.")
            self.accept(token)

    @property
    def was_triggered(self) -> bool:
        """Its trigger has come; False for a grammar that has none."""
        return bool(self._trigger) and self._state is not None

    @property
    def is_over(self) -> bool:
        """Nothing may follow but the end."""
        return self._state is not None and self._state.is_over and not self._rest

    @property
    def may_end(self) -> bool:
        return self._state is None or (self._state.may_end and not self._rest)

    def allows(self, token: int) -> bool:
        """Raises InvalidField when the grammar is too ambiguous to tell in reasonable time."""
        self._automaton.refill()
        return self._allows(token)

    def _allows(self, token: int) -> bool:
        if token in self._vocab.eog:
            return self.may_end
        return self._after(token) is not None

    def _after(self, token: int) -> tuple[State | None, bytes] | None:
        """What the state and the rest are behind this token; None: it is refused."""
        piece = self._vocab.piece(token)
        return self._after_bytes(piece) if piece or self._state is None else None

    def _after_bytes(self, piece: bytes) -> tuple[State | None, bytes] | None:
        data = self._rest + piece
        if self._state is not None:
            return self._read(self._state, data)
        at = data.find(self._trigger)
        if at >= 0:
            return self._read(self._automaton.start, data[at:])
        return None, data[max(0, len(data) - len(self._trigger) + 1) :]

    def _read(self, state: State, data: bytes) -> tuple[State, bytes] | None:
        try:
            text, n = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            return None
        after, rest = self._automaton.advance(state, text), data[n:]
        return None if after is None or (rest and not after.meets(*_between(rest))) else (after, rest)

    def accept(self, token: int) -> None:
        """`token`, which is allowed, was chosen."""
        after = None if token in self._vocab.eog else self._after(token)
        if after is not None:
            state, self._rest = after
            self._state = None if state is None else self._automaton.trimmed(state)

    def best(self, logits: Logits, n: int | None) -> Ids:
        """The n allowed tokens with the largest logits (all for None), none of minus infinity; fewer if there are no
        more, or no more among the best _MANY. Raises InvalidField like allows()."""
        self._automaton.refill()
        ids = self._possible(logits)
        if n is not None and len(ids) > _SOME:  # inside a text nearly all are allowed
            found = self._among_best(logits, ids, _SOME)
            if len(found) >= n:
                return np.array(found[:n], dtype=np.int64)
        some = self._allowed(ids, _MANY)
        if some is None:
            some = self._among_best(logits, ids, _MANY) or self._allowed(ids)
        return _in_order(logits, np.array(some or [], dtype=np.int64))[:n]

    def _among_best(self, logits: Logits, ids: Ids, n: int) -> list[int]:
        """The allowed ones of the n with the largest logits, which come first."""
        n = min(n, len(ids))
        at = np.argpartition(logits[ids], len(ids) - n)[-n:]
        return [token for token in _in_order(logits, ids[at]).tolist() if self._allows(token)]

    def _possible(self, logits: Logits) -> Ids:
        """Tokens whose first byte may come next, and those that end the answer."""
        first, ends = self._vocab.first_bytes, list(self._vocab.eog)
        if self._state is None:
            is_possible = first >= 0
        elif self._rest:
            may_begin = [self._state.meets(*_between(self._rest + bytes([byte]))) for byte in range(0x80, 0xC0)]
            is_possible = np.array([False] * 0x80 + may_begin + [False] * 0x41)[first]
        else:
            is_possible = np.append(self._state.leads, False)[first]
        is_possible[ends] = self.may_end
        ids: Ids = np.flatnonzero(is_possible & np.isfinite(logits))
        return ids

    def _allowed(self, ids: Ids, n_most: int | None = None) -> list[int] | None:
        """Those of the ids that are allowed, in no order; None: more than n_most would have to be looked at.

        60,000 of Qwen's tokens begin with a blank, say, and next to none of them may follow: many that begin alike are
        looked at together."""
        found, todo, n_seen = list[int](), [(b"", ids)], 0
        while todo:
            begun, ids = todo.pop()
            n_seen += len(ids) if len(ids) <= _FEW else 1
            if n_most is not None and n_seen > n_most:
                return None
            if len(ids) <= _FEW:
                found += [token for token in ids.tolist() if self._allows(token)]
                continue
            following = self._vocab.bytes_at(ids, len(begun))
            order = np.argsort(following, kind="stable")
            values, starts = np.unique(following[order], return_index=True)
            for value, part in zip(values.tolist(), np.split(ids[order], starts[1:]), strict=True):
                if value < 0:  # they are what has begun, or end the answer
                    found += part.tolist()
                elif self._after_bytes(begun + bytes([value])) is not None:
                    todo.append((begun + bytes([value]), part))
        return found


def _in_order(logits: Logits, ids: Ids) -> Ids:
    return ids[np.argsort(-logits[ids], kind="stable")]


def _between(begun: bytes) -> tuple[int, int]:
    """The least and the largest code point of the characters whose UTF-8 begins so; (1, 0) when none does,
    as with halves of surrogate pairs."""
    size = next((size for low, high, size in _LEADS if low <= begun[0] <= high), 0)
    if not size or len(begun) > size or any(not 0x80 <= byte <= 0xBF for byte in begun[1:]):
        return 1, 0
    code = begun[0] & (0x7F >> size)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    n_open = 6 * (size - len(begun))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[size]
    low, high = max(least, code << n_open), min(LAST, (code << n_open) | ((1 << n_open) - 1))
    return (1, 0) if low >= 0xD800 and high <= 0xDFFF else (low, high)
