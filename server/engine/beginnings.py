"""What the rules of a grammar may begin with: a rule that begins with itself would never come to a character. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from server.engine.gbnf import All, Chars, Either, Node, Repeat, Rule, read
from server.errors import InvalidField

MAX_VISITS = 300_000
"""Nodes that are looked at to find such rules: a second or less."""


@lru_cache(maxsize=8)
def read_checked(text: str) -> Mapping[str, Node]:
    """The rules of a GBNF text, of which none begins with itself. Raises InvalidField like gbnf.read."""
    rules = read(text)
    _check_beginnings(rules)
    return rules


def _check_beginnings(rules: Mapping[str, Node]) -> None:
    """Raises InvalidField for a rule that begins with itself: whoever reads on would never come to a character."""
    lefts = {name: set(_lefts(node, empty)) for empty in [_empty(rules)] for name, node in rules.items()}
    done = set[str]()
    for first in rules:
        path, todo = dict[str, None](), [(first, True)]
        while todo:
            name, is_new = todo.pop()
            if not is_new:
                del path[name]
                done.add(name)
            elif name in path:
                raise InvalidField("grammar", f"rule {name} begins with itself; let it begin with something else.")
            elif name not in done:
                path[name] = None
                todo += [(name, False), *((other, True) for other in lefts[name])]


def _empty(rules: Mapping[str, Node]) -> set[str]:
    """The rules that may be nothing at all."""
    users: dict[str, list[str]] = {name: [] for name in rules}
    n_visits = 0
    for name, node in rules.items():
        for other in set(_names(node)):
            users[other].append(name)
    empty, todo = set[str](), list(rules)
    while todo:
        name = todo.pop()
        if name in empty:
            continue
        is_empty, n = _may_be_empty(rules[name], empty)
        n_visits += n
        if n_visits > MAX_VISITS:
            raise InvalidField("grammar", "it is too large: its rules lean on each other in too many ways.")
        if is_empty:
            empty.add(name)
            todo += users[name]
    return empty


def _names(node: Node) -> Iterator[str]:
    todo = [node]
    while todo:
        found = todo.pop()
        if isinstance(found, Rule):
            yield found.name
        else:
            todo += _inside(found)


def _inside(node: Node) -> tuple[Node, ...]:
    if isinstance(node, All):
        return node.parts
    if isinstance(node, Either):
        return node.options
    return (node.node,) if isinstance(node, Repeat) else ()


def _may_be_empty(node: Node, empty: set[str]) -> tuple[bool, int]:
    """And how many nodes were looked at."""
    if isinstance(node, Rule):
        return node.name in empty, 1
    if isinstance(node, Repeat) and not node.least:
        return True, 1
    found, n = [], 1
    for part in _inside(node):
        is_empty, n_more = _may_be_empty(part, empty)
        found.append(is_empty)
        n += n_more
        if is_empty == isinstance(node, Either):
            break
    return (any(found) if isinstance(node, Either) else all(found) and not isinstance(node, Chars)), n


def _lefts(node: Node, empty: set[str]) -> Iterator[str]:
    """The rules that may stand at its beginning."""
    if isinstance(node, Rule):
        yield node.name
    for part in _inside(node):
        yield from _lefts(part, empty)
        if isinstance(node, All) and not _may_be_empty(part, empty)[0]:
            break
