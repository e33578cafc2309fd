"""Conversations as padded batches: token ids, positions with gaps, and which tokens are to be learned."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import data

N_POSITIONS, MAX_TOKENS = 4000, 3200  # of a conversation, with and without gaps


@dataclass(frozen=True)
class Batch:
    """ids, positions (rows, time); at: flat indices whose next token is an assistant's; targets (len(at),)."""

    ids: Tensor
    positions: Tensor
    at: Tensor
    targets: Tensor


@dataclass
class Row:
    ids: list[int]
    positions: list[int]
    learn: list[bool]


def encode(tokenizer: Tokenizer, rng: random.Random, talk: data.Conversation, gaps: bool) -> Row:
    """ChatML, as the GGUF's template writes it; with `gaps` some turns start far behind the last one."""
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    newline = tokenizer.encode("\n").ids
    heads = {role: len(tokenizer.encode(f"{role}\n").ids) for role in ("system", "user", "assistant")}
    row, position = Row([], [], []), 0
    for role, text in data.messages(talk):
        if gaps and role == "user" and rng.random() < 0.4:
            position += int(math.exp(rng.uniform(0, math.log(2000))))
        body = tokenizer.encode(f"{role}\n{text}").ids
        ids = [start, *body, end, *newline]
        answer = [False] * (1 + heads[role]) + [role == "assistant"] * (len(body) - heads[role] + 1)
        row.ids += ids
        row.learn += answer + [False] * len(newline)
        row.positions += range(position, position + len(ids))
        position += len(ids)
    if position >= N_POSITIONS:
        row.positions = list(range(len(row.ids)))
    return row


def pad(rows: list[Row], multiple: int = 16) -> Batch:
    """Pads on the right; the causal mask keeps the padding out of sight."""
    time = -(-max(len(row.ids) for row in rows) // multiple) * multiple
    ids = torch.zeros(len(rows), time, dtype=torch.long)
    positions = torch.zeros(len(rows), time, dtype=torch.long)
    learn = torch.zeros(len(rows), time, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], positions[i, :n], learn[i, :n] = (
            torch.tensor(row.ids),
            torch.tensor(row.positions),
            torch.tensor(row.learn),
        )
    at = learn[:, 1:]  # token t predicts token t + 1
    flat = (torch.arange(len(rows)).unsqueeze(1) * time + torch.arange(time - 1))[at]
    return Batch(ids, positions, flat, ids[:, 1:][at])


@dataclass(frozen=True)
class Lengths:
    """How long the conversations of a stage are: turns of the short ones, tokens and share of the long ones."""

    max_turns: int = 8
    long_share: float = 0.0
    long_tokens: tuple[int, int] = (800, 2800)


def _talk(rng: random.Random, mix: data.Mix, lengths: Lengths) -> data.Conversation:
    if rng.random() >= lengths.long_share:
        n_turns = min(rng.randint(1, lengths.max_turns), rng.randint(1, lengths.max_turns))
        return data.conversation(rng, n_turns, mix)
    return data.conversation(rng, rng.randint(*lengths.long_tokens) // 50, mix)


def batches(
    tokenizer: Tokenizer, rng: random.Random, mix: data.Mix, lengths: Lengths, n_tokens: int, pool: int = 400
) -> Iterator[Batch]:
    """Endless batches of about `n_tokens` tokens; rows of similar length share a batch, so little is padded."""
    while True:
        rows = [encode(tokenizer, rng, _talk(rng, mix, lengths), gaps=rng.random() < 0.4) for _ in range(pool)]
        rows = sorted((row for row in rows if len(row.ids) <= MAX_TOKENS), key=lambda row: len(row.ids))
        made, group = [], list[Row]()
        for row in rows:
            if group and (len(group) + 1) * len(row.ids) > n_tokens:
                made.append(group)
                group = []
            group.append(row)
        made.append(group)
        rng.shuffle(made)
        yield from map(pad, made)
