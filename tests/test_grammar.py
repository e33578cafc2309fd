"""JSON schemas: every text that their grammar allows is valid, what can't be honoured is named."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.automaton import Automaton
from server.engine.beginnings import read_checked
from server.engine.constraint import Constraint
from server.engine.engine import Engine
from server.engine.grammar import JSON_OBJECT, from_schema
from server.engine.llama import Model
from server.engine.loader import open_engine
from server.engine.sampling import SamplingParams
from server.engine.schemas import _KNOWN, KINDS
from server.errors import InvalidField
from tests.conftest import DEMO
from tests.test_engine import Reader

TREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 3}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name"],
}

SCHEMAS: dict[str, Any] = {
    "nested": {
        "type": "object",
        "properties": {
            "who": {"type": "object", "properties": {"age": {"type": "integer"}, "ok": {"type": "boolean"}}},
            "tags": {"items": {"enum": ["red", "read", "rest", 1, None]}, "minItems": 1, "maxItems": 3},
        },
        "required": ["who", "tags"],
        "additionalProperties": False,
    },
    "tree": TREE,
    "defs": {
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
        "type": "array",
        "items": {"$ref": "#/$defs/point"},
        "maxItems": 2,
    },
    "unicode": {
        "type": "object",
        "properties": {"名前": {"const": "麻雀 \"小\" \\ \n"}, "é[]": {"enum": ["ü", "😀", "]"]}},
        "required": ["é[]", "名前"],
    },
    "union": {
        "anyOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind"]},
            {"type": "array", "items": {"type": ["null", "boolean"]}, "minItems": 2, "maxItems": 2},
            {"type": "string", "maxLength": 2},
        ]
    },
    "one of": {
        "oneOf": [
            {"properties": {"t": {"const": "x"}, "v": {"type": "integer"}}, "required": ["t", "v"], "type": "object"},
            {"properties": {"t": {"const": "y"}, "w": {"type": "null"}}, "required": ["w", "t"], "type": "object"},
        ]
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}, "d": {"type": "null"}},
        "required": ["c"],
    },
    "all optional": {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}},
    "others": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "ab": {"type": "null"}, "": {"type": "null"}},
        "required": ["ab"],
        "additionalProperties": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "map": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1, "maxProperties": 1},
    "open": {"properties": {"a": {"type": "integer"}}, "required": ["a", "b"], "additionalProperties": True},
    "tuple": {"prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"const": 7}, "maxItems": 4},
    "old tuple": {"type": "array", "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": False},
    "lengths": {"items": {"type": "string", "minLength": 2, "maxLength": 4}, "minItems": 2, "maxItems": 2},
    "range": {"items": {"type": "integer", "minimum": -17, "exclusiveMaximum": 1204}, "minItems": 9, "maxItems": 9},
    "from": {"type": "array", "items": {"type": "integer", "exclusiveMinimum": 3}, "minItems": 5, "maxItems": 5},
    "not below 0": {"type": "array", "items": {"type": "number", "minimum": 0}, "maxItems": 5, "minItems": 3},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d+(\.(x|\"y\\|[^a-z]))?$"},
    "pattern inside": {"type": "string", "pattern": r"a+b|^(?:q|\w\s)"},
    "formats": {
        "type": "array",
        "prefixItems": [{"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "email")],
    },
    "all of": {
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}],
        "$defs": {"base": {"properties": {"a": {"type": "integer", "maximum": 5, "minimum": 0}}, "required": ["a"]}},
    },
    "beside a ref": {"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "maxLength": 2, "minLength": 1},
    "no type": {"properties": {"a": {"minLength": 1, "maxLength": 2}}, "required": ["a"]},
    "types": {"type": ["integer", "string"], "enum": [1, "a", None, 2.5]},
    "anything": True,
    "any array": {"type": "array", "maxItems": 2},
    "enum of anything": {"enum": [{"a": [1, "ü"]}, [], 0.5, True, "x"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    model = Model(DEMO)
    yield model
    model.close()


def sample(model: Model, grammar: str, seed: int) -> str | None:
    """A text at random from the grammar, which leans to its end; None if it gets too long."""
    rng, vocab = np.random.default_rng(seed), model.vocab
    constraint, said = Constraint(vocab, grammar), b""
    ends = [token for token in range(vocab.n_tokens) if vocab.piece(token)[:1] in (b'"', b"}", b"]")]
    for n in range(250):
        logits = rng.gumbel(size=vocab.n_tokens).astype(np.float32)
        logits[ends] += n / 12
        logits[list(vocab.eog)] += n / 8
        best = constraint.best(logits, 1)
        assert len(best), f"nothing may follow {said!r}"
        if int(best[0]) in vocab.eog:
            return said.decode()
        constraint.accept(int(best[0]))
        said += vocab.piece(int(best[0]))
        if constraint.is_over:
            return said.decode()
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_grammar_allows_is_valid(demo: Model, name: str) -> None:
    schema = SCHEMAS[name]
    grammar, texts = from_schema(schema), list[str]()
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(["date", "uuid"]))
    if name == "old tuple":
        checker = jsonschema.Draft7Validator(schema)
    for seed in range(15):
        text = sample(demo, grammar, seed)
        if text is not None:
            checker.validate(json.loads(text))
            texts.append(text)
    assert len(texts) >= (3 if name == "pattern inside" else 8)
    assert len(set(texts)) > 1 or name == "old tuple", "it says one thing only"


VALID = {
    "optional": ['{"c":null}', '{ "a": null, "c": null, "d": null }', '{"b":null,\n  "c":null}'],
    "all optional": ["{}", '{"b":2}', '{"a":1,"c":3}', '{"a":1,"b":2,"c":3}'],
    "others": ['{"ab":null}', '{"a":true,"ab":null,"":null,"abc":12,"b":99}', '{"ab":null,"aa":10}'],
    "range": ["[-17,-1,0,9,10,99,100,1199,1203]"],
    "unicode": ['{"名前":"麻雀 \\"小\\" \\\\ \\n","é[]":"😀"}'],
    "tuple": ["[null,true]", "[null, false, 7, 7]"],
    "tree": ['{"name":"a","children":[{"name":"b"},{"name":"","children":[]}]}'],
    "pattern": ['"AB-12"', '"ZZ-0.\\"y\\\\"', '"AA-1.A"'],
    "pattern inside": ['"q tail"', '"zzaab?"', '"_ x"'],
    "anything": ["-0.5e-7", '"\\u00e9\\n"', "[[],{}]", "null"],
    "map": ['{"x":true}'],
}
INVALID = {
    "optional": ["{}", '{"c":null,"a":null}', '{"a":null}', '{"c":null,}'],
    "all optional": ['{"c":3,"a":1}', '{,"a":1}', '{"d":1}'],
    "others": ['{"ab":null,"a":12}', '{"ab":null,"b":9}', '{"ab":12}', '{"ab":null,"\\u0061":12}'],
    "range": ["[-18,", "[1204", "[01", "[-0"],
    "lengths": ['["a"', '["abcde"'],
    "tuple": ["[]", "[null]", "[null,true,7,7,7]", "[null,true,8"],
    "pattern": ['"A-1"', '"AB-"', '"AB-1.a"', '"xAB-1"', '"AB-1x"'],
    "anything": ['{"a" :1}', '[1 ,2]', '[1,  2]', '"\n"', '"\\ud800"', "01", "1.", "[1,]", '{"a" 1}', "nul", " \n\n1"],
    "map": ["{}", '{"a":true,"b":true}'],
    "types": ["null", "2.5"],
}  # fmt: skip


def says(model: Model, grammar: str, text: str) -> bool:
    constraint = Constraint(model.vocab, grammar)
    for token in model.vocab.tokenize(text):
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.may_end


@pytest.mark.parametrize(("name", "text", "is_valid"), [
    *((name, text, True) for name in VALID for text in VALID[name]),
    *((name, text, False) for name in INVALID for text in INVALID[name]),
])  # fmt: skip
def test_what_is_allowed_and_what_is_not(demo: Model, name: str, text: str, is_valid: bool) -> None:
    assert says(demo, from_schema(SCHEMAS[name]), text) == is_valid


@pytest.mark.parametrize("seed", range(8))
def test_every_number_between_two_and_no_other(demo: Model, seed: int) -> None:
    rng = random.Random(seed)
    low, high = sorted(rng.randint(-1200, 1200) for _ in range(2))
    grammar = from_schema({"type": "integer", "minimum": low, "maximum": high})
    near = [*range(low - 12, low + 12), *range(high - 12, high + 12), *rng.sample(range(-1500, 1500), 30)]
    assert [number for number in near if says(demo, grammar, str(number)) != (low <= number <= high)] == []


@pytest.mark.parametrize(
    ("schema", "path", "message"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "properties.a.uniqueItems", "leave it out"),
        ({"not": {"type": "null"}}, "not", "can't be honoured"),
        ({"type": "thing"}, "type", "give object, array"),
        ({"type": "number", "minimum": 3}, "minimum", "integer"),
        ({"type": "integer", "multipleOf": 5}, "multipleOf", "leave it out"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum", "no whole number"),
        ({"type": "integer", "minimum": "5"}, "minimum", "give a number"),
        ({"type": "string", "minLength": -1}, "minLength", "whole number"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "", "contradict"),
        ({"format": []}, "format", "a text"),
        ({"type": "string", "pattern": "a(?=b)"}, "pattern", "(?="),
        ({"type": "string", "pattern": "(a"}, "pattern", "a bracket that is not closed"),
        ({"type": "string", "pattern": "[a"}, "pattern", "no regular expression"),
        ({"type": "string", "pattern": "a)"}, "pattern", "')' in this place"),
        ({"type": "string", "pattern": "*a"}, "pattern", "'*' in this place"),
        ({"type": "string", "pattern": "[z-a]"}, "pattern", "a range from 'z'"),
        ({"type": "string", "pattern": "(" * 900 + "a" + ")" * 900}, "pattern", "more than 50 brackets"),
        ({"const": float("inf")}, "", "not finite"),
        ({"properties": {"a" * 5000: {}}, "additionalProperties": True}, "additionalProperties", "shorter names"),
        ({"oneOf": [{"const": n} for n in range(300)]}, "oneOf", "more than 200"),
        ({"oneOf": [{"required": [{}]}, {}]}, "oneOf.required", "list of names"),
        ({"type": "string", "pattern": r"\bx"}, "pattern", r"\b"),
        ({"type": "string", "pattern": r"(a)\1"}, "pattern", r"\1"),
        ({"$ref": "https://example.org/schema.json"}, "$ref", "not inside this schema"),
        ({"$ref": "#/$defs/none"}, "$ref", "there is no"),
        ({"$ref": "#"}, "$ref", "leads back to itself"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "", "begins with itself"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "anyOf"),
        ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}]}, "pattern", "different things"),
        ({"enum": []}, "enum", "not empty"),
        ({"type": "string", "enum": [1, 2]}, "enum", "none of these"),
        ({"const": "\ud800"}, "", "surrogate"),
        ({"properties": {"a": False}}, "properties.a", "nothing could follow"),
        ({"properties": {"a": 5}}, "properties.a", "give a schema"),
        ({"type": "object", "properties": [], }, "properties", "object of schemas"),
        ({"required": ["b"], "properties": {"a": {}}, "additionalProperties": False}, "required", "'b' is no property"),
        ({"enum": ["x" * 200_000]}, "", "too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(schema: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidField) as caught:
        from_schema(schema)
    assert (caught.value.param, message in caught.value.message) == (path, True), caught.value.message


def test_a_schema_without_a_bottom_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(500):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidField, match="inside each other"):
        from_schema(schema)


def test_a_schema_that_unfolds_without_end_is_refused() -> None:
    halves = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "minLength": n} for n in range(25)}
    with pytest.raises(InvalidField, match="too often"):
        from_schema({"$defs": {**halves, "a25": {"type": "string"}}, "$ref": "#/$defs/a0"})
    with pytest.raises(InvalidField, match="inside each other"):
        from_schema({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}], "type": "array"}}, "$ref": "#/$defs/a"})


def test_large_schemas_are_read() -> None:
    names = [f"property {n}" for n in range(150)]
    large = {"type": "object", "properties": {name: {"type": "string", "maxLength": 10_000} for name in names}}
    assert from_schema(large).count("\n") < 700
    assert from_schema({"enum": [f"word {n}" for n in range(1000)]})
    assert from_schema({**large, "required": names, "additionalProperties": True})


KEYS = sorted(_KNOWN | {"uniqueItems", "not", "a"})
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5) | st.sampled_from(KINDS)
    | st.sampled_from(["#", "#/$defs/a", "#/a/0", "^a$", "[", "(?:x|y){2,}$"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inside, max_size=4),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=5))
def test_whatever_is_sent_as_a_schema_is_a_grammar_or_an_error_of_its_field(schema: Any) -> None:
    try:
        grammar = from_schema(schema)
    except InvalidField:
        return
    assert grammar.startswith("root ::= ")


@settings(max_examples=250, deadline=None)
@given(st.text(alphabet='ab"[]{}()|*+?.:=-^\\ \n#0123xuU,', max_size=60))
def test_whatever_is_sent_as_a_grammar_is_one_or_an_error(text: str) -> None:
    for grammar in (text, "root ::= " + text, f'root ::= "{text}" [{text}]'):
        try:
            Automaton(read_checked(grammar))
        except InvalidField as error:
            assert error.param == "grammar"


@settings(max_examples=250, deadline=None)
@given(st.text(alphabet="ab[]{}()|*+?.^$\\dwsDWSb-0123,:<>=!", max_size=20))
def test_whatever_is_sent_as_a_pattern_is_one_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidField):
        from_schema({"type": "string", "pattern": text})


def test_numbers_as_large_as_one_likes_are_no_bound() -> None:
    assert from_schema({"type": "integer", "minimum": -(10**400), "maximum": 10**400})


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = open_engine(DEMO, n_ctx=256, n_slots=4)
    engine.start()
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["nested", "unicode", "union", "range", "pattern"])
def test_a_model_at_its_hottest_writes_what_the_schema_describes(engine: Engine, name: str) -> None:
    """Whatever it says ends valid, or is cut by the context: one that rambles inside a text is not wrong yet."""
    grammar, n_whole = from_schema(SCHEMAS[name]), 0
    readers = [Reader() for _ in range(4)]
    for seed, reader in enumerate(readers):
        params = SamplingParams(temperature=2.0, top_k=100, top_p=1.0, seed=seed, grammar=grammar)
        engine.submit(engine.vocab.tokenize("Say something: "), params, reader)
    for reader in readers:
        if reader.wait().reason == "stop":
            jsonschema.validate(json.loads(reader.text), SCHEMAS[name])
            n_whole += 1
    assert n_whole >= 2


def test_any_object(engine: Engine) -> None:
    readers = [Reader() for _ in range(4)]
    for seed, reader in enumerate(readers):
        engine.submit([1, 2], SamplingParams(temperature=1.5, seed=seed, grammar=JSON_OBJECT), reader)
    whole = [json.loads(reader.text) for reader in readers if reader.wait().reason == "stop"]
    assert all(isinstance(found, dict) for found in whole)
    assert all(reader.text.startswith("{") for reader in readers)
