"""A client of OpenAI's chat API that costs next to nothing: it shares the cores with the server that it measures.

While an answer streams it only notes when each line came; the JSON in the lines is read after the end.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from server.errors import UsageError

# Qwen2.5's official sampling, said outright: what a server does by default is not what its neighbour does.
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repeat_penalty": 1.1, "seed": 1}
TIMEOUT_S = 600.0
_digits = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. Times are seconds since the request was sent, one for each piece of text; n_* are tokens."""

    times: list[float]
    n_prompt: int
    n_tokens: int
    n_reused: int
    client_s: float
    """CPU time that this client took while the answer streamed."""

    @property
    def first_token_s(self) -> float:
        return self.times[0]

    @property
    def tokens_per_s(self) -> float:
        """From the first token to the last. A token that is half a character makes no piece of its own."""
        if len(self.times) < 2:
            raise UsageError(f"An answer of {self.n_tokens} tokens came in one piece: its speed can't be seen.")
        return (self.n_tokens - 1) / (self.times[-1] - self.times[0])


def unique_chat(n_digits: int) -> list[dict[str, str]]:
    """A conversation that no server has seen: new digits at its very beginning, so that no prefix can be reused.

    Each digit is one token for Qwen and its relatives: the prompt grows by exactly n_digits tokens.
    """
    digits = "".join(_digits.choices("0123456789", k=n_digits))
    return [{"role": "system", "content": digits}, {"role": "user", "content": "Go on."}]


def chat(url: str, messages: list[dict[str, str]], n_tokens: int) -> Answer:
    """Stream an answer of exactly n_tokens. Raises UsageError, with the server's own words where it gave any."""
    body = {
        **{"model": "any", "messages": messages, "max_tokens": n_tokens, "ignore_eos": True, "stream": True},
        **{"stream_options": {"include_usage": True}, **SAMPLING},
    }
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    sent, cpu_began = time.perf_counter(), time.process_time()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise UsageError(f"{url} answered {reply.status}: {_reason(reply.read())}")
        lines = [(time.perf_counter() - sent, line) for line in reply if line.startswith(b"data: {")]
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"{url} stopped answering: {error or type(error).__name__}.") from None
    finally:
        connection.close()
    return _answer(lines, time.process_time() - cpu_began, url)


def _answer(lines: Iterable[tuple[float, bytes]], client_s: float, url: str) -> Answer:
    times: list[float] = []
    usage: dict[str, Any] = {}
    for at, line in lines:
        frame = json.loads(line.removeprefix(b"data: "))
        if "error" in frame:
            raise UsageError(f"{url} broke an answer off: {frame['error']['message']}")
        usage = frame.get("usage") or usage
        if any(choice["delta"].get("content") for choice in frame["choices"]):
            times.append(at)
    if not usage or not times:
        raise UsageError(f"{url} streams no text, or no usage at the end: it can't be measured.")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(times, usage["prompt_tokens"], usage["completion_tokens"], cached, client_s)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def is_healthy(url: str) -> bool:
    """GET /health answered 200."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
