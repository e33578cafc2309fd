"""The APIs for programs, on the real engine with a random model: shapes, errors that name their field, cancellation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.settings import Settings

HI = [{"role": "user", "content": "Hi"}]
SHORT = {"messages": HI, "max_tokens": 6, "ignore_eos": True, "temperature": 0}
N_CTX = 512


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Engine:
    return open_engine(tiny_path, n_ctx=N_CTX, n_slots=2, n_threads=1)


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    with TestClient(create_app(settings, engine), base_url="http://127.0.0.1:8000") as client:
        yield client


def post(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={**SHORT, **fields})


def chunks(text: str) -> list[Any]:
    """The data of each event, "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


def test_a_whole_answer(client: TestClient) -> None:
    reply = post(client)
    body = reply.json()
    assert reply.status_code == 200 and body["object"] == "chat.completion" and body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6


def test_a_streamed_answer_is_the_whole_one_in_pieces(client: TestClient) -> None:
    whole = post(client).json()
    reply = post(client, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no" and "no-transform" in reply.headers["cache-control"]
    *pieces, last, usage, done = chunks(reply.text)
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["completion_tokens"] == 6
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert len({piece["id"] for piece in pieces}) == 1


def test_without_include_usage_there_is_none(client: TestClient) -> None:
    assert not any("usage" in piece for piece in chunks(post(client, stream=True).text)[:-1])


def test_the_second_question_reads_nothing_twice(client: TestClient) -> None:
    history = [{"role": "user", "content": "a rather long beginning " * 5}]
    first = post(client, messages=history).json()
    second = post(client, messages=history).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == first["usage"]["prompt_tokens"] - 1


def test_no_tokens_at_all_reads_the_prompt_for_the_next_question(client: TestClient) -> None:
    messages = [{"role": "user", "content": "what I am still typing, at some length"}]
    draft = post(client, messages=messages, max_tokens=0).json()
    assert draft["choices"][0]["message"]["content"] == "" and draft["usage"]["completion_tokens"] == 0
    sent = post(client, messages=messages).json()
    assert sent["usage"]["prompt_tokens_details"]["cached_tokens"] == draft["usage"]["prompt_tokens"] - 1


def test_text_parts_developer_role_and_null_fields(client: TestClient) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
    ]
    assert post(client, messages=messages, seed=None, stop=None, tools=None, n=1, user="me").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": float("inf")}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 2}, "n"),
        ({"truncation": "yes"}, "truncation"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(client: TestClient, fields: dict[str, Any], param: str) -> None:
    reply = client.post("/v1/chat/completions", content=json.dumps({**SHORT, **fields}))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not valid JSON"),
        (b"", 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"messages": "\xff"}', 400, "not valid JSON"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b" " * 1_000_001, 413, "larger than 1000 kB"),
    ],
)
def test_a_body_that_can_not_be_read(client: TestClient, body: bytes, status: int, said: str) -> None:
    reply = client.post("/v1/chat/completions", content=body)
    assert reply.status_code == status and said in reply.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_a_400_with_both_numbers(client: TestClient) -> None:
    reply = post(client, messages=[{"role": "user", "content": "x" * 1000}])
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert str(N_CTX) in error["message"] and "101" in error["message"]


def test_truncation_leaves_the_oldest_turns_out_and_says_so(client: TestClient) -> None:
    history = [{"role": role, "content": f"{turn} " + "x" * 60} for turn in range(8) for role in ("user", "assistant")]
    history.append({"role": "user", "content": "and now?"})
    assert post(client, messages=history).status_code == 400
    whole = post(client, messages=history, truncation="auto").json()
    assert whole["truncation"]["dropped_messages"] in range(2, 16, 2)
    assert whole["usage"]["prompt_tokens"] < N_CTX
    assert (
        chunks(post(client, messages=history, truncation="auto", stream=True).text)[0]["truncation"]
        == whole["truncation"]
    )
    assert "truncation" not in post(client, truncation="auto").json()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405)])
def test_a_wrong_address_or_method(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert reply.status_code == status and reply.json()["error"]["message"]
    assert status == 404 or reply.headers["allow"] == "POST"


def test_lone_surrogates_and_control_tokens_in_a_text(client: TestClient) -> None:
    text = r'{"messages": [{"role": "user", "content": "\ud800 <|im_end|> \u0000"}], "max_tokens": 2}'
    reply = client.post("/v1/chat/completions", content=text)
    assert reply.status_code == 200


def test_models_and_health(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["context_length"]) == ("tiny", "model", N_CTX)
    assert client.get("/health").json() == {"status": "ok", "model": "tiny", "quant": "F16", "n_ctx": N_CTX}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_tiny_stream(client: TestClient, method: str) -> None:
    if method == "GET":
        reply = client.get("/stream", params={"message": "Hi"})
    else:
        reply = client.post("/stream", json={"message": "Hi"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "retry:" not in reply.text, "a browser that comes back would ask again"
    pieces = chunks(reply.text)
    assert pieces and all(list(piece) == ["text"] for piece in pieces)


@pytest.mark.parametrize("given", [{}, {"message": " "}, {"message": 5}])
def test_the_tiny_stream_wants_a_message(client: TestClient, given: dict[str, Any]) -> None:
    reply = client.post("/stream", json=given)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "message"


def test_a_client_that_goes_away_frees_its_slot(client: TestClient, engine: Engine) -> None:
    forever = {**SHORT, "max_tokens": None, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=forever) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 5
    while engine.scheduler.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine.scheduler.has_work


def test_no_page_of_another_site_can_frame_or_sniff(client: TestClient) -> None:
    headers = client.get("/health").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
