"""Fast = slow: whatever the schedule, each prompt gives exactly the tokens that it gives alone.

f32 weights and KV, no flash attention, greedy: chunks of another size change a logit by 3e-5 at most (f16 weights:
4e-3), so any mixed-up cache shows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
import pytest

from server.engine.llama import Context, ContextParams, DecodeStatus, Model
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from tests.tiny_model import write_tiny_model

N_CTX = 128
N_SLOTS = 3
N_NEW = 10
N_GUESSES = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", seed=1, dtype="F32"))
    yield model
    model.close()


def new_context(model: Model) -> Context:
    return Context(
        model, ContextParams(N_CTX, N_SLOTS, n_threads=1, n_batch=64, n_guesses=N_SLOTS * N_GUESSES, exact=True)
    )


def choose(context: Context, sequence: Sequence, rows: range) -> list[int]:
    """Greedy: the guesses that are right, and the token after them."""
    chosen: list[int] = []
    for row, guess in zip_longest(rows, sequence.guesses):
        chosen.append(int(np.argmax(context.logits(row))))
        if chosen[-1] != guess:
            break
    return chosen


def step(scheduler: Scheduler, context: Context, n_prefill: int) -> None:
    batch = scheduler.schedule(n_prefill)
    assert context.decode(batch) is DecodeStatus.OK
    scheduler.commit(batch, {sequence: choose(context, sequence, rows) for rows, sequence in batch.sampled_rows()})
    scheduler.check_integrity()
    for sequence in list(scheduler.running):
        if sequence.is_full:
            scheduler.remove(sequence)


def alone(model: Model, prompts: list[list[int]]) -> list[list[int]]:
    """Each prompt in a context of its own, token by token."""
    answers = []
    for prompt in prompts:
        context = new_context(model)
        scheduler = Scheduler(N_SLOTS, N_CTX, context)
        sequence = Sequence(prompt, len(prompt) + N_NEW)
        scheduler.add(sequence)
        while scheduler.has_work:
            step(scheduler, context, 1)
        answers.append(sequence.tokens)
        context.close()
    return answers


def prompts_of(rng: random.Random) -> list[list[int]]:
    """Some that share a prefix, some equal, some that diverge inside a chunk, some of one token."""
    base = [rng.randrange(256) for _ in range(60)]
    prompts = [base[: rng.randint(1, 60)] + [rng.randrange(256) for _ in range(rng.randint(0, 30))] for _ in range(6)]
    return [*prompts, prompts[0], [7]]


@pytest.mark.parametrize("seed", range(25))
def test_a_random_schedule_gives_the_tokens_of_each_prompt_alone(model: Model, seed: int) -> None:
    rng = random.Random(seed)
    prompts = prompts_of(rng)
    expected = alone(model, prompts)
    context = new_context(model)
    scheduler = Scheduler(N_SLOTS, N_CTX, context)
    waiting = [Sequence(prompt, len(prompt) + N_NEW) for prompt in prompts]
    added: list[Sequence] = []
    while waiting or scheduler.has_work:
        if waiting and (rng.random() < 0.3 or not scheduler.has_work):
            added.append(waiting.pop(0))
            scheduler.add(added[-1])
        if scheduler.running and rng.random() < 0.08:
            scheduler.preempt(rng.choice(scheduler.running))
        if rng.random() < 0.05:
            scheduler.slots.evict()
        guess(scheduler, rng, expected)
        step(scheduler, context, rng.randint(1, 40))
    assert [sequence.tokens for sequence in added] == expected
    context.close()


def guess(scheduler: Scheduler, rng: random.Random, expected: list[list[int]]) -> None:
    """Sometimes the right continuation, sometimes nonsense from some token on."""
    for sequence in scheduler.running:
        n_known = len(sequence.tokens)
        if sequence.is_decoding and rng.random() < 0.5:
            right = next(tokens for tokens in expected if tokens[:n_known] == sequence.tokens)[n_known:-1]
            guesses = right[: rng.randint(0, N_GUESSES)]
            if guesses and rng.random() < 0.5:
                guesses[rng.randrange(len(guesses))] = rng.randrange(256)
            sequence.guesses = guesses


def test_a_cancelled_sequence_leaves_the_others_alone(model: Model) -> None:
    rng = random.Random(99)
    prompts = prompts_of(rng)
    expected = alone(model, prompts)
    context = new_context(model)
    scheduler = Scheduler(N_SLOTS, N_CTX, context)
    sequences = [Sequence(prompt, len(prompt) + N_NEW) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    for sequence in sequences[::2]:
        step(scheduler, context, 5)
        scheduler.remove(sequence)
    while scheduler.has_work:
        step(scheduler, context, 5)
    assert [sequence.tokens for sequence in sequences[1::2]] == expected[1::2]
    context.close()
