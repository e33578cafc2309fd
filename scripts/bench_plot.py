"""The table as a bar chart: an SVG of text and rectangles, readable on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from bench_report import FIGURES, Figure, Spread

WIDTH, LABEL, BAR, GAP, TOP = 920, 400, 16, 14, 64
"""Pixels: the whole, the labels' column, a bar, the space between two figures, the head with title and legend."""
COLOURS = ["#c2621b", "#3f7cac", "#8a8d91", "#5b8c5a", "#8c6bb1"]

STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:15px}.value{font-size:12px}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def svg(title: str, results: Mapping[str, Mapping[str, Spread]]) -> str:
    """A group of bars for each figure that at least two sides have; the longest bar of a group is as long as can be."""
    sides = list(results)
    parts, y = [_text(0, 18, title, "title"), *_legend(sides)], float(TOP)
    shown = [figure for figure in FIGURES if sum(figure.key in results[side] for side in sides) > 1]
    for heading, more in (("More is better", True), ("Less is better", False)):
        group = [figure for figure in shown if figure.more_is_better is more]
        if group:
            parts.append(_text(0, y + 12, heading, "title"))
            y += 2 * GAP
        for figure in group:
            medians = {side: results[side][figure.key].median for side in sides if figure.key in results[side]}
            parts += _bars(y, figure, [(COLOURS[sides.index(side) % len(COLOURS)], medians[side]) for side in medians])
            y += BAR * len(medians) + GAP
    size = f'width="{WIDTH}" height="{y:g}" viewBox="0 0 {WIDTH} {y:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title><style>{STYLE}</style>", *parts, "</svg>\n"])


def _legend(sides: list[str]) -> list[str]:
    parts, x = [], 0
    for at, side in enumerate(sides):
        parts += [_rectangle(x, 32, 12, 12, COLOURS[at % len(COLOURS)]), _text(x + 18, 43, side)]
        x += 18 + 9 * len(side) + 16
    return parts


def _bars(y: float, figure: Figure, values: list[tuple[str, float]]) -> list[str]:
    """values: (colour, value) of each side."""
    parts = [_text(0, y + BAR * len(values) / 2 + 4, figure.label)]
    greatest, longest = max(value for _, value in values), WIDTH - LABEL - 80  # the rest is for the number behind
    for at, (colour, value) in enumerate(values):
        width, top = (longest * value / greatest if greatest else 0.0), y + BAR * at
        parts.append(_rectangle(LABEL, top + 1, max(width, 1.0), BAR - 2, colour))
        parts.append(_text(LABEL + width + 6, top + BAR - 4, f"{value:,.{figure.decimals}f}", "value"))
    return parts


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="2" fill="{colour}"/>'


def _text(x: float, y: float, text: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:g}">{escape(text)}</text>'
