"""The APIs for programs, on the real engine with a random model: shapes, errors that name their field, cancellation."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.parameters import MAX_TOKENS, SAMPLING
from server.api.report import Report
from server.api.table import Number, Table
from server.engine.engine import Engine
from server.engine.sampling import SamplingParams
from server.errors import InvalidField
from tests.event_data import chunks

HI = [{"role": "user", "content": "Hi"}]
JSON = {"content-type": "application/json"}
SHORT = {"messages": HI, "max_tokens": 6, "ignore_eos": True, "temperature": 0}
N_CTX = 1024
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture
def engine(api_engine: Engine) -> Engine:
    return api_engine


@pytest.fixture
def client(api: TestClient) -> TestClient:
    return api


def post(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", json={**SHORT, **fields})


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
    assert all(piece["usage"] is None for piece in [*pieces, last])
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["timings"]["predicted_n"] == 6 if "timings" in last else usage["timings"]["predicted_n"] == 6
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
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": 1}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": TOOLS * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "code"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= [a]"}, "grammar"),
        ({"response_format": {"type": "json_object"}}, "ignore_eos"),
        ({"messages": [*HI, {"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[1].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"truncation": "yes"}, "truncation"),
        ({"tools": [{}]}, "tools[0].type"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(client: TestClient, fields: dict[str, Any], param: str) -> None:
    reply = client.post("/v1/chat/completions", content=json.dumps({**SHORT, **fields}), headers=JSON)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize("field", [row.name for row in (*SAMPLING, MAX_TOKENS) if isinstance(row.kind, Number)])
def test_what_a_table_allows_the_engine_allows_too(field: str) -> None:
    """A value out of range is refused with the range, at both ends; the ends themselves are fine."""
    kind = next(row.kind for row in (*SAMPLING, MAX_TOKENS) if row.name == field)
    assert isinstance(kind, Number)
    for edge, beyond in ((max(kind.least, kind.above), -1), (kind.most, 1)):
        if edge not in (math.inf, -math.inf):
            if edge != kind.above:
                replace(SamplingParams(), **dict[str, Any]({field: kind.read(edge, field, Report())}))
            wrong = edge if edge == kind.above else kind.kind(edge) + beyond
            with pytest.raises(
                InvalidField,
                match=f"{field}: .* out of range; give .*{edge if kind.kind is int else format(edge, '.3g')}",
            ):
                kind.read(wrong, field, Report())


def test_a_misspelt_field_is_reported_with_the_right_name(client: TestClient) -> None:
    reply = post(client, temprature=1, unheard_of={"a": 1}, store=True, user="me", store_=None)
    assert reply.headers["x-ignored-params"].split(", ") == ["temprature", "unheard_of", "store_", "store"]
    first, second, *_ = reply.json()["warnings"]
    assert first == "temprature: this server does not know the field; did you mean temperature?"
    assert second.startswith("unheard_of: ")
    *_, last, done = chunks(post(client, temprature=1, stream=True).text)
    assert last["warnings"] == [first] and done == "[DONE]"
    *_, usage, done = chunks(post(client, temprature=1, stream=True, stream_options={"include_usage": True}).text)
    assert usage["warnings"] == [first] and usage["usage"]


def test_without_anything_to_report_there_is_no_report(client: TestClient) -> None:
    assert post(client, model=None).status_code == 200
    reply = post(client, model="tiny")
    assert "warnings" not in reply.json() and "x-ignored-params" not in reply.headers


def test_a_field_inside_of_a_field_is_reported_too(client: TestClient) -> None:
    messages = [{"role": "user", "content": "Hi", "nme": "me"}]
    assert post(client, messages=messages).headers["x-ignored-params"] == "messages[0].nme"


def test_names_that_no_header_can_hold(client: TestClient) -> None:
    odd = post(client, **{"温度": 1, "a\r\nb": 2, "c\x13, d": 3, "": 4})
    assert odd.headers["x-ignored-params"] == '%E6%B8%A9%E5%BA%A6, a%0D%0Ab, c%13%2C%20d, ""'
    reply = post(client, **{"温度": 1, "x" * 5000: 3, **{f"f{n}": n for n in range(500)}})
    assert reply.status_code == 200 and len(reply.headers["x-ignored-params"]) < 2000
    assert len(reply.json()["warnings"]) == 20


def test_a_megabyte_of_unknown_fields_is_not_looked_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    unknown = Table._unknown

    def noting(table: Table, name: str) -> str:
        looked_up.append(name)
        return unknown(table, name)

    monkeypatch.setattr(Table, "_unknown", noting)
    assert post(client, **{f"f{n}": n for n in range(3000)}).status_code == 200
    assert len(looked_up) == 20


def test_another_models_name_is_served_and_reported(client: TestClient) -> None:
    reply = post(client, model="gpt-4o").json()
    assert reply["model"] == "tiny" and reply["warnings"] == ["model: gpt-4o is not loaded; tiny answered."]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", SHORT),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 1}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 1}),
        ("/v1/embeddings", {"input": "Hi"}),
        ("/tokenize", {"content": "Hi"}),
    ],
)
def test_strict_refuses_what_others_report(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setitem(client.app_state, "settings", replace(client.app_state["settings"], strict=True))
    assert client.post(path, json=body).status_code == 200
    reply = client.post(path, json={**body, "modell": 1})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "modell") and "did you mean model?" in error["message"]


def test_several_choices_are_what_each_seed_gives_alone(client: TestClient) -> None:
    drawn = {"temperature": 1.5, "top_k": 0, "top_p": 1, "max_tokens": 8}
    reply = post(client, **drawn, n=3, seed=7).json()
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert texts == [post(client, **drawn, seed=seed).json()["choices"][0]["message"]["content"] for seed in (7, 8, 9)]
    assert reply["usage"]["completion_tokens"] == 24
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 24


def test_several_choices_in_one_stream(client: TestClient) -> None:
    drawn = {"temperature": 1.5, "top_k": 0, "top_p": 1, "max_tokens": 8, "n": 3, "seed": 7}
    whole = post(client, **drawn).json()["choices"]
    *pieces, done = chunks(post(client, **drawn, stream=True).text)
    assert done == "[DONE]"
    for index in range(3):
        mine = [choice for piece in pieces for choice in piece["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == whole[index]["message"]["content"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["length"]
    assert [bool(piece.get("timings")) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_log_probabilities(client: TestClient) -> None:
    whole = post(client, logprobs=True, top_logprobs=3).json()["choices"][0]
    content = whole["logprobs"]["content"]
    assert len(content) == 6 and all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in content)
    assert (
        bytes(byte for entry in content for byte in entry["bytes"]).decode("utf-8", "replace")
        == (whole["message"]["content"])
    )
    best = content[0]["top_logprobs"][0]
    assert best["logprob"] >= content[0]["logprob"]
    pieces = chunks(post(client, logprobs=True, top_logprobs=3, stream=True).text)[:-1]
    scores = [piece["choices"][0]["logprobs"] for piece in pieces if piece["choices"][0]["logprobs"]]
    assert [entry for score in scores for entry in score["content"]] == content


def test_a_bias_forbids_and_forces(client: TestClient) -> None:
    forced = post(client, logit_bias={str(ord("a") - 33 + 0): 100}).json()["choices"][0]["message"]["content"]
    assert len(set(forced)) == 1


def test_timings_are_llama_servers(client: TestClient) -> None:
    timings = post(client, messages=[{"role": "user", "content": "never seen before"}]).json()["timings"]
    assert timings["predicted_n"] == 6 and timings["prompt_n"] > 0 and timings["cache_n"] >= 0
    for kind in ("prompt", "predicted"):
        assert timings[f"{kind}_ms"] > 0 and timings[f"{kind}_per_second"] > 0
        assert timings[f"{kind}_per_token_ms"] == pytest.approx(timings[f"{kind}_ms"] / timings[f"{kind}_n"], abs=0.01)


def test_the_place_in_the_queue_is_a_header(client: TestClient) -> None:
    assert post(client).headers["x-queue-position"] == "0"
    assert post(client, stream=True).headers["x-queue-position"] == "0"


def test_a_model_by_its_name(client: TestClient) -> None:
    assert client.get("/v1/models/tiny").json() == client.get("/v1/models").json()["data"][0]
    reply = client.get("/v1/models/gpt/4")
    assert reply.status_code == 404 and "tiny" in reply.json()["error"]["message"]


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
    reply = client.post("/v1/chat/completions", content=body, headers=JSON)
    assert reply.status_code == status and said in reply.json()["error"]["message"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/json", "x" * 500])
def test_only_json_is_read_and_the_header_to_send_is_named(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = client.post("/v1/chat/completions", content=json.dumps(SHORT), headers=headers)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 415 and "Content-Type: application/json" in message and len(message) < 200


def test_json_may_name_its_charset(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/chat/completions", content=json.dumps(SHORT), headers=headers).status_code == 200


@pytest.mark.parametrize(("depth", "status"), [(90, 200), (120, 400)])
def test_lists_in_lists_in_lists(client: TestClient, depth: int, status: int) -> None:
    nested = "[" * depth + "]" * depth
    content = json.dumps(SHORT)[:-1] + f', "anything": {nested}}}'
    reply = client.post("/v1/chat/completions", content=content, headers=JSON)
    assert reply.status_code == status, reply.text


def test_a_prompt_that_is_too_long_is_a_400_with_both_numbers(client: TestClient) -> None:
    reply = post(client, messages=[{"role": "user", "content": "x" * 1100}])
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "context_length_exceeded")
    assert str(N_CTX) in error["message"] and "11" in error["message"]


def test_truncation_leaves_the_oldest_turns_out_and_says_so(client: TestClient) -> None:
    history = [{"role": role, "content": f"{turn} " + "x" * 60} for turn in range(12) for role in ("user", "assistant")]
    history.append({"role": "user", "content": "and now?"})
    assert post(client, messages=history).status_code == 400
    whole = post(client, messages=history, truncation="auto").json()
    assert whole["truncation"]["dropped_messages"] in range(2, 24, 2)
    assert whole["usage"]["prompt_tokens"] < N_CTX
    assert (
        chunks(post(client, messages=history, truncation="auto", stream=True).text)[0]["truncation"]
        == whole["truncation"]
    )
    assert "truncation" not in post(client, truncation="auto").json()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/v1/chat", 404), ("GET", "/v1/chat/completions", 405)],
)
def test_a_wrong_address_or_method(client: TestClient, method: str, path: str, status: int) -> None:
    reply = client.request(method, path)
    assert reply.status_code == status and reply.json()["error"]["message"]
    assert status == 404 or reply.headers["allow"] == "POST"
    assert ("/docs" in reply.json()["error"]["message"]) == (path == "/v1/chat")


def test_lone_surrogates_and_control_tokens_in_a_text(client: TestClient) -> None:
    text = r'{"messages": [{"role": "user", "content": "\ud800 <|im_end|> \u0000"}], "max_tokens": 2}'
    reply = client.post("/v1/chat/completions", content=text, headers=JSON)
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
