"""A response owns its answers: who goes away ends them, and an error inside a stream is its last word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from server.api.answering import Running, _frames, error_frame
from server.api.choice import Choice, Step
from server.engine.engine import Engine
from server.engine.request import Handle, Request
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.errors import EngineFailed, SparrowError
from tests.server_process import ServerProcess

NOTHING = Usage(1, 1, 0, 0.0, 0.0, 0.0)


class Plain:
    """A reply that shows what it is told."""

    def __init__(self, n: int) -> None:
        self.choices = [Choice() for _ in range(n)]

    def begin(self) -> bytes:
        return b"<"

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        return b"%d" % index + b"".join(step.part.text.encode() for step in steps if hasattr(step.part, "text"))

    def end(self) -> bytes:
        return b">"

    def fail(self, error: SparrowError) -> bytes:
        return error_frame(error)

    def whole(self) -> dict[str, Any]:
        return {}


def streamed(events: Sequence[tuple[int, Event]]) -> bytes:
    async def run() -> bytes:
        n = len({index for index, _ in events})
        running = Running[Event](n)
        for index, event in events:
            running.sink(index)(event)
        return b"".join([frame async for frame in _frames(running, Plain(n))])

    return asyncio.run(run())


def test_choices_come_as_they_are_written_and_end_together() -> None:
    a, b, end = TextDelta("a"), TextDelta("b"), Finished("stop", NOTHING)
    assert streamed([(0, a), (1, b), (1, end), (0, b), (0, end)]) == b"<0a1b10b0>"


def test_an_error_is_the_last_word_of_a_stream_and_has_openais_form() -> None:
    failed = Finished("error", NOTHING, EngineFailed("Try again."))
    begun, _, data = streamed([(0, TextDelta("a")), (0, failed), (1, TextDelta("b"))]).partition(b"data: ")
    assert begun == b"<0a"
    assert json.loads(data)["error"] == {
        "message": "Try again.",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }


ENDLESS: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, **ENDLESS}),
        ("/v1/chat/completions", {**CHAT, **ENDLESS, "n": 3}),
        ("/v1/chat/completions", {**CHAT, **ENDLESS, "n": 3, "stream": True}),
        ("/v1/completions", {"prompt": ["Hi", "Ho"], "max_tokens": 4000, **ENDLESS}),
        ("/v1/embeddings", {"input": ["word " * 700] * 100}),
    ],
)
def test_who_goes_away_frees_every_slot(demo_server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    address = urlsplit(demo_server.url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    with contextlib.closing(socket.create_connection((address.hostname or "", address.port or 0))) as connection:
        connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        wait_for(lambda: any(slot["is_processing"] for slot in demo_server.json("/slots")))
    wait_for(lambda: not any(slot["is_processing"] for slot in demo_server.json("/slots")))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "max_tokens": 1}),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 1}),
        ("/stream", {"message": "Hi"}),
        ("/messages", {"text": "Hi"}),
    ],
)
def test_an_idle_engine_knows_who_is_on_the_way(
    api: TestClient, api_engine: Engine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    """And that nobody is any more, when it was refused, too."""
    expected: list[int] = []
    accept = api_engine._accept

    def noting(requests: Sequence[Request]) -> list[Handle]:
        if not requests[0].sequence.is_draft:
            expected.append(api_engine._inbox._n_expected)
        return accept(requests)

    monkeypatch.setattr(api_engine, "_accept", noting)
    assert api.post(path, json=body).status_code in (200, 201)
    assert expected == [1] and api_engine._inbox._n_expected == 0
    too_long = {name: "word " * 5000 if isinstance(given, str) else given for name, given in body.items()}
    too_long |= {"messages": [{"role": "user", "content": "word " * 5000}]} if "messages" in body else {}
    assert api.post(path, json=too_long).status_code == 400
    assert expected == [1] and api_engine._inbox._n_expected == 0


HELLO = [{"role": "user", "content": "Hello, you there."}]


def chat(api: TestClient, messages: list[dict[str, str]], **more: Any) -> tuple[str, int]:
    """The answer's text, and how many of the prompt's tokens had to be read."""
    body = {"messages": messages, "max_tokens": 8, "ignore_eos": True, **more}
    reply = api.post("/v1/chat/completions", json=body)
    chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    replies = chunks or [reply.json()]
    said = [choice.get("delta") or choice.get("message") or {} for each in replies for choice in each["choices"][:1]]
    usage = replies[-1]["usage"]
    n_read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    return "".join(each.get("content") or "" for each in said), n_read


def respond(api: TestClient, messages: list[dict[str, str]], **more: Any) -> tuple[str, int]:
    """The same by the other route."""
    reply = api.post("/v1/responses", json={"input": messages, "max_output_tokens": 8, **more}).json()
    usage = reply["usage"]
    n_read = usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]
    return reply["output"][0]["content"][0]["text"], n_read


STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("ask", "more"), [(chat, {}), (chat, STREAMED), (chat, {"truncation": "auto"}), (respond, {"seed": 4})]
)
def test_of_the_next_turn_only_the_question_is_read(
    api: TestClient, api_engine: Engine, ask: Callable[..., tuple[str, int]], more: dict[str, Any]
) -> None:
    """A random model's tokens are not those in which its text is written, so most of the answer is read again."""

    def is_idle() -> bool:
        left = api.app_state["answers"]._keepers, api_engine._forecast.coming, api_engine._requests
        return not any(left)

    wait_for(is_idle)
    answer, _ = ask(api, HELLO, **more)
    wait_for(is_idle)
    messages = [*HELLO, {"role": "assistant", "content": answer}, {"role": "user", "content": "And you?"}]
    _, n_read = ask(api, messages, **more)
    left = api.app_state["chat"].tokenize("And you?<|im_end|>\n<|im_start|>assistant\n")
    assert answer and n_read == len(left)


@pytest.fixture
def read_ahead(api: TestClient, api_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many beginnings of a next turn the engine has been given, once nothing is on its way."""
    given: list[object] = []
    monkeypatch.setattr(api_engine, "read_ahead", lambda tokens, *_, **__: given.append(tokens))

    def count() -> int:
        wait_for(lambda: not api.app_state["answers"]._keepers)
        return len(given)

    count()
    given.clear()
    return count


@pytest.mark.parametrize(("more", "n"), [({}, 1), ({"n": 2}, 0), ({"max_tokens": 0}, 0)])
def test_nobody_knows_what_several_answers_or_none_lead_to(
    api: TestClient, api_engine: Engine, read_ahead: Callable[[], int], more: dict[str, Any], n: int
) -> None:
    wait_for(lambda: not api_engine._requests)
    chat(api, HELLO, **more)
    assert read_ahead() == n


def test_while_others_wait_nothing_is_read_ahead(
    api: TestClient, api_engine: Engine, read_ahead: Callable[[], int]
) -> None:
    running = api_engine.submit([5, 6, 7], SamplingParams(ignore_eos=True), lambda _: None)
    try:
        chat(api, HELLO)
        assert read_ahead() == 0
    finally:
        running.cancel()


@pytest.mark.usefixtures("api")
def test_what_was_to_be_read_ahead_gives_way(api_engine: Engine) -> None:
    running = api_engine.submit([5, 6, 7], SamplingParams(ignore_eos=True), lambda _: None)
    ends = list[Event]()
    try:
        api_engine.read_ahead([*range(40)], ends.append, is_closing=True)
        wait_for(lambda: ends)
    finally:
        running.cancel()
    assert isinstance(ends[0], Finished) and ends[0].reason == "cancelled"


def wait_for(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
