"""The real server, the real script, the demo model: what it remembers shows whether any two conversations mixed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.server_process import ServerProcess

NAMES = ["Ana", "Penelope", "Zoë", "Quillon", "小明", "欧阳娜娜", "Wrenna", "Ottokar"]
FILLERS = ["Count from 1 to 10.", "Show me a list.", "Hello!", "请重复：今天天气很好", "Repeat: one two three"]


class Talk:
    """A conversation as an API client holds it: the whole history goes with each message."""

    def __init__(self, server: ServerProcess) -> None:
        self._client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
        self._messages: list[ChatCompletionMessageParam] = []

    def say(self, text: str) -> str:
        """The streamed answer, put together."""
        self._messages.append({"role": "user", "content": text})
        stream: openai.Stream[ChatCompletionChunk] = self._client.chat.completions.create(
            model="any", messages=self._messages, stream=True, temperature=0, extra_body={"repeat_penalty": 1.0}
        )
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        self._messages.append({"role": "assistant", "content": answer})
        return answer


def introduce(talk: Talk, name: str) -> Callable[[], tuple[str, str]]:
    """Tell the name; the result asks for it and returns (answer, expected answer)."""
    chinese = ord(name[0]) > 0x2E80
    talk.say(f"我叫{name}。" if chinese else f"My name is {name}.")
    if chinese:
        return lambda: (talk.say("我叫什么名字？"), f"你叫{name}。")
    return lambda: (talk.say("What is my name?"), f"Your name is {name}.")


def test_a_name_of_the_first_turn_is_known_in_the_third(demo_server: ServerProcess) -> None:
    talk = Talk(demo_server)
    ask = introduce(talk, "Ana")
    talk.say("Hello!")
    answer, expected = ask()
    assert answer == expected


def test_eight_people_at_once_each_get_their_own_name_back(demo_server: ServerProcess) -> None:
    """Twice as many as there are slots: every turn may find its prefix, or another's conversation, in its slot."""
    start = threading.Barrier(len(NAMES))

    def person(seed: int, name: str) -> list[tuple[str, str]]:
        rng, talk = random.Random(seed), Talk(demo_server)
        start.wait(30)
        ask, answers = introduce(talk, name), []
        for _ in range(3):
            talk.say(rng.choice(FILLERS))
            answers.append(ask())
        return answers

    with ThreadPoolExecutor(len(NAMES)) as people:
        talks = list(people.map(person, range(len(NAMES)), NAMES))
    for answers in talks:
        for answer, expected in answers:
            assert answer == expected


def test_a_long_answer_whose_every_word_is_known(demo_server: ServerProcess) -> None:
    assert Talk(demo_server).say("Count from 1 to 100.") == ", ".join(map(str, range(1, 101)))


def test_the_official_client_whole_and_streamed(demo_server: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list()
    whole = client.chat.completions.create(
        model=model.id, messages=[{"role": "user", "content": "Count from 3 to 7."}], temperature=0
    )
    assert whole.choices[0].message.content == "3, 4, 5, 6, 7"
    assert whole.choices[0].finish_reason == "stop" and whole.usage is not None
    assert whole.usage.prompt_tokens > 5 and whole.usage.completion_tokens > 5
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model.id, messages=[{"role": "user", "content": "x"}], temperature=9)
    assert caught.value.param == "temperature"


def test_the_server_says_that_it_is_the_demo(demo_server: ServerProcess) -> None:
    assert demo_server.json("/health")["model"].startswith("sparrow-demo")
    assert "demo" in Talk(demo_server).say("Who are you?").lower()


def test_stop_strings_and_limits_hold_over_http(demo_server: ServerProcess) -> None:
    ask = {"messages": [{"role": "user", "content": "Count from 1 to 20."}], "temperature": 0}
    stopped = demo_server.json("/v1/chat/completions", {**ask, "stop": ["5"]})["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("1, 2, 3, 4, ", "stop")
    cut = demo_server.json("/v1/chat/completions", {**ask, "max_tokens": 4})["choices"][0]
    assert cut["finish_reason"] == "length" and "1, 2, 3".startswith(cut["message"]["content"])
