"""GBNF, llama.cpp's language of grammars, read into a tree. Pure.

    root ::= "[" (item ("," item)*)? "]"        "text"  [a-z]  [^"\\n]  .  rule  ( )  |  * + ? {2} {2,} {2,5}  # remark

What a rule means goes on until the next `name ::=`, over any number of lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.errors import InvalidField

MAX_RULES = 4000
MAX_NESTED = 100
"""Brackets inside brackets. llama.cpp's own reader ends the process between 10,000 and 20,000 of them."""

MAX_REPEATED = 3
"""Signs like * behind one another."""

LAST = 0x10FFFF
"""The last code point."""


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """One character in any of these ranges of code points, ends included."""

    ranges: tuple[tuple[int, int], ...]

    def has(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)

    def meets(self, low: int, high: int) -> bool:
        """Some character between the two is in it."""
        return any(first <= high and low <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True, eq=False)
class All:
    """One part after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Either:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeat:
    """most: None for no limit."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule by its name."""

    name: str


Node = Chars | All | Either | Repeat | Rule

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\r\n]*) | (?P<define>::=) | (?P<name>[A-Za-z0-9-]+) | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<chars>\[(?:[^\]\\]|\\.)*\]) | (?P<times>\{\s*\d{1,9}\s*(?:,\s*(?:\d{1,9})?\s*)?\}) | (?P<sign>[()|*+?.])""",
    re.VERBOSE | re.DOTALL,
)
_LETTER = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[^xuU])|[^\\]"
_LETTERS = re.compile(_LETTER, re.DOTALL)
_RANGE = re.compile(f"({_LETTER})(?:-({_LETTER}))?", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-", "/": "/", "^": "^"}
_TIMES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def read(text: str) -> dict[str, Node]:
    """The rules by their names; there is one called root, and every name that is used is there.

    Raises InvalidField that names the line.
    """
    return _Reader(text).rules()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._at = 0
        self._single: dict[int, Chars] = {}

    def _split(self, text: str) -> list[tuple[str, str, int]]:
        """(kind, text, where it begins), and an end that no token is like."""
        tokens, at = [], 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._error(at, f"{text[at : at + 20]!r} is not understood; is a quote or a bracket missing?")
            if found.lastgroup != "skip":
                tokens.append((str(found.lastgroup), found[0], at))
            at = found.end()
        return [*tokens, ("end", "", len(text)), ("end", "", len(text))]

    def _error(self, at: int, message: str) -> InvalidField:
        line = self._text.count("\n", 0, at) + 1
        return InvalidField("grammar", f"line {line}: {message}")

    def rules(self) -> dict[str, Node]:
        rules = dict[str, Node]()
        while self._tokens[self._at][0] != "end":
            (kind, name, at), (following, _, _) = self._tokens[self._at : self._at + 2]
            if kind != "name" or following != "define":
                raise self._error(at, f"a rule like  name ::= …  should begin at {name!r}.")
            self._at += 2
            rules[name] = self._either(0)
        if "root" not in rules:
            raise InvalidField("grammar", "it has no rule called root; the answer begins with that one.")
        if len(rules) > MAX_RULES:
            raise InvalidField("grammar", f"{len(rules)} rules are too many; at most {MAX_RULES} can be read.")
        for kind, name, at in self._tokens:
            if kind == "name" and name not in rules:
                raise self._error(at, f"there is no rule called {name!r}.")
        return rules

    def _either(self, n_nested: int) -> Node:
        if n_nested > MAX_NESTED:
            raise self._error(self._tokens[self._at][2], f"more than {MAX_NESTED} brackets inside each other.")
        options = [self._all(n_nested)]
        while self._tokens[self._at][1] == "|":
            self._at += 1
            options.append(self._all(n_nested))
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _all(self, n_nested: int) -> Node:
        parts = list[Node]()
        while (part := self._part(n_nested)) is not None:
            parts.append(part)
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _part(self, n_nested: int) -> Node | None:
        """The next text, class, name or bracket with its repetition; None where an alternative or a rule ends."""
        (kind, text, at), (following, _, _) = self._tokens[self._at : self._at + 2]
        if kind == "end" or text in ("|", ")") or following == "define":
            return None
        self._at += 1
        if kind == "text":
            codes = [self._code(letter, at) for letter in _LETTERS.findall(text[1:-1])]
            node: Node = All(tuple(self._char(code) for code in codes))
        elif kind == "chars":
            node = self._class(text[1:-1], at)
        elif kind == "name":
            node = Rule(text)
        elif text == ".":
            node = Chars(_others([]))
        elif text == "(":
            node = self._either(n_nested + 1)
            if self._tokens[self._at][1] != ")":
                raise self._error(at, "this bracket is not closed.")
            self._at += 1
        else:
            raise self._error(at, f"{text!r} stands behind nothing that it could belong to.")
        return self._repeated(node)

    def _repeated(self, node: Node) -> Node:
        n = 0
        while (times := self._times()) is not None:
            node, n = Repeat(node, *times), n + 1
            if n > MAX_REPEATED:
                raise self._error(self._tokens[self._at][2], "too many repetitions of a repetition.")
        return node

    def _times(self) -> tuple[int, int | None] | None:
        kind, text, at = self._tokens[self._at]
        if kind == "times":
            first, comma, last = text[1:-1].partition(",")
            times = int(first), int(last) if last.strip() else None if comma else int(first)
        elif kind == "sign" and text in _TIMES:
            times = _TIMES[text]
        else:
            return None
        if times[1] is not None and times[1] < times[0]:
            raise self._error(at, f"{text}: the first number is the larger one.")
        self._at += 1
        return times

    def _code(self, letter: str, at: int) -> int:
        """The code point of a letter, or of an escape."""
        if letter[0] != "\\":
            return ord(letter)
        if letter[1] in "xuU":
            code = int(letter[2:], 16)
            if code > LAST:
                raise self._error(at, f"{letter} is no character.")
            return code
        if letter[1] not in _ESCAPES:
            raise self._error(at, f"{letter} is no escape; \\\\ is a backslash.")
        return ord(_ESCAPES[letter[1]])

    def _char(self, code: int) -> Chars:
        return self._single.setdefault(code, Chars(((code, code),)))

    def _class(self, body: str, at: int) -> Chars:
        is_negated = body.startswith("^")
        ranges = list[tuple[int, int]]()
        for first, last in _RANGE.findall(body[is_negated:]):
            low, high = self._code(first, at), self._code(last or first, at)
            if low > high:
                raise self._error(at, f"[{first}-{last}] has no characters: its ends stand the wrong way round.")
            ranges.append((low, high))
        return Chars(_others(ranges) if is_negated else tuple(ranges))


def _others(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All code points that are in none of the ranges, but NUL, which ends a text for many programs."""
    others, at = [], 1
    for low, high in sorted(ranges):
        if low > at:
            others.append((at, low - 1))
        at = max(at, high + 1)
    return tuple(others) if at > LAST else (*others, (at, LAST))
