"""Where deleted messages stand among the tokens of a slot or a snapshot. Pure.

Tokens do not say whose they are, so a conversation is known by its messages: by all of them, or by a deleted one that
nobody else will have written word by word. "Hello" stands in many conversations, and those are not read anew for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Protocol

import numpy as np

from server.engine.prefix import Ids

N_OWN = 80
"""Characters from which a message is taken for its author's own."""

_SYSTEM = "system"


class Pieces(Protocol):
    """vocab.Vocab is one."""

    @property
    def special(self) -> dict[str, int]: ...

    def piece(self, token: int) -> bytes: ...


class Deleted:
    """Messages that are no more."""

    def __init__(self, gone: Collection[str], known: Collection[str] = ()) -> None:
        """gone: their texts. known: those of the messages that stay in the same conversations."""
        self._gone = frozenset(filter(None, map(_plain, gone)))
        self._known = self._gone | frozenset(map(_plain, known))

    def __bool__(self) -> bool:
        return bool(self._gone)

    def first(self, tokens: Ids, vocab: Pieces) -> int | None:
        """How many tokens stand before the first of these messages, 0 if no other does; None: they are not here."""
        said = list(_messages(tokens, vocab))
        places = [at for at, text, _ in said if text in self._gone]
        is_own = any(text in self._gone and len(text) >= N_OWN for _, text, _ in said)
        if places and (is_own or all(text in self._known for _, text, is_whole in said if is_whole)):
            return places[0] if places[0] > said[0][0] else 0  # a system prompt is no message, and may be private, too
        return None


def _messages(tokens: Ids, vocab: Pieces) -> Iterator[tuple[int, str, bool]]:
    """What stands between control tokens, without the line that names the role: place, text, whether it has an end.

    The place is that of the control token before it. System prompts are left out: they belong to many.
    """
    controls = np.flatnonzero(np.isin(tokens, list(vocab.special.values()))).tolist()
    for before, end in zip([-1, *controls], [*controls, len(tokens)], strict=True):
        whole = b"".join(map(vocab.piece, tokens[before + 1 : end].tolist())).decode("utf-8", "replace")
        role, line_end, text = whole.partition("\n")
        said = _plain(text if line_end else role)
        if said and role != _SYSTEM:
            yield max(0, before), said, end < len(tokens)


def _plain(text: str) -> str:
    """Without what a template may take from its ends, and what stands for a letter that is no letter."""
    return text.replace("\ufffd", "").strip()
