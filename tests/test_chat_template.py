"""A chat template is a stranger's program: whatever it does, one conversation gets an error and the server lives."""

from __future__ import annotations

import gc
import json
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import chat_template
from server.chat import CHATML
from server.chat_template import ChatTemplate
from server.errors import InvalidRequest, ModelFileError
from server.template_sandbox import MAX_TEMPLATE, is_tame
from tests.server_process import ServerProcess
from tests.tiny_model import CHAT_TEMPLATE, write_tiny_model

MESSAGES = [{"role": "user", "content": "<b> 你好 \ud800"}, {"role": "assistant", "content": "x"}]

QWEN_LIKE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '{"name": "' ~ call.name ~ '", "arguments": ' }}{{- call.arguments | tojson }}
        {%- endfor %}
    {%- elif loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" or loop.last %}
        {{- message.content if message.content else 'nothing' }}
    {%- endif %}
{%- endfor %}
"""

HARMLESS = [
    CHATML,
    QWEN_LIKE,
    "{{ messages }}",
    "{% for m in messages %}{{ loop.index0 }}{% else %}none{% endfor %}",
]

HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "width": "{{ '%9999999999d' % 1 }}{{ 'x'.center(10 ** 12) }}",
    "lists": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "many": "{% for a in range(99999) %}{{ messages }}{% endfor %}",
}

TAME_IF_NAIVE = [
    "{% for m in messages %}{% for n in messages %}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% set m = messages %}{% for n in m %}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% if messages ~ '' == 'x' %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if messages == messages %}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if 'x' in messages[0].content %}{% endif %}{% endfor %}",
    "{% set a = 'x' %}" + "{% set a = a + a %}" * 60,
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for m in messages if m == m %}{% endfor %}",
    "{% for m in messages %}{{ messages[1:][0].role }}{% endfor %}",
    "{{ '{:99999999}'.format(1) }}",
    "{{ " + " + ".join(["messages"] * 30) + " }}",
    "{% for m in messages %}{% endfor %}" * 30,
    "x" * 9000,
    "{% if " + "not " * 3000 + "x %}{% endif %}",
    "{% for %}",
]


@pytest.mark.parametrize("template", HARMLESS)
def test_a_tame_template_says_the_same_in_the_server_and_in_a_child(
    monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    assert is_tame(template)
    here = ChatTemplate(template)
    monkeypatch.setattr(chat_template, "is_tame", lambda _: False)
    child = ChatTemplate(template)
    tools = [{"type": "function", "function": {"name": "f", "description": "<&>"}}]
    cases: tuple[dict[str, Any], ...] = (
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": tools},
        {"messages": []},
    )
    for values in cases:
        assert here.render(**values) == child.render(**values)


@pytest.mark.parametrize("template", [*HOSTILE.values(), *TAME_IF_NAIVE])
def test_what_may_take_long_is_not_tame(template: str) -> None:
    assert not is_tame(template)


def test_a_template_that_takes_too_much_is_an_error_and_the_next_conversation_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_template, "CPU_S", 1)

    def misbehave(attack: str) -> str:
        template = ChatTemplate("{% if messages[0].content == 'attack' %}" + attack + "{% endif %}fine")
        with pytest.raises(InvalidRequest) as caught:
            template.render(messages=[{"role": "user", "content": "attack"}])
        assert template.render(messages=MESSAGES) == "fine"
        return caught.value.message

    with ThreadPoolExecutor(3) as pool:
        said = dict(zip(HOSTILE, pool.map(misbehave, HOSTILE.values()), strict=True))
    assert all("chat template" in message and "\n" not in message for message in said.values())
    assert "takes too long" in said["loops"] and "takes more memory" in said["doubling"]
    assert "writes more text" in said["many"]


def test_what_a_template_takes_while_it_is_read_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jinja computes constants when it compiles."""
    monkeypatch.setattr(chat_template, "PARSE_S", 1)
    with pytest.raises(ModelFileError, match="chat template inside the model file can't be read: takes too long"):
        ChatTemplate("{% if 0 %}{{ 9 ** (9 ** 9) % 10 }}{% endif %}")


@pytest.mark.parametrize("template", ["{{ " + "9" * 5000 + " }}", "{{ " + "(" * 5000 + " }}", "{% for %}"])
def test_what_jinja_can_not_read_is_an_error_about_the_file(template: str) -> None:
    with pytest.raises(ModelFileError, match="chat template inside the model file can't be read: ") as caught:
        ChatTemplate(template)
    assert "\n" not in caught.value.message


def test_a_long_template_is_refused_unread() -> None:
    with pytest.raises(ModelFileError, match="100,001 characters; 100,000 are the most"):
        ChatTemplate("x" * (MAX_TEMPLATE + 1))


def test_the_child_can_write_no_file_and_ends_with_its_template() -> None:
    template = ChatTemplate("{{ [1] | length }}")
    runner = template._runner
    assert isinstance(runner, chat_template._Child)
    process = runner._process
    assert template.render() == "1" and process.poll() is None
    with open(f"/proc/{process.pid}/limits") as file:
        limits = file.read()
    assert "Max file size             0 " in limits
    del template, runner
    gc.collect()
    assert process.wait(10) != 0


def test_a_child_that_was_killed_is_replaced() -> None:
    template = ChatTemplate("{{ messages | length }}")
    runner = template._runner
    assert isinstance(runner, chat_template._Child)
    runner._process.kill()
    runner._process.wait()
    assert template.render(messages=MESSAGES) == "2"


def test_the_server_lives_on_behind_a_template_that_does_not_end(tmp_path: Path) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    attack = f"{{% if messages[0].content == 'attack' %}}{loops}{{% endif %}}{{{{ messages[0].content }}}}"
    content, original = write_tiny_model(tmp_path / "tiny.gguf").read_bytes(), CHAT_TEMPLATE.encode()
    assert len(attack) <= len(original)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content.replace(original, attack.encode().ljust(len(original))))
    with ServerProcess(["--model", str(path), "--ctx", "256", "--data-dir", str(tmp_path / "data")]) as server:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "attack"}], "max_tokens": 1}
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.json("/v1/chat/completions", body)
        with caught.value as reply:
            error = json.loads(reply.read())["error"]
            assert (reply.code, error["param"]) == (400, "messages") and "takes too long" in error["message"]
        body["messages"] = [{"role": "user", "content": "Hi"}]
        assert server.json("/v1/chat/completions", body)["usage"]["completion_tokens"] == 1
        server.stop()
        assert "Traceback" not in server.output


