"""Which tokens of which prompts a step reads, as llama.cpp computes them fastest. Pure."""

from __future__ import annotations

import math

from server.engine.sequence import Sequence


def neighbours(sequences: list[Sequence]) -> list[Sequence]:
    """Those in a row of slots without a gap that has the first one's in it, in the order of the slots."""
    by_slot = {sequence.slot or 0: sequence for sequence in sequences}
    first = last = sequences[0].slot or 0
    while first - 1 in by_slot:
        first -= 1
    while last + 1 in by_slot:
        last += 1
    return [by_slot[slot] for slot in range(first, last + 1)]


def in_groups(n_rows: int, n_sequences: int, n_left: int) -> int:
    """Tokens of each sequence for a chunk of at most n_rows: all n_left, or so many that the rows come in full groups.

    llama.cpp multiplies 4 rows at a time, on x86 also 16, and those that are left over one by one: 32 rows take 103 ms,
    30 take 126.
    """
    n_tokens = n_rows // n_sequences
    if n_left <= n_tokens:
        return n_left
    for group in (16, 4):
        step = group // math.gcd(group, n_sequences)
        if n_tokens >= step:
            return n_tokens - n_tokens % step
    return n_tokens
