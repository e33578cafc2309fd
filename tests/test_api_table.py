"""The tables of fields: whatever is sent is read, reported or refused with the field's name; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.completions import COMPLETIONS, parse_completion
from server.api.embeddings import EMBEDDINGS, parse_embeddings
from server.api.report import Report
from server.api.request import CHAT, parse_chat
from server.api.response_request import RESPONSES, parse_response
from server.api.table import Either, Field, Flag, ListOf, Number, Table, Text
from server.engine.sampling import SamplingParams
from server.errors import InvalidField, SparrowError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "auto", "text", "user", "f"])
NAMES = st.sampled_from(["role", "content", "type", "function", "name", "parameters", "json_schema", "schema", "x"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4))

PARSERS: list[tuple[Table, dict[str, Any], Any]] = [
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}]}, parse_chat),
    (RESPONSES, {"input": "Hi"}, parse_response),
    (COMPLETIONS, {"prompt": "Hi"}, parse_completion),
    (EMBEDDINGS, {"input": "Hi"}, lambda body, _defaults, report: parse_embeddings(body, report)),
]


@pytest.mark.parametrize(("table", "least", "parse"), PARSERS, ids=["chat", "responses", "completions", "embeddings"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_nothing_but_an_error_for_people_comes_of_nonsense(
    table: Table, least: dict[str, Any], parse: Any, data: st.DataObject
) -> None:
    names = st.sampled_from([field.name for field in table.fields])
    body = least | data.draw(st.dictionaries(names, JSON, max_size=4))
    try:
        parse(body, SamplingParams(), Report())
    except SparrowError as error:
        assert error.status == 400 and error.param
        assert error.message.startswith(f"{error.param}: ") and "\n" not in error.message, error.message


@pytest.mark.parametrize("table", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_field_takes_what_its_schema_describes(table: Table, data: st.DataObject) -> None:
    """One way: what is read is valid by the schema. The other way has the schemathesis tests."""
    field = data.draw(st.sampled_from([field for field in table.fields if not field.ignored]))
    value = data.draw(JSON)
    try:
        Table((field,)).read({field.name: value}, "", Report())
    except InvalidField:
        return
    jsonschema.validate({field.name: json.loads(json.dumps(value))}, Table((field,)).schema())


POINT = Table((Field("x", Number(int, 0, 9), "Across.", required=True), Field("tags", ListOf(Text(1), 1, 2))))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "x: it is missing. Across."),
        ({"x": None}, "x: it is missing. Across."),
        ({"x": 10}, "x: 10 is out of range; give 0 to 9."),
        ({"x": 1.5}, "x: 1.5 is no whole number that can be used."),
        ({"x": 1, "tags": "a"}, "tags: give a list of entries."),
        ({"x": 1, "tags": []}, "tags: 0 are out of range; give 1 to 2 entries."),
        ({"x": 1, "tags": ["a", ""]}, "tags[1]: give a text that is not empty."),
    ],
)
def test_what_is_wrong_is_said(body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidField) as caught:
        POINT.read(body, "", Report())
    assert caught.value.message == said


def test_what_is_unknown_ignored_or_indifferent() -> None:
    table = Table(
        (
            Field("store", Flag(), ignored="nothing is kept.", allows=(False,)),
            Field("audio", Flag(), refused="give text.", allows=(False,)),
            Field("at", POINT),
            Field("either", Either((Flag(), Text()), "give true or a text.")),
        )
    )
    report = Report()
    read = table.read({"store": True, "stroe": 1, "at": {"x": 1, "y": 2}, "audio": False, "either": "a"}, "", report)
    assert read == {"at": {"x": 1}, "either": "a", "audio": False}
    assert report.warnings == [
        "stroe: this server does not know the field; did you mean store?",
        "store: nothing is kept.",
        "at.y: this server does not know the field and ignored it.",
    ]
    for body, said in (({"audio": True}, "audio: give text."), ({"either": 1}, "either: give true or a text.")):
        with pytest.raises(InvalidField, match=said):
            table.read(body, "", Report())
    quiet = Report()
    assert table.read({"store": False, "audio": None}, "", quiet) == {} and not quiet.warnings
