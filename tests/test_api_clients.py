"""The clients that people have, against the real server with the demo model: what they read is what was sent."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import llm
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.server_process import ServerProcess

HI: Any = [{"role": "user", "content": "Hello! My name is Tom."}]


class Weather(BaseModel):
    """How it is somewhere."""

    city: Literal["Bern", "Basel"]
    degrees: int
    sunny: bool


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bern", "Basel"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture(scope="module")
def base(demo_server: ServerProcess) -> str:
    return demo_server.url + "/v1"


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    (only,) = client.models.list().data
    assert client.models.retrieve(only.id) == only
    return only.id


def test_openai_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=HI, temperature=0, max_tokens=20)
    assert whole.choices[0].message.content and whole.usage and whole.usage.prompt_tokens_details
    stream = client.chat.completions.create(
        model=model, messages=HI, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(stream)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content and last.usage and not last.choices
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_openai_asynchronously(base: str, model: str) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=base, api_key="any") as client:
            asked: Any = {"model": model, "messages": HI, "temperature": 0, "max_tokens": 20}
            whole = await client.chat.completions.create(**asked)
            pieces = [piece async for piece in await client.chat.completions.create(**asked, stream=True)]
            return whole.choices[0].message.content, "".join(piece.choices[0].delta.content or "" for piece in pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_openai_choices_scores_and_biases(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(
        model=model, messages=HI, n=3, seed=5, temperature=1.5, max_tokens=8, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    for choice in reply.choices:
        assert choice.logprobs and choice.logprobs.content
        said = bytes(byte for score in choice.logprobs.content for byte in score.bytes or ())
        assert said.decode("utf-8", "replace") == choice.message.content
        assert all(len(score.top_logprobs) == 2 for score in choice.logprobs.content)
    first = client.chat.completions.create(model=model, messages=HI, max_tokens=1, temperature=0, logprobs=True)
    other = client.chat.completions.create(
        model=model, messages=HI, max_tokens=1, temperature=0, logit_bias={str(_first_token(client, first)): -100}
    )
    assert other.choices[0].message.content != first.choices[0].message.content


def _first_token(client: openai.OpenAI, reply: Any) -> int:
    text = reply.choices[0].message.content
    tokens: Any = client.post("../tokenize", body={"content": text}, cast_to=dict[str, Any])
    return int(tokens["tokens"][0])


def test_openai_tools_there_and_back(client: openai.OpenAI, model: str) -> None:
    ask: Any = {"model": model, "tools": [TOOL], "max_tokens": 100, "parallel_tool_calls": False}
    reply = client.chat.completions.create(messages=HI, tool_choice="required", **ask)
    message = reply.choices[0].message
    (call,) = message.tool_calls or []
    assert call.type == "function" and reply.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Basel")
    answered: Any = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    assert client.chat.completions.create(messages=answered, tool_choice="none", **ask).choices[0].message.content
    with client.chat.completions.stream(messages=HI, tool_choice="required", **ask) as stream:
        for _ in stream:
            pass
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert streamed.function.name == "weather" and json.loads(streamed.function.arguments)["city"]


def test_a_call_that_the_model_begins_by_itself_follows_the_schema(client: openai.OpenAI, model: str) -> None:
    """The demo repeats what it is told to say; from there on the grammar holds it to the tool's form."""
    ask: Any = {"model": model, "messages": [{"role": "user", "content": "Say <tool_call>"}], "temperature": 0}
    plain = client.chat.completions.create(**ask, max_tokens=60).choices[0].message
    assert plain.content and "<tool_call>" in plain.content, "without tools it is text"
    (choice,) = client.chat.completions.create(**ask, tools=[TOOL], parallel_tool_calls=False).choices
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "weather" and choice.finish_reason == "tool_calls"
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Basel")


def test_openai_parses_an_answer_into_a_class(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.parse(model=model, messages=HI, response_format=Weather, max_tokens=300)
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Weather) and parsed.city in ("Bern", "Basel")
    assert not (reply.model_extra or {}).get("warnings")


