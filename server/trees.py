"""Somebody else's messages, put in order: whom each answers, what is left out, and that they are a tree at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.fields import storable

MAX_MESSAGES = 20_000
MAX_CONTENT = 1_000_000
"""Characters; far more than any model here reads, and still a page that opens."""


class Wrong(Exception):
    """What is wrong with a conversation, in words that follow its name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A message as it was found."""

    id: str
    parent: str | None
    role: str
    content: str
    status: str
    created_at: float | None
    finish_reason: str | None


def text_of(content: Any) -> str:
    """A message's text, or OpenAI's list of parts, of which those that are text are kept."""
    if content is None:
        return ""
    if isinstance(content, list):
        content = "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    if not isinstance(content, str):
        raise Wrong("one of its messages has a content that is no text.")
    if len(content) > MAX_CONTENT:
        raise Wrong(f"one of its messages has {len(content):,} characters; at most {MAX_CONTENT:,} are imported.")
    return storable(content)


def arranged(nodes: Sequence[Node], current: str | None) -> tuple[list[Node], str | None]:
    """What people and models said, each message behind its parent, and the one of them that is or leads to `current`,
    which is the newest if it is none.

    Roots, system prompts and calls of tools go, and what hung from them hangs from what they hung from. Raises Wrong.
    """
    by_id = {node.id: node for node in nodes}
    if len(nodes) > MAX_MESSAGES:
        raise Wrong(f"it has {len(nodes):,} messages; at most {MAX_MESSAGES:,} are imported.")
    if len(by_id) < len(nodes):
        raise Wrong("two of its messages have the same id.")
    heirs = _nearest_kept(nodes, by_id)
    kept = [replace(node, parent=heirs.get(node.parent or "")) for node in nodes if _is_kept(node)]
    if not kept:
        raise Wrong("it has no messages.")
    shown = current if current in by_id else max(nodes, key=lambda node: node.created_at or 0).id
    return _parents_first(kept), heirs.get(shown)


def _is_kept(node: Node) -> bool:
    return node.role in ("user", "assistant")


def _nearest_kept(nodes: Sequence[Node], by_id: dict[str, Node]) -> dict[str, str | None]:
    """For each id itself, if its message is kept, else the nearest one above it that is."""
    heirs: dict[str, str | None] = {}
    for node in nodes:
        at, path = node, list[str]()
        while at.id not in heirs and not _is_kept(at):
            if len(path) > len(nodes):
                raise Wrong("its messages answer each other in a circle.")
            path.append(at.id)
            above = by_id.get(at.parent or "")
            if above is None:
                break
            at = above
        heir = heirs.get(at.id, at.id if _is_kept(at) else None)
        heirs.update(dict.fromkeys([*path, at.id], heir))
    return heirs


def _parents_first(kept: Sequence[Node]) -> list[Node]:
    children: dict[str | None, list[Node]] = defaultdict(list)
    for node in kept:
        children[node.parent].append(node)
    order: list[Node] = []
    waiting = children[None][::-1]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += children[node.id][::-1]
    if len(order) < len(kept):
        raise Wrong("its messages answer each other in a circle.")
    return order
