"""The people of the soak: each does one thing after another, drawn from a seed, and notes what the server said."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench_soak_requests import BAD, FILE, OTHERS, WISHES, WORDS

TIMEOUT_S = 120.0


@dataclass
class Record:
    """What all of them saw together."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    n_ends: int = 0
    """Answers that were read to their terminal event."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int | str) -> None:
        with self.lock:
            self.statuses[kind, str(status)] += 1

    def complain(self, problem: str) -> None:
        with self.lock:
            self.problems[problem] += 1

    def end(self, kind: str, n: int, what: object) -> None:
        """An answer was read to where its stream ended, and had n terminal events."""
        with self.lock:
            self.n_ends += n == 1
        if n != 1:
            self.complain(f"{kind}: an answer ended {n} times: {what}")


class Person:
    """One browser and one program of the same author. `act` does one thing, whole or broken off."""

    def __init__(self, port: int, record: Record, seed: str) -> None:
        self.record = record
        self._port = port
        self._rng = random.Random(seed)
        self._cookie = ""
        self._asked: list[dict[str, Any]] = []
        """What the page was told of its last questions."""
        self._doings: dict[Callable[[], None], int] = {
            self.stream: 5, self.whole: 5, self.other: 4, self.hang_up: 5, self.leave_at_once: 3, self.read_slowly: 1,
            self.ask: 8, self.ask_and_stop: 3, self.ask_and_come_back: 4, self.retry: 2, self.go_on: 2,
            self.draft: 6, self.err: 6, self.bring: 2, self.delete: 2, self.search: 4, self.look: 5,
            self.say_nothing: 2,
        }  # fmt: skip

    def act(self) -> None:
        (doing,) = self._rng.choices([*self._doings], [*self._doings.values()])
        try:
            doing()
        except Exception as error:  # a connection that broke, a reply that is no JSON or lacks what it should have
            self.record.complain(f"{doing.__name__}: {error!r}")

    # --- a program ----------------------------------------------------------------------------------------------

    def stream(self) -> None:
        with self._chat("stream", stream=True) as reply:
            if reply.status == 200:
                self.record.end("stream", *_ends(reply))

    def whole(self) -> None:
        """With a wish or two: several choices, a form, a tool."""
        with self._chat("whole", **self._rng.choice(WISHES)) as reply:
            answer = json.loads(reply.read())
            if reply.status == 200:
                self.record.end("whole", int(all(choice["finish_reason"] for choice in answer["choices"])), answer)

    def other(self) -> None:
        path, body = self._rng.choice(OTHERS)
        with self._request(path, "POST", path, body, {200, 429}) as reply:
            reply.read()

    def hang_up(self) -> None:
        with self._chat("hang_up", stream=True) as reply:
            for _ in range(self._rng.randrange(8)):
                reply.readline()

    def leave_at_once(self) -> None:
        """Inside a long prompt, before there is an answer."""
        body = json.dumps({"messages": [{"role": "user", "content": self._text() * self._rng.randrange(1, 12)}]})
        with self._wire("POST", "/v1/chat/completions", body.encode()):
            time.sleep(self._rng.random() / 20)
        self.record.note("leave_at_once", "left")

    def read_slowly(self) -> None:
        """A few bytes at a time, for as long as a person's patience lasts."""
        with self._chat("read_slowly", stream=True) as reply:
            for _ in range(30):
                if not reply.read(self._rng.randrange(1, 40)):
                    return
                time.sleep(0.05)

    def _chat(self, kind: str, **more: Any) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
        messages = [{"role": "user", "content": self._text()} for _ in range(self._rng.randrange(1, 3))]
        body = {"messages": messages, "max_tokens": self._rng.choice([1, 20, 200]), **more}
        return self._request(kind, "POST", "/v1/chat/completions", body, {200, 429})

    # --- the page -----------------------------------------------------------------------------------------------

    def ask(self) -> None:
        asked = self._ask("ask")
        if asked:
            self._listen("ask", asked["answer"])

    def ask_and_stop(self) -> None:
        asked = self._ask("ask_and_stop")
        if asked:
            time.sleep(self._rng.random() / 5)
            self._post("ask_and_stop", f"/answers/{asked['answer']}/stop", {}, {204})
            self._listen("ask_and_stop", asked["answer"])

    def ask_and_come_back(self) -> None:
        """Gone in the middle, once or twice, and back with the number of the last event."""
        asked, seen = self._ask("ask_and_come_back"), ""
        for _ in range(self._rng.randrange(1, 3) if asked else 0):
            with self._events(asked["answer"], seen) as reply:
                for _ in range(self._rng.randrange(1, 30)):
                    name, _, value = reply.readline().decode().strip().partition(": ")
                    seen = value if name == "id" else seen
        if asked:
            self._listen("ask_and_come_back", asked["answer"], seen)

    def retry(self) -> None:
        self._again("retry", 201)

    def go_on(self) -> None:
        self._again("continue", 200)

    def _again(self, how: str, status: int) -> None:
        if self._asked:
            answer = self._rng.choice(self._asked)["answer"]
            said = self._post(how, f"/answers/{answer}/{how}", {}, {status, 400, 404, 409})
            if said.get("answer"):
                self._listen(how, said["answer"])

    def draft(self) -> None:
        text = self._text()
        for n in sorted(self._rng.sample(range(len(text) + 1), 2)):
            self._post("draft", "/drafts", {"text": text[:n], "conversation": self._conversation()}, {204})

    def bring(self) -> None:
        entries = [{**FILE, "title": f"T{n}"} for n in range(self._rng.randrange(1, 20))]
        self._post("import", "/import", entries, {200})

    def delete(self) -> None:
        if self._asked:
            id = self._asked.pop(self._rng.randrange(len(self._asked)))["conversation"]["id"]
            self._post("delete", f"/conversations/{id}/delete", {}, {200, 404})
            if self._rng.random() < 0.3:
                self._post("restore", f"/conversations/{id}/restore", {}, {200, 404})

    def search(self) -> None:
        query = self._rng.choice(["name", "100", "%E5%A4%A9%E6%B0%94", "%00%ff", "imported%20ana", "%22*("])
        with self._request("search", "GET", f"/conversations?q={query}", None, {200}) as reply:
            reply.read()

    def look(self) -> None:
        paths = [
            "/",
            "/health",
            "/v1/models",
            "/export",
            "/preferences",
            "/metrics",
            "/slots",
            "/static/chat.css",
            "/?plain=1",
        ]
        paths += [self._rng.choice(self._asked)["conversation"]["url"]] if self._asked else []
        path = self._rng.choice(paths)
        with self._request("look", "GET", path, None, {200, 404} if path.startswith("/c/") else {200}) as reply:
            reply.read()

    # --- what nobody should do ----------------------------------------------------------------------------------

    def err(self) -> None:
        path, body, status = self._rng.choice(BAD)
        with self._request("err", "POST", path, body, {status}) as reply:
            raw = reply.read()
        if b'"message":"' not in raw:
            self.record.complain(f"{path}: {status} without a word: {raw[:100]!r}")

    def say_nothing(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S) as wire:
            wire.sendall(b"GET / HT"[: self._rng.randrange(9)])
            time.sleep(self._rng.random())
        self.record.note("say_nothing", "left")

    # --- how ------------------------------------------------------------------------------------------------------

    def _text(self) -> str:
        return self._rng.choice(WORDS)

    def _conversation(self) -> str | None:
        old = self._asked and self._rng.random() < 0.6
        return str(self._rng.choice(self._asked)["conversation"]["id"]) if old else None

    def _ask(self, kind: str) -> dict[str, Any]:
        body = {"text": self._text(), "key": secrets.token_hex(16), "conversation": self._conversation()}
        asked = self._post(kind, "/messages", body, {201, 400, 404, 409})
        if "answer" in asked:
            self._asked = [*self._asked[-20:], asked]
            return asked
        return {}

    def _listen(self, kind: str, answer: int, seen: str = "") -> None:
        with self._events(answer, seen) as reply:
            if reply.status == 200:
                stream = reply.read()
                self.record.end(kind, stream.count(b"event: end\n"), stream[-300:])
            self.record.note(f"{kind} events", reply.status)

    def _events(self, answer: int, seen: str) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
        headers = {"Last-Event-ID": seen} if seen else {}
        return self._request("events", "GET", f"/answers/{answer}/events", None, {200, 204, 404}, headers)

    def _post(self, kind: str, path: str, body: object, expected: set[int]) -> dict[str, Any]:
        with self._request(kind, "POST", path, body, expected) as reply:
            raw = reply.read()
        found: dict[str, Any] = json.loads(raw) if raw else {}
        return found

    @contextlib.contextmanager
    def _request(
        self, kind: str, method: str, path: str, body: object, expected: set[int], headers: Mapping[str, str] = {}
    ) -> Iterator[http.client.HTTPResponse]:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with self._wire(method, path, raw, headers) as connection:
            reply = connection.getresponse()
            self._cookie = (reply.getheader("Set-Cookie") or self._cookie).partition(";")[0]
            self.record.note(kind, reply.status)
            if reply.status not in expected:
                self.record.complain(f"{kind}: {method} {path[:60]} said {reply.status}: {reply.read()[:200]!r}")
            if reply.status == 429 and not (reply.getheader("Retry-After") or "").isdigit():
                self.record.complain(f"{kind}: a full queue without Retry-After")
            yield reply
        if reply.status == 429:
            time.sleep(self._rng.random())

    @contextlib.contextmanager
    def _wire(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] = {}
    ) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        try:
            mine = {"Cookie": self._cookie} if self._cookie else {}
            connection.request(method, path, body, {"Content-Type": "application/json", **mine, **headers})
            yield connection
        finally:
            connection.close()


def _ends(reply: http.client.HTTPResponse) -> tuple[int, object]:
    """How many terminal events a stream of the API has, and its last frames."""
    frames = [line[6:].strip() for line in reply if line.startswith(b"data: ")]
    said = [json.loads(frame) for frame in frames if frame != b"[DONE]"]
    n_ends = sum(bool(choice["finish_reason"]) for each in said for choice in each.get("choices", ()))
    n_errors = sum("error" in each for each in said)
    is_closed = frames[-1:] == [b"[DONE]"] or n_errors
    return (n_ends + n_errors if is_closed else 0), frames[-3:]
