"""What the engine has done and is doing, in numbers: never a text. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from server.engine.sequence import FinishReason, Usage

STEP_BOUNDS_S = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of the step histogram's buckets; a last one has no bound."""

SlotState = Literal["empty", "idle", "busy"]


@dataclass(frozen=True, slots=True)
class SlotInfo:
    id: int
    state: SlotState
    n_tokens: int
    is_draft: bool
    """What it holds, or a part of it, was typed and not sent."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """counts: observations up to each bound and above the one before it; one more than bounds. total: their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the start, and how things stand. Drafts count in tokens and steps, not among the requests."""

    n_finished: Mapping[FinishReason, int]
    n_prompt: int
    """Prompt tokens of the requests that have ended, reused ones included."""
    n_completion: int
    n_reused: int
    n_waiting: int
    n_running: int
    steps: Histogram
    """Seconds of the steps that were computed."""
    slots: tuple[SlotInfo, ...]
    n_snapshots: int
    snapshot_bytes: int
    snapshot_quota: int
    n_ctx: int


class Counters:
    """The engine's thread counts; others read, each number at once."""

    def __init__(self) -> None:
        self.n_finished: dict[FinishReason, int] = dict.fromkeys(("stop", "length", "time", "cancelled", "error"), 0)
        self.n_prompt = self.n_completion = self.n_reused = 0
        self._counts = [0] * (len(STEP_BOUNDS_S) + 1)
        self._total_s = 0.0

    def finish(self, reason: FinishReason, usage: Usage, *, is_draft: bool) -> None:
        if not is_draft:
            self.n_finished[reason] += 1
        self.n_prompt += usage.n_prompt
        self.n_completion += usage.n_completion
        self.n_reused += usage.n_reused

    def step(self, seconds: float) -> None:
        self._counts[bisect_left(STEP_BOUNDS_S, seconds)] += 1
        self._total_s += seconds

    def steps(self) -> Histogram:
        return Histogram(STEP_BOUNDS_S, tuple(self._counts), self._total_s)
