"""Tools and response_format on the real engine with a random model: whatever it says, the form is right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from server.api.report import Report
from server.api.tools import Asked, Function, form_of
from server.errors import InvalidField
from tests.event_data import chunks

HI = [{"role": "user", "content": "Hi"}]


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool("weather", city={"enum": ["Bern", "伯尔尼"]}, days={"type": "integer", "minimum": 1, "maximum": 9})
TIME = tool("time")


def post(api: TestClient, **fields: Any) -> Any:
    body = {"messages": HI, "max_tokens": 250, "temperature": 1.5, "seed": 1, **fields}
    return api.post("/v1/chat/completions", json=body)


def choice_of(api: TestClient, **fields: Any) -> Any:
    body = post(api, **fields).json()
    assert "choices" in body, body
    (choice,) = body["choices"]
    return choice


def deltas(api: TestClient, **fields: Any) -> list[Any]:
    *pieces, done = chunks(post(api, **fields, stream=True).text)
    assert done == "[DONE]"
    return [choice for piece in pieces for choice in piece["choices"]]


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_has_arguments_of_its_schema(api: TestClient, seed: int) -> None:
    choice = choice_of(api, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, seed=seed)
    (call,) = choice["message"]["tool_calls"]
    assert "\n" not in call["function"]["arguments"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["type"] == "function" and call["id"].startswith("call_") and call["function"]["name"] == "weather"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Bern", "伯尔尼") and arguments["days"] in range(1, 10)


def test_calls_come_to_an_end_however_gladly_the_model_calls(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.tools.MAX_CALLS", 3)
    (line_break,) = api.post("/tokenize", json={"content": "\n"}).json()["tokens"]  # between calls
    again = {str(line_break): 100}
    choice = choice_of(api, tools=[tool("now")], tool_choice="required", logit_bias=again, max_tokens=2000)
    assert len(choice["message"]["tool_calls"]) == 3 and choice["finish_reason"] == "tool_calls"


def test_a_stop_string_does_not_cut_a_call(api: TestClient) -> None:
    asked: dict[str, Any] = {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = choice_of(api, **asked, stop=["\n", "{"])["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {}


def test_a_named_tool_is_the_one_that_is_called(api: TestClient) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    for seed in range(3):
        (call,) = choice_of(api, tools=[WEATHER, TIME], tool_choice=named, seed=seed)["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("time", {})


def test_a_stream_of_calls_is_the_whole_in_pieces(api: TestClient) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER, TIME], "tool_choice": "required", "max_tokens": 200}
    whole = choice_of(api, **asked)
    pieces = deltas(api, **asked)
    calls: dict[int, dict[str, str]] = {}
    for piece in pieces:
        for call in piece["delta"].get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(calls) and call["type"] == "function"
                calls[call["index"]] = {"name": call["function"]["name"], "arguments": ""}
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert [call["function"] for call in whole["message"]["tool_calls"]] == list(calls.values())
    assert pieces[-1]["finish_reason"] == whole["finish_reason"] in ("tool_calls", "length")
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == ""


def test_what_is_not_called_is_text(api: TestClient) -> None:
    for choice in ("auto", "none"):
        said = choice_of(api, tools=[WEATHER], tool_choice=choice, max_tokens=20)
        assert said["message"]["content"] and "tool_calls" not in said["message"]


def test_the_grammar_of_auto_waits_for_a_call() -> None:
    form = form_of(Asked([Function("f", "tools[0]")]), Report())
    assert form.trigger == "<tool_call>" and form.grammar.startswith("root ::= call")
    assert form_of(Asked([Function("f", "tools[0]")], "required"), Report()).trigger == ""
    assert form_of(Asked([Function("f", "tools[0]")], "none"), Report()).tools == ()


@pytest.mark.parametrize("name", ["none", "auto", "required"])
def test_a_tool_may_be_called_like_a_choice(api: TestClient, name: str) -> None:
    named = {"type": "function", "function": {"name": name}}
    (call,) = choice_of(api, tools=[TIME, tool(name)], tool_choice=named)["message"]["tool_calls"]
    assert call["function"]["name"] == name


def test_calls_and_results_go_back_in(api: TestClient) -> None:
    (call,) = choice_of(api, tools=[TIME], tool_choice="required", parallel_tool_calls=False)["message"]["tool_calls"]
    history = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "12:00 <|im_end|>"},
    ]
    assert choice_of(api, messages=history, tools=[TIME], max_tokens=5)["message"]


@pytest.mark.parametrize("seed", range(3))
def test_a_json_object(api: TestClient, seed: int) -> None:
    choice = choice_of(api, response_format={"type": "json_object"}, seed=seed, max_tokens=800)
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert choice["message"]["content"].startswith("{")


def test_an_answer_of_a_schema(api: TestClient) -> None:
    schema = WEATHER["function"]["parameters"]
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema, "strict": True}}
    choice = choice_of(api, response_format=form)
    assert set(json.loads(choice["message"]["content"])) == {"city", "days"} and choice["finish_reason"] == "stop"


def test_an_answer_of_a_schema_or_a_call(api: TestClient) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"enum": ["yes", "no"]}, "strict": True}}
    for seed in range(4):
        choice = choice_of(api, response_format=form, tools=[TIME], parallel_tool_calls=False, seed=seed)
        said, calls = choice["message"]["content"], choice["message"].get("tool_calls")
        assert said in ('"yes"', '"no"') if not calls else calls[0]["function"]["name"] == "time"


def test_a_grammar_of_ones_own(api: TestClient) -> None:
    assert choice_of(api, grammar='root ::= "yes" | "no"')["message"]["content"] in ("yes", "no")
    reply = post(api, grammar="root ::= nothing")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "grammar")


UNHELD = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


def test_a_schema_that_can_not_be_held_is_refused_where_strict(api: TestClient) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": UNHELD, "strict": True}}
    error = post(api, response_format=form).json()["error"]
    assert error["param"].startswith("response_format.json_schema.schema.properties.a"), error
    function = {"name": "f", "parameters": UNHELD, "strict": True}
    error = post(api, tools=[{"type": "function", "function": function}]).json()["error"]
    assert error["param"].startswith("tools[0].function.parameters.properties.a"), error
    assert error["message"].startswith(error["param"] + ": ") and ": : " not in error["message"]


def test_a_schema_that_can_not_be_held_is_reported_where_not(api: TestClient) -> None:
    body = post(api, tools=[{"type": "function", "function": {"name": "f", "parameters": UNHELD}}], max_tokens=3).json()
    (warning,) = body["warnings"]
    assert warning.startswith("tools[0].function.parameters.properties.a") and "strict" in warning


def test_a_choice_without_a_name_says_how_one_is_given(api: TestClient) -> None:
    error = post(api, tools=[TIME], tool_choice={"type": "function", "name": "time"}).json()["error"]
    assert error["message"] == 'tool_choice.function: it is missing. Give {"name": "…"} with the tool\'s name.'


def test_many_tools_are_one_grammar(api: TestClient) -> None:
    tools = [tool(f"f{n}", **{f"p{m}": {"type": "string"} for m in range(4)}) for n in range(2)]
    assert choice_of(api, tools=tools, tool_choice="required", max_tokens=80)["message"]["tool_calls"]


def test_a_name_that_is_there_twice() -> None:
    with pytest.raises(InvalidField, match=r"tools\[1\].name: f is there twice"):
        form_of(Asked([Function("f", "tools[0]"), Function("f", "tools[1]")]), Report())
