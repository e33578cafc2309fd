"""A client of OpenAI's chat API that costs next to nothing: it shares the cores with the server that it measures.

While an answer streams it only notes when each line came; the JSON in the lines is read after the end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from server.errors import UsageError

# Qwen2.5's official sampling, said outright: what a server does by default is not what its neighbour does.
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.1, "seed": 1}
TIMEOUT_S = 600.0
_digits = random.SystemRandom()

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. Times are seconds since the request was sent, one for each piece of text; n_* are tokens."""

    times: list[float]
    n_prompt: int
    n_tokens: int
    n_reused: int
    client_s: float
    """CPU time that this client took while the answer streamed."""
    text: str = ""

    @property
    def first_token_s(self) -> float:
        return self.times[0]

    @property
    def tokens_per_s(self) -> float:
        """From the first token to the last. A token that is half a character makes no piece of its own."""
        if len(self.times) < 2:
            raise UsageError(f"An answer of {self.n_tokens} tokens came in one piece: its speed can't be seen.")
        return (self.n_tokens - 1) / (self.times[-1] - self.times[0])


def digits(n: int) -> str:
    """New each time. Each digit is one token for Qwen and its relatives."""
    return "".join(_digits.choices("0123456789", k=n))


def unique_chat(n_digits: int) -> Messages:
    """A conversation that no server has seen: new digits at its very beginning, so that no prefix can be reused.

    The prompt grows by exactly n_digits tokens.
    """
    return [{"role": "system", "content": digits(n_digits)}, {"role": "user", "content": "Go on."}]


@dataclass(frozen=True, slots=True)
class Client:
    """One server: its address, and the name that it has for its model. All its errors are UsageErrors of one line."""

    url: str
    model: str = "any"

    def chat(self, messages: Messages, n_tokens: int) -> Answer:
        """An answer of exactly n_tokens. Raises UsageError, with the server's own words where it gave any."""
        with Stream(self, messages, n_tokens) as stream:
            return stream.answer()

    def prefill(self, messages: Messages) -> None:
        """Have a prompt read and nothing answered: max_tokens 0. Returns when that is done."""
        connection = self.send(messages, 0, stream=False)
        try:
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._gone(error) from None
        finally:
            connection.close()
        if reply.status != 200:
            raise UsageError(f"{self.url} answered {reply.status} to max_tokens 0: {_reason(body)}")

    def send(self, messages: Messages, n_tokens: int, *, stream: bool = True) -> http.client.HTTPConnection:
        """Send a request and return; whoever gets the connection closes it."""
        body = {"model": self.model, "messages": messages, "max_tokens": n_tokens, "ignore_eos": True, **SAMPLING}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request("POST", f"{address.path}/v1/chat/completions", json.dumps(body), headers)
        except OSError as error:
            connection.close()
            raise self._gone(error) from None
        return connection

    def _gone(self, error: Exception) -> UsageError:
        return UsageError(f"{self.url} stopped answering: {error or type(error).__name__}.")


class Stream:
    """An answer on its way, read by a thread of its own. Leaving the block before its end closes the connection."""

    def __init__(self, client: Client, messages: Messages, n_tokens: int) -> None:
        self._client = client
        self._lines: list[tuple[float, bytes]] = []
        self._error: UsageError | None = None
        self._client_s = 0.0
        self.sent = time.perf_counter()
        self._connection = client.send(messages, n_tokens)
        self._socket = self._connection.sock
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        cpu_began = time.thread_time()
        try:
            reply = self._connection.getresponse()
            if reply.status != 200:
                self._error = UsageError(f"{self._client.url} answered {reply.status}: {_reason(reply.read())}")
            for line in reply:
                if line.startswith(b"data: {"):
                    self._lines.append((time.perf_counter(), line))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._error = self._client._gone(error)
        self._client_s = time.thread_time() - cpu_began

    def wait_for(self, n_lines: int) -> None:
        """Returns when so many lines have come, or no more will."""
        while len(self._lines) < n_lines and self._thread.is_alive():
            time.sleep(0.005)

    def answer(self) -> Answer:
        """The whole answer, when it has ended. Raises UsageError when it did not come."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        pieces, usage = self._pieces()
        if not usage or not pieces:
            raise UsageError(f"{self._client.url} streams no text, or no usage at the end: it can't be measured.")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        times, text = [at - self.sent for at, _ in pieces], "".join(piece for _, piece in pieces)
        return Answer(times, usage["prompt_tokens"], usage["completion_tokens"], cached, self._client_s, text)

    def times(self) -> list[float]:
        """When each piece of text came so far, on perf_counter's clock."""
        return [at for at, _ in self._pieces()[0]]

    def _pieces(self) -> tuple[list[tuple[float, str]], dict[str, Any]]:
        """The pieces of text with their times, and the usage if it has come. Raises UsageError for a reported error."""
        pieces: list[tuple[float, str]] = []
        usage: dict[str, Any] = {}
        for at, line in list(self._lines):
            frame = json.loads(line.removeprefix(b"data: "))
            if "error" in frame:
                raise UsageError(f"{self._client.url} broke an answer off: {frame['error']['message']}")
            usage = frame.get("usage") or usage
            texts = (choice["delta"].get("content") for choice in frame.get("choices", ()))
            pieces += [(at, text) for text in texts if text]
        return pieces, usage

    def close(self) -> None:
        """Hang up, and return when the reading thread has seen it."""
        with contextlib.suppress(OSError):  # it had ended by itself
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def together(client: Client, chats: Sequence[Messages], n_tokens: int) -> list[tuple[float, Answer]]:
    """All at once: when each was sent, on perf_counter's clock, and its answer."""
    streams = [Stream(client, messages, n_tokens) for messages in chats]
    try:
        return [(stream.sent, stream.answer()) for stream in streams]
    finally:
        for stream in streams:
            stream.close()


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        lines = body[:200].decode("utf-8", "replace").split()
        return " ".join(lines) or "without a word"


def get(url: str, path: str) -> tuple[int, bytes]:
    """GET: (status, body). Raises OSError or http.client.HTTPException."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", address.path + path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def is_healthy(url: str) -> bool:
    """GET /health answered 200."""
    try:
        return get(url, "/health")[0] == 200
    except (OSError, http.client.HTTPException):
        return False
