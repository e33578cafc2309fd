"""Files of conversations, read: Sparrow's own, llama-server's web page's, Open WebUI's. Nothing in them is trusted.

    ours                {"format": "sparrow", "conversations": [see portable.py]}
    llama-server        {"conv": {"name", "currNode", …}, "messages": [{"id", "parent", "role", …}]}, or a list of such
    Open WebUI          [{"title", "chat": {"history": {"messages": {id: {"parentId", …}}, "currentId"}, …}, …}]

One that is wrong is a Problem with a line for people; the others are imported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.errors import InvalidField, InvalidRequest
from server.fields import clean, parse_json
from server.portable import Portable, PortableMessage
from server.preferences import ChatSettings, changed
from server.records import title_of
from server.trees import Node, Wrong, arranged, text_of

MAX_TITLE = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """text: what is wrong with which conversation."""

    text: str


def parse(raw: bytes | bytearray) -> Iterator[Portable | Problem]:
    """The file's conversations. Raises InvalidRequest when it is no file of conversations at all."""
    given = parse_json(raw, "This file")
    if isinstance(given, dict):
        given = given.get("conversations") if given.get("format") == "sparrow" else [given]
    if not isinstance(given, list) or (given and not any(_reader(entry) for entry in given)):
        raise InvalidRequest(
            "This is no file of conversations: give one that Sparrow, llama-server or Open WebUI wrote."
        )
    return (read for at, entry in enumerate(_taken(given), 1) for read in _read(entry, at))


def _taken(entries: list[Any]) -> Iterator[Any]:
    """Each entry out of the list: 50 MB of JSON are several times that in memory, and what is read may go."""
    entries.reverse()
    while entries:
        yield entries.pop()


def _read(entry: Any, at: int) -> Iterator[Portable | Problem]:
    reader = _reader(entry)
    if reader is None:
        yield Problem(f"Conversation {at}: this is no conversation.")
        return
    name = f"Conversation {at}"
    try:
        title = _title(entry)
        name += f" ({title_of(title)})" if title else ""
        found, n_attached = reader(entry)
        yield replace(found, title=title or title_of(clean(found.messages[0].content)) or "…")
    except Wrong as error:
        yield Problem(f"{name}: {error}")
    except InvalidField as error:
        yield Problem(f"{name}: {error.message}")
    else:
        if n_attached:
            yield Problem(f"{name}: attached files were left out ({n_attached}).")


def _object(given: Any) -> dict[str, Any]:
    return given if isinstance(given, dict) else {}


def _reader(entry: Any) -> Callable[[dict[str, Any]], tuple[Portable, int]] | None:
    """The function that reads an entry of this form; None: it is none that is known."""
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("conv"), dict):
        return _of_llama_server
    if isinstance(entry.get("chat"), dict):
        return _of_open_webui
    return _of_sparrow if "messages" in entry else None


def _title(entry: Mapping[str, Any]) -> str:
    conv, chat = _object(entry.get("conv")), _object(entry.get("chat"))
    for title in (entry.get("title"), conv.get("name"), chat.get("title")):
        if isinstance(title, str) and clean(title):
            return " ".join(clean(title).split())[:MAX_TITLE]
    return ""


def _of_sparrow(entry: Mapping[str, Any]) -> tuple[Portable, int]:
    settings = entry.get("settings") or {}
    if not isinstance(settings, dict):
        raise Wrong("its settings are no object.")
    nodes = [_node(given, "parent") for given in _list(entry.get("messages"))]
    chosen = changed(ChatSettings(), settings)
    return _portable(nodes, entry.get("leaf"), entry, chosen, clean(str(entry.get("id") or ""))[:100]), 0


def _of_llama_server(entry: Mapping[str, Any]) -> tuple[Portable, int]:
    """Its messages hang from an empty one of the type "root"; a system prompt is a message, too."""
    conv, given = entry["conv"], _list(entry.get("messages"))
    nodes = [_node(message, "parent") for message in given]
    times = {"created_at": conv.get("lastModified"), "updated_at": conv.get("lastModified")}
    return _portable(nodes, conv.get("currNode"), times, _system(nodes)), _n_attached(given, "extra")


def _of_open_webui(entry: Mapping[str, Any]) -> tuple[Portable, int]:
    chat = entry["chat"]
    history = _object(chat.get("history"))
    given = _branching(history["messages"]) if "messages" in history else _linear(_list(chat.get("messages")))
    nodes = [_node(message, "parentId") for message in given]
    prompt = chat.get("system") or _object(chat.get("params")).get("system")
    settings = changed(ChatSettings(), {"system_prompt": prompt}) if prompt else _system(nodes)
    return _portable(nodes, history.get("currentId"), entry, settings), _n_attached(given, "files")


def _branching(messages: Any) -> list[Any]:
    if not isinstance(messages, dict):
        raise Wrong("its history has no messages by their ids.")
    return [{**message, "id": id} if isinstance(message, dict) else message for id, message in messages.items()]


def _linear(messages: list[Any]) -> list[Any]:
    """Its first versions knew no branches."""
    return [
        {**message, "id": at, "parentId": at - 1 if at else None} if isinstance(message, dict) else message
        for at, message in enumerate(messages)
    ]


def _list(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise Wrong("it has no list of messages.")
    return given


def _node(given: Any, parent: str) -> Node:
    if not isinstance(given, dict):
        raise Wrong("one of its messages is no object.")
    status = "stopped" if given.get("status") in ("stopped", "interrupted", "streaming", "error") else "done"
    reason = given.get("finish_reason")
    return Node(
        str(given.get("id")),
        None if given.get(parent) is None else str(given[parent]),
        str(given.get("role")),
        "" if given.get("type") == "root" else text_of(given.get("content")),
        "stopped" if status == "stopped" and given.get("role") == "assistant" else "done",
        _seconds(given.get("created_at", given.get("timestamp"))),
        reason if reason in ("stop", "length", "time") else None,
    )


def _system(nodes: list[Node]) -> ChatSettings:
    """A system prompt that stands among the messages."""
    prompt = next((node.content for node in nodes if node.role == "system" and node.content.strip()), None)
    return changed(ChatSettings(), {"system_prompt": prompt})


def _n_attached(given: list[Any], field: str) -> int:
    return sum(len(message[field]) for message in given if isinstance(message.get(field), list))


def _portable(
    nodes: list[Node], current: Any, times: Mapping[str, Any], settings: ChatSettings, id: str = ""
) -> Portable:
    kept, leaf = arranged(nodes, None if current is None else str(current))
    now = time.time()
    messages = tuple(
        PortableMessage(
            node.id, node.parent, "user" if node.role == "user" else "assistant", node.content,
            "stopped" if node.status == "stopped" else "done", node.created_at or now,
            "length" if node.finish_reason == "length" else "stop" if node.finish_reason else None,
        )
        for node in kept
    )  # fmt: skip
    newest = max(message.created_at for message in messages)
    created, updated = _seconds(times.get("created_at")), _seconds(times.get("updated_at"))
    return Portable(
        id,
        "",
        created or messages[0].created_at,
        updated or newest,
        times.get("pinned") is True,
        settings,
        leaf,
        messages,
    )


def _seconds(given: Any) -> float | None:
    """A time of theirs, which may be in milli-, micro- or nanoseconds; None: it is none, or in the future."""
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < 1e20:
        return None
    seconds = given / 1000 ** max(0, math.ceil((math.log10(given) - 11) / 3))
    return seconds if seconds < time.time() + 86_400 else None
