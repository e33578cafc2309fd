"""Guesses from the conversation: right where it is quoted, silent where it is not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from server.engine.lookup import N_GRAM, N_HITS, N_MOST, Lookup


def answer(prompt: list[int], text: list[int]) -> tuple[int, int]:
    """Generate `text` with guesses checked as the engine does; returns (steps, guesses made)."""
    lookup, at, n_steps, n_guesses = Lookup(prompt), 0, 0, 0
    while at < len(text):
        guesses = lookup.guesses()
        n_right = 0
        while n_right < len(guesses) and at + n_right < len(text) and guesses[n_right] == text[at + n_right]:
            n_right += 1
        for token in text[at : at + n_right + 1]:
            lookup.push(token)
        if guesses:
            lookup.learn(len(guesses), n_right)
        at, n_steps, n_guesses = at + n_right + 1, n_steps + 1, n_guesses + len(guesses)
    return n_steps, n_guesses


def test_a_quotation_takes_few_steps() -> None:
    quoted = list(range(100, 200))
    n_steps, n_guesses = answer([1, 2, *quoted, 3], quoted)
    assert n_steps < N_GRAM + N_HITS + 10 and n_guesses < 130


def test_text_that_quotes_nothing_is_never_guessed_aloud() -> None:
    rng = random.Random(3)
    prompt, text = ([rng.randrange(5000) for _ in range(n)] for n in (800, 400))
    assert answer(prompt, text) == (400, 0)


def test_an_edited_quotation_goes_on_after_the_edit() -> None:
    quoted = list(range(100, 180))
    edited = [*quoted[:40], 7, *quoted[41:]]
    assert answer(quoted, edited)[0] < 45


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_whatever_is_guessed_the_text_is_the_same_and_no_step_gives_less_than_one_token(
    prompt: list[int], text: list[int]
) -> None:
    n_steps, n_guesses = answer(prompt, text)
    assert 1 <= n_steps <= len(text) and n_guesses <= N_MOST * n_steps
