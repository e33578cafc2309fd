"""What a crash takes of an answer on the chat page: this server is killed in the middle of one and started again."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bench_client
from bench_sides import Side

from server.errors import UsageError


class Page:
    """A browser as the server sees it: it keeps the session's cookie."""

    def __init__(self, url: str, cookie: str = "") -> None:
        self._address = urlsplit(url)
        self.cookie = cookie

    def ask(self, text: str) -> str:
        """Send a question that begins a conversation; the path of its answer's events."""
        body = json.dumps({"text": text, "key": secrets.token_urlsafe(16)})
        wire, reply = self._request("POST", "/messages", body)
        answer = reply.read()
        wire.close()
        if reply.status != 201:
            raise UsageError(
                f"The page's POST /messages answered {reply.status}: {answer[:200].decode(errors='replace')}"
            )
        self.cookie = (reply.getheader("Set-Cookie") or "").partition(";")[0]
        return f"/answers/{json.loads(answer)['answer']}/events"

    def events(self, path: str, last_id: str = "") -> tuple[socket.socket, http.client.HTTPResponse]:
        """The open stream of an answer, after the event last_id; whoever gets the socket closes it."""
        return self._request("GET", path, headers={"Last-Event-ID": last_id} if last_id else {})

    def _request(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[socket.socket, http.client.HTTPResponse]:
        address = self._address
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60.0)
        headers = {**(headers or {}), **({"Cookie": self.cookie} if self.cookie else {})}
        headers |= {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, headers)
        return connection.sock, connection.getresponse()


_TAG = re.compile(r"<[^>]*>")
_TAIL = re.compile(r'(?<=<span class="tail">)[^<]*')


@dataclass
class Seen:
    """What a reader of an answer has on the screen, each state with the time when it came, as EventSource keeps it."""

    states: list[tuple[float, str]] = field(default_factory=list)
    last_id: str = ""
    kept: str | None = None
    """The text of the first reset: what the server still knew when this reader came back."""
    ended: str = ""
    _settled: str = ""
    _open: str = ""

    def read(self, lines: Iterable[bytes]) -> None:
        """Follow the events of an answer to their end, or to the connection's."""
        for event, id, data in _events(lines):
            self.last_id = id or self.last_id
            if event == "end":
                self.ended = str(data["status"])
                return
            if event in ("delta", "reset"):
                self._take(event == "reset", data)

    def _take(self, is_reset: bool, data: Mapping[str, str]) -> None:
        """The page does the same with the elements of these names."""
        if is_reset:
            self._settled = self._open = ""
        self._settled += data.get("settled", "")
        self._open = data.get("open", self._open)
        if "text" in data or "tail" in data:
            self._open = _TAIL.sub(
                lambda tail: data.get("tail", tail[0]) + html.escape(data.get("text", "")), self._open
            )
        self.states.append((time.perf_counter(), html.unescape(_TAG.sub("", self._settled + self._open)).strip()))
        if is_reset and self.kept is None:
            self.kept = self.text

    @property
    def text(self) -> str:
        return self.states[-1][1] if self.states else ""


def _events(lines: Iterable[bytes]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(event, id, data) of each."""
    event = id = ""
    try:
        for line in lines:
            name, _, value = line.rstrip(b"\r\n").partition(b": ")
            if not name:
                id = ""
            elif name == b"event":
                event = value.decode()
            elif name == b"id":
                id = value.decode()
            elif name == b"data":
                yield event, id, json.loads(value)
    except (OSError, ValueError, http.client.HTTPException):
        return  # the server is gone, or we hung up


def lost_seconds(seen: list[tuple[float, str]], kept: str) -> float:
    """Seconds of writing that are gone: from the first state that is not whole in what was kept, to the last one."""
    missing = [came for came, text in seen if not kept.startswith(text)]
    return seen[-1][0] - missing[0] if missing else 0.0


def kill_and_come_back(side: Side, folder: Path, kill_s: float) -> dict[str, float]:
    """Kill this server kill_s into an answer; start it again, and come back to that answer as a browser does.

    lost_s: seconds of its text that are gone. goes_on: 1.0 if the answer was continued, 0.0 if it stays broken off.
    """
    seen, again = Seen(), Seen()
    with side.running(folder) as server:
        page = Page(server.client.url)
        path = page.ask(f"Tell a long story about the number {bench_client.digits(8)}.")
        _watch(seen, page, path, kill_s, kill=server.pid)
    with side.running(folder) as server:
        _watch(again, Page(server.client.url, page.cookie), path, kill_s, last_id=seen.last_id)
    # Without a reset the stream goes on where this reader was.
    kept, n_new = (
        (seen.text, len(again.text)) if again.kept is None else (again.kept, len(again.text) - len(again.kept))
    )
    goes_on = (n_new > 0 and again.ended != "interrupted") or seen.ended == "done"
    return {"lost_s": lost_seconds(seen.states, kept), "goes_on": float(goes_on)}


def _watch(seen: Seen, page: Page, path: str, seconds: float, *, last_id: str = "", kill: int | None = None) -> None:
    """Read an answer until it ends or `seconds` are over; then kill that process, or hang up."""
    wire, reply = page.events(path, last_id)
    reader = threading.Thread(target=seen.read, args=(reply,))
    reader.start()
    reader.join(seconds)
    if kill is not None:
        os.kill(kill, signal.SIGKILL)
    else:
        with contextlib.suppress(OSError):  # the server may have ended it
            wire.shutdown(socket.SHUT_RDWR)
    reader.join()
    reply.close()
    wire.close()
