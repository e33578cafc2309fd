"""Which characters a grammar allows next: an automaton whose states are made when they are met. Pure.

llama.cpp's own matcher keeps every way to read the text so far apart: of  root ::= "a" root "b" | "a" root "c" | "a"
each further "a" takes it four times as long, 16 s for the 22nd, on the thread that everybody waits for. Here what is
done for one token has a limit (BUDGET), and what was done for a character once is a look into a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from server.engine.gbnf import All, Chars, Either, Node, Repeat, Rule
from server.errors import InvalidField

BUDGET = 20_000
"""Places in the grammar that are visited for one token: 0.1 s. JSON takes some hundred."""

MAX_DEPTH = 2000
"""What is open at once: brackets inside brackets in the answer, say."""

MAX_KEPT = 40_000
"""Places, and characters at places, that are remembered before all are forgotten: some 5 MB."""


class Place:
    """A node of the grammar that comes next (its part `at`, for All), and what comes after it."""

    __slots__ = ("node", "at", "rest", "depth")

    def __init__(self, node: Node | None, at: int, rest: Place | None) -> None:
        self.node, self.at, self.rest = node, at, rest
        self.depth: int = rest.depth + 1 if rest else 0


END = Place(None, 0, None)
"""Nothing has to come: the text may end here."""


class State:
    """All places where the text may go on, each at a class of characters. `may_end`: the text is whole."""

    __slots__ = ("may_end", "next", "alike", "_single", "_ranged", "_leads")

    def __init__(self, places: Iterable[Place], may_end: bool) -> None:
        self.may_end = may_end
        self.next: dict[str, State | None] = {}
        self.alike: dict[tuple[Place, ...], State] = {}
        """States behind characters that lead to the same places."""
        self._single: dict[int, list[Place]] = {}
        self._ranged: list[tuple[Chars, Place]] = []
        self._leads: npt.NDArray[np.bool_] | None = None
        for place in places:
            assert isinstance(place.node, Chars) and place.rest is not None
            if len(place.node.ranges) == 1 and place.node.ranges[0][0] == place.node.ranges[0][1]:
                self._single.setdefault(place.node.ranges[0][0], []).append(place.rest)
            else:
                self._ranged.append((place.node, place.rest))

    @property
    def is_over(self) -> bool:
        """It may end, and nothing else."""
        return self.may_end and not self._single and not self._ranged

    @property
    def n_ranged(self) -> int:
        return len(self._ranged)

    def after(self, code: int) -> tuple[Place, ...]:
        """The places behind this character."""
        return (*self._single.get(code, ()), *(rest for chars, rest in self._ranged if chars.has(code)))

    def alone(self) -> State:
        """The same without what is known of the states behind it."""
        twin = State((), self.may_end)
        twin._single, twin._ranged, twin._leads = self._single, self._ranged, self._leads
        return twin

    def meets(self, low: int, high: int) -> bool:
        """Some character of these code points may come next."""
        if low > high:
            return False
        is_single = low in self._single if low == high else any(low <= code <= high for code in self._single)
        return is_single or any(chars.meets(low, high) for chars, _ in self._ranged)

    @property
    def leads(self) -> npt.NDArray[np.bool_]:
        """[256] whether a character whose UTF-8 begins with this byte may come next."""
        if self._leads is None:
            self._leads = np.zeros(256, dtype=np.bool_)
            self._leads[[_lead(code) for code in self._single]] = True
            for chars, _ in self._ranged:
                for low, high in chars.ranges:
                    self._leads[_lead(low) : _lead(high) + 1] = True
        return self._leads


def _lead(code: int) -> int:
    """The first byte of its UTF-8."""
    if code < 0x80:
        return code
    return 0xC0 | code >> 6 if code < 0x800 else 0xE0 | code >> 12 if code < 0x10000 else 0xF0 | code >> 18


_UNMET = State((), False)
"""Nobody has asked yet."""


class Automaton:
    """One grammar's states, for one thread."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        """rules: as gbnf.read gives them. Raises InvalidField when root can begin in too many ways."""
        self._rules = rules
        self._places: dict[tuple[Node, int, Place], Place] = {}
        self._states: dict[tuple[frozenset[Place], bool], State] = {}
        self._fewer: dict[tuple[Node, int, int | None], Repeat] = {}
        self._left, self._n_steps = BUDGET, 0
        self.start = self._closure([self._place(rules["root"], 0, END)])

    def refill(self) -> None:
        """Another token: the budget is whole again."""
        self._left = BUDGET

    def advance(self, state: State, text: str) -> State | None:
        """The state behind `text`; None: the grammar forbids it. Raises InvalidField when that took too long."""
        for char in text:
            found = state.next.get(char, _UNMET)
            if found is _UNMET:
                found = state.next[char] = self._step(state, ord(char))
            if found is None:
                return None
            state = found
        return state

    def trimmed(self, state: State) -> State:
        """The same state; when too much is remembered, all else is forgotten."""
        if len(self._places) + self._n_steps < MAX_KEPT:
            return state
        self._n_steps = 0
        self._places.clear()
        self._states.clear()
        self._fewer.clear()
        return state.alone()

    def _step(self, state: State, code: int) -> State | None:
        self._n_steps += 1
        self._pay(state.n_ranged // 16)
        places = state.after(code)
        if places and places not in state.alike:
            state.alike[places] = self._closure([*places])
        return state.alike[places] if places else None

    def _closure(self, todo: list[Place]) -> State:
        """All that these places come to without a character."""
        seen, found, may_end = set[Place](), list[Place](), False
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            self._pay(1)
            if place is END:
                may_end = True
            elif isinstance(place.node, Chars):
                found.append(place)
            else:
                todo.extend(self._expand(place))
        key = frozenset(found), may_end
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = State(found, may_end)
        return state

    def _expand(self, place: Place) -> Iterable[Place]:
        node, rest = place.node, place.rest
        assert rest is not None
        if isinstance(node, All):
            if place.at == len(node.parts):
                return [rest]
            is_last = place.at == len(node.parts) - 1
            after = rest if is_last else self._place(node, place.at + 1, rest)
            return [self._place(node.parts[place.at], 0, after)]
        if isinstance(node, Either):
            return [self._place(option, 0, rest) for option in node.options]
        if isinstance(node, Rule):
            return [self._place(self._rules[node.name], 0, rest)]
        assert isinstance(node, Repeat)
        if node.most == 0:
            return [rest]
        again = self._place(node.node, 0, self._place(self._one_fewer(node), 0, rest))
        return [again] if node.least else [rest, again]

    def _one_fewer(self, node: Repeat) -> Repeat:
        """What is left of a repetition after one turn; the same object each time."""
        if not node.least and node.most is None:
            return node
        least, most = max(0, node.least - 1), None if node.most is None else node.most - 1
        return self._fewer.setdefault((node.node, least, most), Repeat(node.node, least, most))

    def _place(self, node: Node, at: int, rest: Place) -> Place:
        """The same object each time, so that places are compared by what they are."""
        place = self._places.get((node, at, rest))
        if place is None:
            place = self._places[node, at, rest] = Place(node, at, rest)
            if place.depth > MAX_DEPTH:
                raise self._too_much(f"more than {MAX_DEPTH} things are open at once")
        return place

    def _pay(self, n: int) -> None:
        self._left -= n
        if self._left < 0:
            raise self._too_much("there are too many ways to read it")

    def _too_much(self, why: str) -> InvalidField:
        return InvalidField("grammar", f"{why}; let no two options begin alike, and nothing repeat what may be empty.")
