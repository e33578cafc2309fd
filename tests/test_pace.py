"""The pace of prompts beside a stream: it finds the budget on any device, and follows when the device slows down."""

from __future__ import annotations

import pytest

from server.engine.pace import LEAST, TILE, Pace

DECODE_S = 0.014


def chunk_s(n_prefill: int) -> float:
    """A device like the one that was measured: chunks get cheaper as they grow."""
    return 0.003 * n_prefill + 0.008


def drive(pace: Pace, n_steps: int, slowness: float) -> float:
    """Decode beside a long prompt; returns the seconds of the last decode step and chunk together."""
    n_prefill = 0
    for _ in range(n_steps):
        pace.observe(0, slowness * DECODE_S)
        n_prefill = pace.n_prefill(True)
        pace.observe(n_prefill, slowness * chunk_s(n_prefill))
    return slowness * (DECODE_S + chunk_s(n_prefill))


@pytest.mark.parametrize("slowness", [0.3, 1.0, 2.0])
def test_steps_take_what_the_budget_says(slowness: float) -> None:
    pace = Pace(0.1, 128)
    assert 0.1 - slowness * TILE * 0.0035 < drive(pace, 40, slowness) <= 0.1


def test_a_slow_device_still_reads_and_a_fast_one_is_bounded() -> None:
    slow, fast = Pace(0.1, 128), Pace(0.1, 128)
    drive(slow, 40, 100.0)
    drive(fast, 40, 0.001)
    assert slow.n_prefill(True) == LEAST and fast.n_prefill(True) == 128


def test_it_follows_a_device_that_gets_hot() -> None:
    pace = Pace(0.1, 128)
    drive(pace, 40, 1.0)
    before = pace.n_prefill(True)
    assert drive(pace, 40, 2.0) <= 0.1
    assert pace.n_prefill(True) < before


def test_alone_a_prompt_is_read_in_full_chunks_and_nothing_is_known_at_first() -> None:
    pace = Pace(0.1, 128)
    assert (pace.n_prefill(False), pace.n_prefill(True)) == (128, LEAST)


def test_reading_takes_its_chunks_and_the_turns_between_them() -> None:
    pace = Pace(0.1, 64)
    assert pace.reading_s(100, False) is None, "nothing was read yet"
    pace.observe(40, 0.04)
    pace.observe(0, 0.02)
    assert pace.reading_s(800, False) == pytest.approx(0.8)
    n_turns = 800 / pace.n_prefill(True)
    assert pace.reading_s(800, True) == pytest.approx(0.8 + n_turns * 0.02)
