"""A model's text -> what it says and the calls that it asks for, while it is written. A push()/flush() object.

    It is warm.                              Said("It is warm.")
    <tool_call>
    {"name": "weather",                      Called("weather")
     "arguments": {"city": "Bern"}}          Argued('{"ci'), Argued('ty": "Bern"}')
    </tool_call>

What begins like a call and is none stays text: nothing of an answer is lost.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from server.tool_text import BEGIN, END


@dataclass(frozen=True)
class Said:
    text: str


@dataclass(frozen=True)
class Called:
    """A call of this function begins; its arguments follow."""

    name: str


@dataclass(frozen=True)
class Argued:
    """More of the last call's arguments, which together are the text of a JSON object."""

    text: str


Part = Said | Called | Argued

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)
_OTHER = re.compile(re.escape(BEGIN) + r"(.*?)" + re.escape(END), re.DOTALL)
_TAIL = re.compile(r"\s*\}\s*" + re.escape(END))


class ToolCallSplitter:
    """The same parts for every cut of the text, but for where Said and Argued are divided."""

    def __init__(self) -> None:
        self._held = ""
        self._gap = ""
        """White space before what may be a call."""
        self._state = self._say
        self._after_call = False
        """Nothing was said since the last call."""
        self._arguments = _Json()

    def push(self, text: str) -> list[Part]:
        """More text in; out comes what is certain."""
        self._held += text
        return self._run()

    def flush(self) -> list[Part]:
        """The text has ended. A call that was cut off keeps the arguments that it has."""
        parts = self._run()
        rest, self._held = self._gap + self._held, ""
        if rest and self._state in (self._say, self._begin) and not (self._after_call and self._begins_call(rest)):
            parts.append(Said(rest))
        return parts

    def _begins_call(self, rest: str) -> bool:
        """Nobody can read what is left of a call that was cut off before its name."""
        return self._state == self._begin or BEGIN.startswith(rest.strip())

    def _run(self) -> list[Part]:
        parts: list[Part] = []
        while self._state(parts):
            pass
        return parts

    def _say(self, parts: list[Part]) -> bool:
        """Text, up to where a call may begin; the white space before it belongs to neither."""
        found = self._held.find(BEGIN)
        n = found if found >= 0 else len(self._held) - _n_begun(self._held, BEGIN)
        said = self._held[:n].rstrip()
        if said:
            parts.append(Said(said))
            self._after_call = False
            self._held, n = self._held[len(said) :], n - len(said)
        if found < 0:
            return False
        self._gap, self._held = self._held[:n], self._held[n:]
        self._state = self._begin
        return True

    def _begin(self, parts: list[Part]) -> bool:
        """Behind <tool_call>: the function's name, or something else that will be a call when it is complete."""
        head = _HEAD.match(self._held, len(BEGIN))
        if head and (name := _name(head[1])) is not None:
            parts.append(Called(name))
            self._held, self._gap, self._after_call = self._held[head.end() :], "", True
            self._arguments, self._state = _Json(), self._argue
            return True
        return self._begin_otherwise(parts)

    def _begin_otherwise(self, parts: list[Part]) -> bool:
        whole = _OTHER.match(self._held)
        if not whole:
            return False
        call = _whole_call(whole[1])
        if call is None:
            parts.append(Said(self._gap + whole[0]))
            self._after_call = False
        else:
            parts += call
            self._after_call = True
        self._held, self._gap, self._state = self._held[whole.end() :], "", self._say
        return True

    def _argue(self, parts: list[Part]) -> bool:
        n = self._arguments.push(self._held)
        if n:
            parts.append(Argued(self._held[:n]))
            self._held = self._held[n:]
        if not self._arguments.is_complete:
            return False
        self._state = self._end
        return True

    def _end(self, parts: list[Part]) -> bool:
        """Behind the arguments: the object's end and the call's."""
        tail = _TAIL.match(self._held)
        n = tail.end() if tail else self._held.find(END) + len(END)
        if n < len(END):
            return False
        self._held, self._state = self._held[n:], self._say
        return True


class _Json:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = self._is_escaped = False
        self.is_complete = False

    def push(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for at, letter in enumerate(text):
            self._take(letter)
            if self.is_complete:
                return at + 1
        return len(text)

    def _take(self, letter: str) -> None:
        if self._in_text:
            self._in_text = self._is_escaped or letter != '"'
            self._is_escaped = letter == "\\" and not self._is_escaped
        elif letter == '"':
            self._in_text = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1
            self.is_complete = self._depth == 0


def _name(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None


def _whole_call(text: str) -> list[Part] | None:
    """A call in another order or form than the usual one."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    given = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [Called(call["name"]), Argued(given)]


def _n_begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-n:])), 0)
