"""Figures of several sides, taken several times: medians, spreads and ratios as a table, and what was promised."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. `key` is its name in the JSON line and ends in the unit."""

    key: str
    label: str
    decimals: int = 0

    @property
    def more_is_better(self) -> bool:
        return self.key.endswith("tok_s") or self.key == "goes_on"


FIGURES = [
    Figure("load_s", "load, seconds", 2),
    Figure("first_token_ms", "first token of a short prompt, ms"),
    Figure("prompt_tok_s", "reading a long prompt, tokens/s"),
    Figure("decode_tok_s", "one stream, tokens/s", 1),
    Figure("together_tok_s", "8 streams, prompts counted in, tokens/s", 1),
    Figure("together_decode_tok_s", "8 streams, while all of them run, tokens/s", 1),
    Figure("box_prompt_tok_s", "each with its usual file: reading a prompt, tokens/s"),
    Figure("box_decode_tok_s", "each with its usual file: one stream, tokens/s", 1),
    Figure("warm_s", "next message of a long chat: first token, s", 3),
    Figure("typing_s", "next message after a pause in typing: first token, s", 3),
    Figure("restart_s", "next message after a restart: first token, s", 3),
    Figure("gap_median_ms", "stream beside a newcomer's prompt: median gap, ms"),
    Figure("gap_p99_ms", "stream beside a newcomer's prompt: p99 gap, ms"),
    Figure("gap_largest_ms", "stream beside a newcomer's prompt: largest gap, ms"),
    Figure("undisturbed_s", "that prompt with nobody else there: first token, s", 2),
    Figure("newcomer_s", "that prompt beside the stream: first token, s", 2),
    Figure("newcomer_ratio", "that prompt beside the stream: times as long", 2),
    Figure("health_median_ms", "/health beside 8 streams and a long prompt: median, ms", 1),
    Figure("health_p99_ms", "/health beside 8 streams and a long prompt: p99, ms", 1),
    Figure("health_largest_ms", "/health beside 8 streams and a long prompt: largest, ms", 1),
    Figure("page_median_ms", "the page beside 8 streams and a long prompt: median, ms", 1),
    Figure("page_p99_ms", "the page beside 8 streams and a long prompt: p99, ms", 1),
    Figure("page_largest_ms", "the page beside 8 streams and a long prompt: largest, ms", 1),
    Figure("cancel_cpu_s", "after a cancel in a prompt: CPU seconds burnt", 2),
    Figure("cancel_busy_s", "after a cancel in a prompt: seconds until quiet", 2),
    Figure("lost_s", "kill -9 in an answer: seconds of text lost", 2),
    Figure("goes_on", "kill -9 in an answer: goes on (1) or not (0)"),
    Figure("peak_mb", "peak resident memory, MB"),
    Figure("idle_mb", "resident memory when idle, MB"),
]

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""side -> figure's key -> one value per run. The first side is the one that is compared with each of the others."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one figure: shared machines are noisy, so the middle counts, and the ends are shown."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def show(self, decimals: int) -> str:
        middle, low, high = (f"{value:,.{decimals}f}" for value in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low}–{high})"


@dataclass(frozen=True, slots=True)
class Promise:
    """What the project promises about a figure, and what came out. "least": value >= limit, "most": value <= limit."""

    text: str
    value: float
    limit: float
    kind: Literal["least", "most"]

    @property
    def is_kept(self) -> bool:
        return self.value >= self.limit if self.kind == "least" else self.value <= self.limit

    def __str__(self) -> str:
        decimals = 3 if 0 < self.value < 0.1 else 2
        return f"{'OK   ' if self.is_kept else 'SHORT'}  {self.text}: {self.value:,.{decimals}f}"


def spreads(samples: Samples) -> dict[str, dict[str, Spread]]:
    """side -> figure's key -> Spread."""
    return {side: {key: Spread.of(values) for key, values in figures.items()} for side, figures in samples.items()}


def as_json(results: Mapping[str, Mapping[str, Spread]]) -> dict[str, dict[str, dict[str, float]]]:
    """The same as plain dicts, with the four digits that a measurement has at most."""
    return {
        side: {
            key: {name: float(f"{value:.4g}") for name, value in asdict(spread).items()} for key, spread in row.items()
        }
        for side, row in results.items()
    }


def ratio(results: Mapping[str, Mapping[str, Spread]], side: str, base: str, key: str) -> float | None:
    """side's median by base's; None where one of them was not measured."""
    ours, theirs = (results.get(name, {}).get(key) for name in (side, base))
    return ours.median / theirs.median if ours and theirs and theirs.median else None


def table(samples: Samples) -> str:
    """One line per figure: each side's median (least–greatest); after every other side, the first by that one."""
    results = spreads(samples)
    ours, *others = results
    rows = [["", ours, *(cell for side in others for cell in (side, "ratio"))]]
    for figure in FIGURES:
        if not any(figure.key in results[side] for side in results):
            continue
        cells = [figure.label, _cell(results[ours], figure)]
        for side in others:
            times = ratio(results, ours, side, figure.key)
            cells += [_cell(results[side], figure), "–" if times is None else f"{times:.2f} ×"]
        rows.append(cells)
    return _aligned(rows)


def _cell(figures: Mapping[str, Spread], figure: Figure) -> str:
    return figures[figure.key].show(figure.decimals) if figure.key in figures else "–"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
