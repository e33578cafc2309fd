"""Tool calls in a model's text: the same parts however the text was cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.tool_splitter import Argued, Called, Part, Said, ToolCallSplitter


def call(name: str = "weather", arguments: str = '{"city": "Bern"}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Said) and isinstance(last, Said):
            merged[-1] = Said(last.text + part.text)
        elif isinstance(part, Argued) and isinstance(last, Argued):
            merged[-1] = Argued(last.text + part.text)
        else:
            merged.append(part)
    return merged


def split(*pieces: str) -> list[Part]:
    splitter = ToolCallSplitter()
    parts = [part for piece in pieces for part in splitter.push(piece)]
    return joined(parts + splitter.flush())


BERN: list[Part] = [Called("weather"), Argued('{"city": "Bern"}')]

CASES: list[tuple[str, list[Part]]] = [
    ("", []),
    ("Hello.", [Said("Hello.")]),
    ("  two  spaces\n", [Said("  two  spaces\n")]),
    (call(), [*BERN]),
    ("Let me see.\n" + call(), [Said("Let me see."), *BERN]),
    (call() + "\n" + call("time", "{}") + "\n", [*BERN, Called("time"), Argued("{}")]),
    (call() + " Done.", [*BERN, Said(" Done.")]),
    (call(arguments='{"a": {"b": ["}", "\\"]"]}}'), [Called("weather"), Argued('{"a": {"b": ["}", "\\"]"]}}')]),
    (call(arguments='{"a": "</tool_call>"}'), [Called("weather"), Argued('{"a": "</tool_call>"}')]),
    (call(arguments='{"城": "伯尔尼 🙂"}'), [Called("weather"), Argued('{"城": "伯尔尼 🙂"}')]),
    ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [Called("f"), Argued('{"a": 1}')]),
    ('<tool_call>{"name": "f"}</tool_call>', [Called("f"), Argued("{}")]),
    ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', [Called("f"), Argued("{}")]),
    ("a <tool_call>nonsense</tool_call> b", [Said("a <tool_call>nonsense</tool_call> b")]),
    ("a <tool_call>[1]</tool_call>", [Said("a <tool_call>[1]</tool_call>")]),
    ("a <tool_cal", [Said("a <tool_cal")]),
    ("a <tool_call>", [Said("a <tool_call>")]),
    ('<tool_call>\n{"name": "f", "argu', [Said('<tool_call>\n{"name": "f", "argu')]),
    ('<tool_call>\n{"name": "f", "arguments": {"a": "b', [Called("f"), Argued('{"a": "b')]),
    ('<tool_call>\n{"name": "f", "arguments": {}}', [Called("f"), Argued("{}")]),
    (call() + "\n<tool_c", [*BERN]),
    (call() + "\n<tool_call>\n{", [*BERN]),
    (call() + " Done <tool_c", [*BERN, Said(" Done <tool_c")]),
    (call() + " 1 <\n", [*BERN, Said(" 1 <\n")]),
    ("1 < 2 and <tool> is no call", [Said("1 < 2 and <tool> is no call")]),
]


@pytest.mark.parametrize(("text", "parts"), CASES)
def test_the_parts_of_a_text_cut_everywhere(text: str, parts: list[Part]) -> None:
    assert split(text) == parts
    assert split(*text) == parts, "letter by letter"
    for at in range(len(text) + 1):
        assert split(text[:at], text[at:]) == parts, (text[:at], text[at:])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.lists(st.integers(1, 200), max_size=6), st.booleans())
def test_arguments_come_as_they_were_written(arguments: dict[str, object], cuts: list[int], ascii: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=ascii)
    text, pieces = "Well.\n" + call(arguments=written), []
    for n in cuts:
        pieces.append(text[:n])
        text = text[n:]
    assert split(*pieces, text) == [Said("Well."), Called("weather"), Argued(written)]


@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "<", '{"name": "f"', ', "arguments": ', "{", "}", " a"]))
)
def test_nothing_breaks_it_and_no_cut_matters(pieces: list[str]) -> None:
    assert split(*pieces) == split("".join(pieces))
