"""One request's state: the tokens that are known, and how many of them the KV cache holds. Pure.

    tokens   prompt + sampled                n_past   how many of them are in the KV cache
    pending = tokens[n_past:]                invariant: 0 <= n_past <= len(tokens)

There is no phase flag: more than one pending token is a prefill, exactly one is a decode step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.errors import SparrowError

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
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
class TextDelta:
    """Text that may be shown: it ends on a whole character, and no part of it can still become a stop string."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The one terminal event of every accepted request. `error` is set exactly when reason is "error"."""

    reason: FinishReason
    usage: Usage
    error: SparrowError | None = None


Event = TextDelta | Finished
