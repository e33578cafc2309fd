"""What the project promises about its figures, and the limits of the device that they can't pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import bench_report
from bench_report import Promise, Spread
from bench_sides import OURS, PEER, RAW

Results = Mapping[str, Mapping[str, Spread]]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of this server's and its limit: by another side's where one is named, else in the figure's unit."""

    key: str
    kind: Literal["least", "most"]
    limit: float
    side: str | None = None
    as_served: bool = False
    """Only for what is served when nothing is chosen: the default quant of Qwen's shapes, the default memory for KV."""


TARGETS = [
    Target("decode_tok_s", "least", 0.97, RAW),
    Target("decode_tok_s", "least", 1.00, PEER),
    Target("together_decode_tok_s", "least", 0.93, RAW),
    Target("together_tok_s", "least", 1.05, PEER),
    Target("box_decode_tok_s", "least", 1.50, PEER),
    Target("box_prompt_tok_s", "least", 1.35, PEER),
    Target("gap_largest_ms", "most", 200),
    Target("newcomer_ratio", "most", 1.4),
    Target("warm_s", "most", 1.0, PEER),
    Target("typing_s", "most", 0.09),
    Target("restart_s", "most", 0.20),
    Target("health_p99_ms", "most", 50),
    Target("page_p99_ms", "most", 50),
    Target("cancel_cpu_s", "most", 0.25),
    Target("lost_s", "most", 0.5),
    Target("goes_on", "least", 1),
    Target("peak_mb", "most", 0.80, PEER),
    Target("peak_mb", "most", 750, as_served=True),
]
"""The seconds are those of a small cloud machine with 2 cores; the ratios hold everywhere."""


def promises(results: Results, *, as_served: bool) -> list[Promise]:
    """The targets of what was measured, each with what came out."""
    targets = [target for target in TARGETS if as_served or not target.as_served]
    return [promise for target in targets if (promise := _promise(target, results))]


def _promise(target: Target, results: Results) -> Promise | None:
    label = next(figure.label for figure in bench_report.FIGURES if figure.key == target.key)
    words = "at least" if target.kind == "least" else "at most"
    if target.side is None:
        ours = results[OURS].get(target.key)
        text = f"{label}: {words} {target.limit:g}"
        return Promise(text, ours.median, target.limit, target.kind) if ours else None
    share = bench_report.ratio(results, OURS, target.side, target.key)
    text = f"{label}: {words} {target.limit:.2f} × {target.side}"
    return None if share is None else Promise(text, share, target.limit, target.kind)


def limits(results: Results, bandwidth: float, n_weight_bytes: int | None) -> dict[str, float]:
    """What this device can do at most, and how much of it is reached: as figures of the JSON line.

    bandwidth: bytes per second. n_weight_bytes: bytes of weights that one step reads.
    """
    found = {"bandwidth_gb_s": bandwidth / 1e9}
    for key, rows in (("decode_tok_s", 1), ("together_decode_tok_s", 8)):
        alone, share = results.get(RAW, {}).get(key), bench_report.ratio(results, OURS, RAW, key)
        if alone is None or share is None:
            continue
        found |= {f"raw_{rows}_tok_s": alone.median, f"reached_{rows}": share}
        if rows == 1 and n_weight_bytes:
            found["bandwidth_reached"] = alone.median * n_weight_bytes / bandwidth
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def show_limits(limits: Mapping[str, float]) -> str:
    """The same for people."""
    lines = [f"This device reads its memory at {limits['bandwidth_gb_s']:.1f} GB/s"]
    if "bandwidth_reached" in limits:
        lines[0] += f"; llama_decode alone reads the weights at {limits['bandwidth_reached']:.0%} of that"
    for rows, words in ((1, "one stream"), (8, "8 streams")):
        if f"raw_{rows}_tok_s" in limits:
            rate, share = limits[f"raw_{rows}_tok_s"], limits[f"reached_{rows}"]
            lines.append(f"llama_decode alone, {words}: {rate:.1f} tokens/s; {OURS} over HTTP reaches {share:.0%}")
    return ".\n".join(lines) + "."
