"""/v1/completions on the real engine with a random model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.event_data import chunks

SHORT = {"prompt": "Once upon", "max_tokens": 6, "ignore_eos": True, "temperature": 0}


def post(api: TestClient, **fields: Any) -> Any:
    return api.post("/v1/completions", json={**SHORT, **fields})


def text_of(api: TestClient, **fields: Any) -> str:
    (choice,) = post(api, **fields).json()["choices"]
    return str(choice["text"])


def test_a_text_goes_on(api: TestClient) -> None:
    body = post(api).json()
    (choice,) = body["choices"]
    assert body["object"] == "text_completion" and choice["finish_reason"] == "length" and choice["text"]
    assert body["usage"]["completion_tokens"] == 6 and body["usage"]["prompt_tokens"] == len("Once upon")
    assert body["timings"]["predicted_n"] == 6


def test_a_stream_is_the_same_in_pieces(api: TestClient) -> None:
    *pieces, usage, done = chunks(post(api, stream=True, echo=True, stream_options={"include_usage": True}).text)
    assert done == "[DONE]" and usage["usage"]["completion_tokens"] == 6 and usage["choices"] == []
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == "Once upon" + text_of(api)
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"


def test_echo_begins_with_the_prompt(api: TestClient) -> None:
    assert text_of(api, echo=True) == "Once upon" + text_of(api)


def test_tokens_are_the_text_that_they_are(api: TestClient) -> None:
    tokens = api.post("/tokenize", json={"content": "Once upon"}).json()["tokens"]
    assert text_of(api, prompt=tokens) == text_of(api)
    assert text_of(api, prompt=tokens, echo=True).startswith("Once upon")


def test_several_prompts_and_several_choices(api: TestClient) -> None:
    both = post(api, prompt=["Once upon", "Never"], n=2, temperature=1.5, seed=3).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert both["usage"]["completion_tokens"] == 24 and both["usage"]["prompt_tokens"] == len("Once upon" + "Never")
    alone = text_of(api, prompt="Never", temperature=1.5, seed=4)
    assert both["choices"][3]["text"] == alone


def test_the_default_is_sixteen_tokens(api: TestClient) -> None:
    assert post(api, max_tokens=None).json()["usage"]["completion_tokens"] == 16


def test_log_probabilities_and_where_they_stand(api: TestClient) -> None:
    (choice,) = post(api, logprobs=2).json()["choices"]
    scores = choice["logprobs"]
    assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["text_offset"]) == 6
    assert all(1 <= len(best) <= 2 for best in scores["top_logprobs"]) and scores["text_offset"][0] == 0


def test_a_token_stands_where_its_text_does(api: TestClient) -> None:
    """Characters of several tokens, and a token of which a part is held back for a stop string."""
    fields = {"ignore_eos": False, "grammar": 'root ::= "aé麻b"', "logprobs": 0, "max_tokens": 30, "stop": ["b!"]}
    (choice,) = post(api, **fields).json()["choices"]
    scores = choice["logprobs"]
    assert choice["text"] == "aé麻b" and scores["tokens"][-1] == "b"
    assert scores["text_offset"] == [0, 1, 1, 2, 2, 2, 3]
    *pieces, _ = chunks(post(api, **fields, stream=True).text)
    streamed = [piece["choices"][0]["logprobs"] for piece in pieces if piece["choices"][0]["logprobs"]]
    assert [at for piece in streamed for at in piece["text_offset"]] == scores["text_offset"]


def test_a_special_token_in_a_text_is_text(api: TestClient) -> None:
    assert post(api, prompt="<|im_end|>").json()["usage"]["prompt_tokens"] == len("<|im_end|>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "x" * 1100}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(api: TestClient, fields: dict[str, Any], param: str) -> None:
    reply = post(api, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error


def test_an_unknown_field_is_reported(api: TestClient) -> None:
    reply = post(api, promt="a", suffix=None)
    assert reply.headers["x-ignored-params"] == "promt" and "did you mean prompt?" in json.dumps(reply.json())