def test_openai_parses_a_calls_arguments(client: openai.OpenAI, model: str) -> None:
    function = openai.pydantic_function_tool(Weather)
    reply = client.chat.completions.parse(
        model=model, messages=HI, tools=[function], tool_choice="required", max_tokens=100, parallel_tool_calls=False
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


def test_openai_responses(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "input": "Hello! My name is Tom.", "temperature": 0, "store": False}
    whole = client.responses.create(**asked, instructions="Be brief.", max_output_tokens=20)
    assert whole.output_text and whole.usage and whole.usage.output_tokens
    with client.responses.stream(**asked, instructions="Be brief.", max_output_tokens=20) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == whole.output_text
        if whole.status == "completed":
            assert stream.get_final_response().output_text == text
    parsed = client.responses.parse(**asked, text_format=Weather, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, Weather)


def test_openai_responses_call_functions(client: openai.OpenAI, model: str) -> None:
    function: Any = {"type": "function", **TOOL["function"]}
    asked: Any = {"model": model, "tools": [function], "store": False, "parallel_tool_calls": False}
    first = client.responses.create(**asked, input="Bern?", tool_choice="required", max_output_tokens=100)
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments)["city"]
    items: Any = [{"role": "user", "content": "Bern?"}, call.model_dump()]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"})
    last = client.responses.create(**asked, input=items, tool_choice="none", max_output_tokens=20)
    assert last.output_text


def test_openai_embeddings(client: openai.OpenAI, model: str) -> None:
    texts = ["My name is Tom.", "My name is Tim.", "print(1)"]
    name, same, other = [entry.embedding for entry in client.embeddings.create(model=model, input=texts).data]
    floats = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
    assert floats == pytest.approx(name, abs=1e-3) and math.hypot(*floats) == pytest.approx(1, abs=1e-4)
    assert _dot(name, same) > _dot(name, other)
    short = client.embeddings.create(model=model, input=texts[0], dimensions=16).data[0].embedding
    assert len(short) == 16 and math.hypot(*short) == pytest.approx(1, abs=1e-4)


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_openai_completions(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt="Hello", max_tokens=8, temperature=0, echo=True)
    pieces = client.completions.create(model=model, prompt="Hello", max_tokens=8, temperature=0, echo=True, stream=True)
    assert whole.choices[0].text.startswith("Hello")
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_openai_gets_errors_that_name_the_field(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: 9.* out of range; give 0 to 2") as caught:
        client.chat.completions.create(model=model, messages=HI, temperature=9)
    assert caught.value.param == "temperature" and caught.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    reply = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=HI, max_tokens=1, extra_body={"temprature": 1}
    )
    assert reply.headers["x-ignored-params"] == "temprature, model"


def test_llm(base: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the file that its users write."""
    settings = f"- model_id: sparrow\n  model_name: {model}\n  api_base: {base}\n  supports_tools: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(settings + "  supports_schema: true\n")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    sparrow = llm.get_model("sparrow")
    sparrow.key = "any"
    reply = sparrow.prompt("Hello! My name is Tom.", system="Be brief.", stream=True, max_tokens=20, temperature=0)
    assert "".join(reply) == reply.text() != ""
    whole = sparrow.prompt("Hello! My name is Tom.", system="Be brief.", stream=False, max_tokens=20, temperature=0)
    assert whole.text() == reply.text() and whole.usage().output
    shaped = sparrow.prompt("Hello!", schema=Weather, stream=False, max_tokens=300)
    assert Weather.model_validate_json(shaped.text())


@tool
def weather(city: Literal["Bern", "Basel"]) -> str:
    """How it is somewhere."""
    return f"20 degrees in {city}"


def test_langchain(base: str, model: str) -> None:
    chat = ChatOpenAI(model=model, base_url=base, api_key="any", temperature=0, max_completion_tokens=300)  # type: ignore[arg-type]
    question = HumanMessage("Hello! My name is Tom.")
    whole = chat.invoke([question])
    assert whole.content == "".join(str(piece.content) for piece in chat.stream([question])) != ""
    assert isinstance(whole, AIMessage) and whole.usage_metadata and whole.usage_metadata["output_tokens"]
    called = chat.bind_tools([weather], tool_choice="required", parallel_tool_calls=False).invoke([question])
    (call,) = called.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Bern", "Basel")
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.bind_tools([weather], tool_choice="none").invoke([question, called, result]).content
    for method in ("json_schema", "function_calling"):
        shaped = chat.with_structured_output(Weather, method=method).invoke([question])
        assert isinstance(shaped, Weather)


def test_numbers_stay_numbers(client: openai.OpenAI, model: str) -> None:
    reply = client.chat.completions.create(model=model, messages=HI, max_tokens=4, temperature=0)
    timings: Any = (reply.model_extra or {})["timings"]
    assert timings["predicted_n"] == 4 and all(math.isfinite(value) for value in timings.values())
