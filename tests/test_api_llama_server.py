"""llama-server's own routes, in its forms."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.engine.engine import Engine
from tests.tiny_model import EMOJI, LONG_TOKEN

SPECIAL = "<|im_end|>"


def post(api: TestClient, path: str, **body: Any) -> Any:
    return api.post(path, json=body).json()


@pytest.mark.parametrize("text", ["Hi", "", "你好 🙂", LONG_TOKEN + "x", "a\r\n\tb", SPECIAL])
def test_a_text_becomes_tokens_and_comes_back(api: TestClient, text: str) -> None:
    tokens = post(api, "/tokenize", content=text, parse_special=False)["tokens"]
    assert post(api, "/detokenize", tokens=tokens) == {"content": text}


def test_pieces_are_texts_or_bytes(api: TestClient) -> None:
    pieces = post(api, "/tokenize", content=f"a{EMOJI}é", with_pieces=True)["tokens"]
    assert [piece["piece"] for piece in pieces] == ["a", EMOJI, [0xC3], [0xA9]]
    assert all(isinstance(piece["id"], int) for piece in pieces)


def test_special_tokens_are_read_as_such_unless_told_otherwise(api: TestClient) -> None:
    assert len(post(api, "/tokenize", content=SPECIAL)["tokens"]) == 1
    assert len(post(api, "/tokenize", content=SPECIAL, parse_special=False)["tokens"]) == len(SPECIAL)


def test_a_rendered_prompt_is_the_chats_prompt_token_by_token(api: TestClient) -> None:
    messages = [{"role": "user", "content": f"Hi {SPECIAL}"}]
    prompt = post(api, "/apply-template", messages=messages)["prompt"]
    assert prompt.startswith("<|im_start|>user\nHi <") and prompt.endswith("<|im_start|>assistant\n")
    tokens = post(api, "/tokenize", content=prompt)["tokens"]
    asked = post(api, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert asked["usage"]["prompt_tokens"] == len(tokens)
    (end,) = post(api, "/tokenize", content=SPECIAL)["tokens"]
    assert tokens.count(end) == 1, "the template's own; the person's is text"


def test_a_template_with_tools(api: TestClient) -> None:
    tool = {"type": "function", "function": {"name": "weather"}}
    prompt = post(api, "/apply-template", messages=[{"role": "user", "content": "x"}], tools=[tool])["prompt"]
    assert '{"name": "weather"}' in prompt
    opening = post(api, "/apply-template", messages=[{"role": "user", "content": "x"}], add_generation_prompt=False)
    assert opening["prompt"].endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": "yes"}, "with_pieces"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [99999]}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(api: TestClient, path: str, body: dict[str, Any], param: str) -> None:
    reply = api.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_unknown_field_is_reported_in_a_header(api: TestClient) -> None:
    assert api.post("/tokenize", json={"content": "a", "contnet": 1}).headers["x-ignored-params"] == "contnet"


def test_props_say_what_is_loaded(api: TestClient) -> None:
    props = api.get("/props").json()
    assert props["model_alias"] == "tiny" and props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 1024
    assert "im_start" in props["chat_template"] and props["modalities"] == {"vision": False, "audio": False}


def test_slots_say_how_full_they_are_and_not_of_what(api: TestClient) -> None:
    secret = "a secret that nobody else may read"
    post(api, "/v1/chat/completions", messages=[{"role": "user", "content": secret}], max_tokens=1)
    deadline = time.monotonic() + 20
    reply = api.get("/slots")
    while any(slot["is_processing"] for slot in reply.json()):  # how the answer closes is read
        assert time.monotonic() < deadline
        reply = api.get("/slots")
    slots = reply.json()
    assert [slot["id"] for slot in slots] == [0, 1] and max(slot["n_past"] for slot in slots) > len(secret)
    assert "secret" not in reply.text


def test_what_takes_a_second_for_a_large_body_holds_nobody_up(
    api: TestClient, api_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = api_engine.vocab.piece

    def off_the_loop(token: int) -> bytes:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return piece(token)

    monkeypatch.setattr(api_engine.vocab, "piece", off_the_loop)
    assert api.post("/detokenize", json={"tokens": [70, 71]}).status_code == 200
    assert api.post("/tokenize", json={"content": "Hi", "with_pieces": True}).status_code == 200
