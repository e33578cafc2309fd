"""The pace of prompts beside a stream: it finds the budget on any device, and follows when the device slows down."""

from __future__ import annotations

import pytest

from server.engine.pace import LEAST, Pace


def cost(n_decode: int, n_prefill: int, slowness: float) -> float:
    """A device like the one that was measured: 14 ms a decode step, and chunks that get cheaper as they grow."""
    return slowness * (0.014 * bool(n_decode) + 0.0035 * n_prefill + (0.02 if n_prefill else 0.0))


def drive(pace: Pace, n_steps: int, slowness: float) -> float:
    """Decode beside a long prompt; returns the seconds of the last step."""
    seconds = 0.0
    for at in range(n_steps):
        n_prefill = pace.n_prefill(1) if at % 8 else 0
        seconds = cost(1, n_prefill, slowness) if n_prefill else seconds
        pace.observe(1, n_prefill, cost(1, n_prefill, slowness))
    return seconds


@pytest.mark.parametrize("slowness", [0.3, 1.0, 2.0])
def test_steps_take_what_the_budget_says(slowness: float) -> None:
    pace = Pace(0.1, 128)
    assert drive(pace, 40, slowness) == pytest.approx(0.1, rel=0.25)


def test_a_slow_device_still_reads_and_a_fast_one_is_bounded() -> None:
    slow, fast = Pace(0.1, 128), Pace(0.1, 128)
    drive(slow, 40, 100.0)
    drive(fast, 40, 0.001)
    assert slow.n_prefill(1) == LEAST and fast.n_prefill(1) == 127


def test_it_follows_a_device_that_gets_hot() -> None:
    pace = Pace(0.1, 128)
    drive(pace, 40, 1.0)
    before = pace.n_prefill(1)
    assert drive(pace, 40, 2.0) == pytest.approx(0.1, rel=0.25)
    assert pace.n_prefill(1) < before


def test_alone_a_prompt_is_read_in_full_chunks_and_nothing_is_known_at_first() -> None:
    pace = Pace(0.1, 128)
    assert (pace.n_prefill(0), pace.n_prefill(3)) == (128, LEAST)
