"""/v1/responses on the real engine with a random model: items, named events, nothing kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.report import Report
from server.api.response_request import parse_response
from server.api.responses import _Reply
from server.chat import ChatMessage, ToolCall
from server.engine.sampling import SamplingParams
from server.engine.sequence import TextDelta, TokenLogprob
from server.errors import EngineFailed
from tests.event_data import chunks

SHORT = {"input": "Hi", "max_output_tokens": 6, "temperature": 0, "store": False}
TOOL = {
    "type": "function",
    "name": "f",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def post(api: TestClient, **fields: Any) -> Any:
    return api.post("/v1/responses", json={**SHORT, **fields})


def parsed(**fields: Any) -> list[ChatMessage]:
    return parse_response({**SHORT, **fields}, SamplingParams(), Report()).messages


def test_a_whole_response(api: TestClient) -> None:
    body = post(api, instructions="Be brief.").json()
    assert body["object"] == "response" and body["instructions"] == "Be brief." and body["error"] is None
    (item,) = body["output"]
    assert item["type"] == "message" and item["role"] == "assistant" and item["content"][0]["text"]
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["usage"]["output_tokens"] == 6
    assert "warnings" not in body


def test_a_stream_tells_what_the_whole_response_is(api: TestClient) -> None:
    whole = post(api).json()
    events = chunks(post(api, stream=True).text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    n_deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * n_deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == whole["output"][0]["content"][0]["text"] == events[-4]["text"]
    last = events[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"] and last["usage"] == {
        **whole["usage"],
        "input_tokens_details": last["usage"]["input_tokens_details"],
    }
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}


def test_items_become_the_conversation() -> None:
    messages = parsed(
        instructions="Be brief.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "Bern?"}]},
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "20"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "21"}]},
        ],
    )
    assert messages == [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Bern?"),
        ChatMessage("assistant", "Let me see.", (ToolCall("a", "f", "{}"), ToolCall("b", "f", "{}"))),
        ChatMessage("tool", "20", tool_call_id="a"),
        ChatMessage("tool", "21", tool_call_id="b"),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": "x" * 1100}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
    ],
)
def test_a_bad_field_is_a_400_that_names_it(api: TestClient, fields: dict[str, Any], param: str) -> None:
    reply = post(api, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error


def test_what_is_not_honoured_is_reported(api: TestClient) -> None:
    reply = post(api, store=True, reasoning={"effort": "high"}, temprature=0)
    assert reply.headers["x-ignored-params"] == "temprature, store, reasoning"
    assert len(reply.json()["warnings"]) == 3
    last = chunks(post(api, store=True, stream=True).text)[-1]
    assert last["response"]["warnings"] == ["store: nothing is kept here."]


def test_numbers_that_are_none_are_not_repeated(api: TestClient) -> None:
    content = json.dumps({**SHORT, "metadata": {"a": [float("nan"), 1e999, 1.5]}})
    reply = api.post("/v1/responses", content=content, headers={"content-type": "application/json"})
    assert reply.json()["metadata"] == {"a": [None, None, 1.5]}


def test_log_probabilities(api: TestClient) -> None:
    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (item,) = post(api, **fields).json()["output"]
    scores = item["content"][0]["logprobs"]
    assert len(scores) == 6 and all(len(score["top_logprobs"]) == 2 for score in scores)
    deltas = [event for event in chunks(post(api, **fields, stream=True).text) if event["type"].endswith("text.delta")]
    assert [score for event in deltas for score in event["logprobs"]] == scores


def test_the_scores_of_text_that_is_held_back_come_with_it() -> None:
    """A line break may stand before a call: its text waits until it is known what follows."""
    fields = {**SHORT, "tools": [TOOL], "include": ["message.output_text.logprobs"]}
    reply = _Reply("tiny", parse_response(fields, SamplingParams(), Report()), Report())
    text = b""
    for word in ("One", "\n\n", "two"):
        said = TextDelta(word, (1,), (TokenLogprob(1, word.encode(), -0.5),))
        text += reply.encode(0, reply.choices[0].push(said), said)
    assert [(event["delta"], len(event["logprobs"])) for event in chunks(text.decode()) if "delta" in event] == [
        ("One", 1),
        ("\n\ntwo", 2),
    ]


def test_a_call_is_an_item(api: TestClient) -> None:
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 150}
    body = post(api, **asked).json()
    (item,) = body["output"]
    assert (item["type"], item["name"], body["status"]) == ("function_call", "f", "completed")
    assert json.loads(item["arguments"]) == {"city": "Bern"}
    events = chunks(post(api, **asked, stream=True).text)
    kinds = [event["type"].removeprefix("response.") for event in events if not event["type"].endswith(".delta")]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("arguments.delta")]
    assert "".join(deltas) == item["arguments"] == events[-2]["item"]["arguments"]


def test_truncation_says_how_much_the_model_does_not_see(api: TestClient) -> None:
    said = [{"role": role, "content": "x" * 60} for _ in range(12) for role in ("user", "assistant")]
    asked = {"input": [*said, {"role": "user", "content": "and now?"}], "truncation": "auto"}
    whole = post(api, **asked).json()
    assert whole["dropped_messages"] in range(2, 24, 2) and whole["truncation"] == "auto"
    assert chunks(post(api, **asked, stream=True).text)[0]["response"]["dropped_messages"] == whole["dropped_messages"]
    assert "dropped_messages" not in post(api, truncation="auto").json()


def test_an_error_inside_a_stream_is_told_and_ends_the_response() -> None:
    reply = _Reply("tiny", parse_response(SHORT, SamplingParams(), Report()), Report())
    begun, said = reply.begin(), TextDelta("Well")
    text = begun + reply.encode(0, reply.choices[0].push(said), said) + reply.fail(EngineFailed("Try again."))
    *_, error, failed = chunks(text.decode())
    assert (error["type"], error["code"], error["message"]) == ("error", "engine_failed", "Try again.")
    assert failed["type"] == "response.failed" and failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["message"] == "Try again."
    assert failed["response"]["output"][0]["content"][0]["text"] == "Well", "what was said is not lost"
