"""Regular expressions, and whole numbers between bounds, as GBNF of what stands in a JSON text. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidField

CHAR = (
    r'[^"\\\x00-\x1f\x7f] | "\\" ["\\/bfnrt] '
    r'| "\\u" ([0-9a-ce-fA-CE-F] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})'  # halves of surrogate pairs are no text
)
"""One character of a JSON string."""

MAX_PATTERN = 2000
MAX_OPEN = 50
MAX_DIGITS = 18
"""Bounds beyond so many digits are none."""

Ranges = list[tuple[int, int]]

_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(0x09, 0x0A), (0x0D, 0x0D), (0x20, 0x20)]
_ASCII: Ranges = [(0x20, 0x7E)]
_TEXT: Ranges = [(0x20, 0x7E), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]


def quoted(text: str, path: tuple[str, ...]) -> str:
    """A GBNF text. Raises InvalidField for half of a surrogate pair."""
    if re.search("[\ud800-\udfff]", text):
        raise InvalidField(".".join(path), "half of a surrogate pair is no text.")
    return '"' + "".join(_escaped(ord(char)) if char in '"\\\n\r\t[]' or char < " " else char for char in text) + '"'


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"


def integers(schema: Mapping[str, Any], path: tuple[str, ...]) -> str | None:
    """Whole numbers between the bounds; None: there are no bounds. Raises InvalidField where there is no number."""
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        value = schema.get(key, 0)
        is_number = type(value) is int or (type(value) is float and math.isfinite(value))
        if not is_number:
            raise InvalidField(".".join((*path, key)), "give a number.")
    lows = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    lows += [math.floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    highs = [math.floor(schema["maximum"])] if "maximum" in schema else []
    highs += [math.ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    low, high = max(lows, default=None), min(highs, default=None)
    most = 10**MAX_DIGITS - 1
    low, high = (None if low is None or low < -most else low), (None if high is None or high > most else high)
    if low is None and high is None:
        return None
    low, high = -most if low is None else low, most if high is None else high
    if low > high:
        raise InvalidField(".".join((*path, "minimum")), f"there is no whole number from {low} to {high}.")
    options = [f'"-" ({_between(max(1, -high), -low)})'] if low < 0 else []
    if high >= 0:
        options.append(_between(max(0, low), high))
    return " | ".join(options)


def _between(low: int, high: int) -> str:
    """Numbers of each length apart."""
    options = []
    for n in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 0 if n == 1 else 10 ** (n - 1))
        options.append(_digits(str(least), str(min(high, 10**n - 1))))
    return " | ".join(options)


def _digits(low: str, high: str) -> str:
    """Texts of digits from `low` to `high`, which are equally long."""
    n = len(low)
    if low == "0" * n and high == "9" * n:
        return f"[0-9]{{{n}}}" if n else '""'
    if low[0] == high[0]:
        return f'"{low[0]}" {_grouped(_digits(low[1:], high[1:]))}' if n > 1 else f'"{low}"'
    options = [f'"{low[0]}" {_grouped(_digits(low[1:], "9" * (n - 1)))}']
    if int(high[0]) - int(low[0]) > 1:
        options.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{n - 1}}}")
    return " | ".join([*options, f'"{high[0]}" {_grouped(_digits("0" * (n - 1), high[1:]))}'])


def _grouped(expression: str) -> str:
    return f"({expression})"


def pattern_gbnf(pattern: str, path: tuple[str, ...]) -> str:
    """Texts in which the pattern is found, as they stand between quotation marks in JSON.

    Raises InvalidField for what is no regular expression, or needs to look around.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidField(".".join(path), f"{len(pattern)} characters are too many; at most {MAX_PATTERN}.")
    try:
        return _Pattern(pattern, path).whole()
    except (IndexError, ValueError):
        raise InvalidField(".".join(path), "this is no regular expression; is a bracket cut off?") from None


_TIMES = re.compile(r"[*+?]|\{\d{1,6}(?:,\d{0,6})?\}")
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_]\w*>)?")
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}