PIECES = st.sampled_from(
    [
        *["{% for m in messages %}", "{% for t in m.parts %}", "{% for m in m %}", "{% endfor %}", "{% else %}"],
        *["{% if m.role == 'user' %}", "{% if messages %}", "{% elif not m %}", "{% endif %}", "{% break %}"],
        *["{{ m.content }}", "{{ messages | tojson }}", "{{ m + 'x' }}", "{{ messages[0] ~ m }}", "{{ 7 // 0 }}"],
        *["{% set m = messages %}", "{% set x = m.content %}", "{{ x }}", "{{ m.a.b.c }}", "text", "{#", "#}", "{{"],
        *["{% for i in range(999) %}", "{{ m.content * 99999 }}", "{{ raise_exception('no') }}", "{% macro m() %}"],
    ]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_tame_templates_end_soon_with_text_or_a_clear_error(template: str) -> None:
    if not is_tame(template):
        return
    began = time.process_time()
    try:
        ChatTemplate(template).render(messages=[{"role": "user", "content": "x", "parts": ["a"] * 9}] * 300)
    except InvalidRequest as error:
        assert "\n" not in error.message
    assert time.process_time() - began < 2


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.lists(PIECES, min_size=4, max_size=12).map("".join), st.text(max_size=40).map("{{%s}}".__mod__)))
def test_no_template_does_more_than_end_in_an_error(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(chat_template, "CPU_S", 1)
    monkeypatch.setattr(chat_template, "is_tame", lambda _: False)
    try:
        ChatTemplate(template).render(messages=MESSAGES * 20)
    except (InvalidRequest, ModelFileError) as error:
        assert "\n" not in error.message