class _Pattern:
    def __init__(self, pattern: str, path: tuple[str, ...]) -> None:
        self._pattern, self._path, self._at = pattern, path, 0
        self._n_open = 0

    def _refuse(self, what: str) -> InvalidField:
        return InvalidField(".".join(self._path), f"{what} can't be honoured in a pattern.")

    def _take(self, text: str) -> bool:
        is_there = self._pattern.startswith(text, self._at)
        self._at += len(text) * is_there
        return is_there

    def whole(self) -> str:
        options = [self._anchored()]
        while self._take("|"):
            options.append(self._anchored())
        if self._at < len(self._pattern):
            raise self._refuse(f"{self._pattern[self._at]!r} in this place")
        return f"({' | '.join(options)})"

    def _anchored(self) -> str:
        """An option at the top: what is not tied to an end of the text may have any text there."""
        before = "" if self._take("^") else "char*"
        inside = self._sequence()
        return f"{before} {inside} {'' if self._take('$') else 'char*'}"

    def _either(self) -> str:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return f"({' | '.join(options)})"

    def _sequence(self) -> str:
        parts = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)$":
            parts.append(self._atom() + self._times())
        return " ".join(parts) or '""'

    def _times(self) -> str:
        found = _TIMES.match(self._pattern, self._at)
        if found is None:
            return ""
        self._at = found.end()
        self._take("?")  # what is found lazily is found
        if self._pattern[self._at : self._at + 1] == "+":
            raise self._refuse("a repetition that gives nothing back")
        return found[0]

    def _atom(self) -> str:
        char = self._pattern[self._at]
        if char == "(":
            return self._group()
        if char == "[":
            return _any_of(self._class())
        if char in "^{*+?":
            raise self._refuse(f"{char!r} in this place")
        self._at += 1
        if char == ".":
            return _any_of(_TEXT)
        return _any_of(self._escape() if char == "\\" else [(ord(char), ord(char))])

    def _group(self) -> str:
        found = _GROUP.match(self._pattern, self._at)
        assert found
        self._at = found.end()
        if self._pattern[self._at : self._at + 1] == "?":
            raise self._refuse(f"{self._pattern[found.start() : found.end() + 2]!r}")
        self._n_open += 1
        if self._n_open > MAX_OPEN:
            raise self._refuse(f"more than {MAX_OPEN} brackets inside each other")
        inside = self._either()
        if not self._take(")"):
            raise self._refuse("a bracket that is not closed, or '$' in one,")
        self._n_open -= 1
        return inside

    def _escape(self) -> Ranges:
        """Behind a backslash."""
        char = self._pattern[self._at]
        self._at += 1
        if char in "xu":
            n = 2 if char == "x" else 4
            code = int(self._pattern[self._at : self._at + n], 16)
            self._at += n
            return [(code, code)]
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return ranges if char.islower() else _without(_ASCII, ranges)
        if char in _CONTROLS:
            return [(_CONTROLS[char], _CONTROLS[char])]
        if char.isalnum():
            raise self._refuse(f"'\\{char}'")
        return [(ord(char), ord(char))]

    def _class(self) -> Ranges:
        self._at += 1
        is_negated = self._take("^")
        ranges, is_first = Ranges(), True
        while is_first or not self._pattern.startswith("]", self._at):
            is_first = False
            ranges += self._range()
        self._at += 1
        return _without(_TEXT, ranges) if is_negated else ranges

    def _range(self) -> Ranges:
        first = self._member()
        if self._pattern.startswith("-", self._at) and not self._pattern.startswith("-]", self._at):
            self._at += 1
            low, high = first[0][0], self._member()[-1][1]
            if low > high:
                raise self._refuse(f"a range from {chr(low)!r} to {chr(high)!r}")
            return [(low, high)]
        return first

    def _member(self) -> Ranges:
        char = self._pattern[self._at]
        self._at += 1
        return self._escape() if char == "\\" else [(ord(char), ord(char))]


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    left = list(ranges)
    for low, high in others:
        left = [
            part
            for first, last in left
            for part in ((first, min(last, low - 1)), (max(first, high + 1), last))
            if part[0] <= part[1]
        ]
    return left


def _any_of(ranges: Ranges) -> str:
    """One of these characters, as JSON writes it."""
    as_they_are = _without(ranges, [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)])
    options = ["[" + "".join(f"{_escaped(low)}-{_escaped(high)}" for low, high in as_they_are) + "]"]
    for code, text in ((0x22, r'"\\\""'), (0x5C, r'"\\\\"'), (9, r'"\\t"'), (10, r'"\\n"'), (13, r'"\\r"')):
        if any(low <= code <= high for low, high in ranges):
            options.append(text)
    return f"({' | '.join(options)})" if len(options) > 1 else options[0]
