"""JSON schemas -> GBNF, so that whatever a model says is what the schema describes. Pure.

llama-cpp-python has a converter; its texts may hold bare line breaks, it writes 10,000 brackets for maxLength 10,000,
takes {} for an object, fetches what $ref names from the network, and leaves out in silence what it can't express
(minimum, uniqueItems, not). Here the schema decides, or an error names its part that can't be honoured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.engine.automaton import Automaton
from server.engine.beginnings import read_checked
from server.engine.pattern import CHAR, integers, pattern_gbnf, quoted
from server.engine.sampling import MAX_GRAMMAR
from server.engine.schemas import check_keys, check_options, local, merged, types_of
from server.errors import InvalidField

MAX_NESTED = 60
"""Schemas inside schemas; a $ref begins anew."""

MAX_VISITS = 5000
"""Schemas inside one, each counted as often as it is met."""

MAX_NAME = 200
"""Letters of a property's name beside which there may be others."""

_SPACE = r'space ::= | " " | "\n" [ \t]{0,8}'  # bounded: a small model would go on with blanks for ever

_BASE = rf"""{_SPACE}
char ::= {CHAR}
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{{0,15}})
number ::= integer ("." [0-9]{{1,16}})? ([eE] [-+]? [0-9]{{1,2}})?
boolean ::= "true" | "false"
null ::= "null"
value ::= object | array | string | number | boolean | null
object ::= "{{" space (string ":" " "? value ("," space string ":" " "? value)* space)? "}}"
array ::= "[" space (value ("," space value)* space)? "]"
"""

JSON_OBJECT = "root ::= object\n" + _BASE

_COMMA = '"," space'
_COLON = '":" " "?'
"""Blanks where people put them, and nowhere else: a small model spends its tokens on all that it may."""

_FORMATS = {
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{3})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_FORMATS["date-time"] = f'{_FORMATS["date"]} "T" {_FORMATS["time"]}'
"""Other formats are remarks to the reader, as JSON Schema has it."""


def from_schema(schema: Mapping[str, Any] | bool) -> str:
    """GBNF of the JSON texts that the schema describes; each property comes in the schema's order.

    Raises InvalidField with the path inside the schema (like properties.name.pattern, "" for all of it) of what can't
    be honoured.
    """
    converter = _Converter(schema)
    root = converter.visit(schema, ())
    grammar = "\n".join([f"root ::= {root}", *(f"{name} ::= {rule}" for name, rule in converter.rules.items()), _BASE])
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidField("", "this schema is too large for a grammar; leave properties or options out.")
    try:
        Automaton(read_checked(grammar))
    except InvalidField as error:
        raise InvalidField("", f"this schema can't be followed ({error.message}).") from None
    return grammar


class _Converter:
    def __init__(self, root: Mapping[str, Any] | bool) -> None:
        self._root = root
        self.rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}
        self._n_visits = 0

    def _rule(self, expression: str, name: str = "") -> str:
        name = name or f"r{len(self.rules)}"
        self.rules[name] = expression
        return name

    def visit(self, schema: Any, path: tuple[str, ...]) -> str:
        """An expression for the schema's values that can stand in a sequence."""
        self._n_visits += 1
        if self._n_visits > MAX_VISITS:
            raise InvalidField("", "this schema is too large, or its parts contain each other too often.")
        if len(path) > 2 * MAX_NESTED:
            raise InvalidField(".".join(path[:6]), f"more than {MAX_NESTED} schemas inside each other.")
        if schema is True or schema == {}:
            return "value"
        check_keys(schema, path)
        if "$ref" in schema:
            return self._ref(schema, path)
        if "allOf" in schema:
            rest = {key: value for key, value in schema.items() if key != "allOf"}
            parts = [local(self._root, part, (*path, "allOf", str(at))) for at, part in enumerate(schema["allOf"])]
            return self.visit(merged([*parts, rest], path), path)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._union(schema, key, path)
        if "const" in schema or "enum" in schema:
            return self._enum(schema, path)
        return self._typed(schema, path)

    def _ref(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        found = local(self._root, schema, path)
        ref = str(schema["$ref"])
        if merged([schema], path).keys() > {"$ref"}:  # it says more beside
            return self.visit(found, path)
        if ref not in self._refs:
            name = self._refs[ref] = self._rule("")
            self.rules[name] = self.visit(found, ("$ref", ref))
        return self._refs[ref]

    def _union(self, schema: Mapping[str, Any], key: str, path: tuple[str, ...]) -> str:
        rest = {other: value for other, value in schema.items() if other != key}
        options = [local(self._root, option, (*path, key, str(at))) for at, option in enumerate(schema[key])]
        if key == "oneOf":
            check_options(options, (*path, key))
        raw = list(schema[key])
        said = merged([rest], path)
        parts = [
            self.visit(merged([option, rest], path) if said else given, (*path, key, str(at)))
            for at, (option, given) in enumerate(zip(options, raw, strict=True))
        ]
        return self._rule(" | ".join(parts))

    def _enum(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        allowed = types_of({key: value for key, value in schema.items() if key not in ("const", "enum")}, path)
        fitting = [value for value in values if types_of({"const": value}, path) & allowed]
        if "const" in schema and "enum" in schema:
            fitting = [value for value in fitting if value in schema["enum"]]
        if not fitting:
            raise InvalidField(".".join((*path, "enum")), "none of these values has the type that is asked for.")
        texts = dict.fromkeys(_written(value, path) for value in fitting)
        return self._rule(" | ".join(quoted(text, path) for text in texts))

    def _typed(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        makers = {"object": self._object, "array": self._array, "string": self._string, "integer": self._integer}
        makers["number"] = self._number
        kinds = [kind for kind in makers | {"boolean": 0, "null": 0} if kind in types_of(schema, path)]
        if "number" in kinds and "integer" in kinds:
            kinds.remove("integer")
        parts = [makers[kind](schema, path) if kind in makers else kind for kind in kinds]
        return parts[0] if len(parts) == 1 else self._rule(" | ".join(parts))

    def _string(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if "pattern" in schema:
            if least or most is not None:
                raise InvalidField(".".join((*path, "pattern")), "a pattern and a length can't be honoured together.")
            return self._rule(f'"\\"" {pattern_gbnf(schema["pattern"], (*path, "pattern"))} "\\""')
        if schema.get("format") in _FORMATS and not least and most is None:
            return self._rule(f'"\\"" {_FORMATS[schema["format"]]} "\\""')
        if not least and most is None:
            return "string"
        return f'"\\"" char{_times(least, most, path)} "\\""'

    def _integer(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        if schema.get("multipleOf", 1) != 1:
            raise InvalidField(".".join((*path, "multipleOf")), "this can't be honoured; leave it out.")
        bounds = integers(schema, path)
        return "integer" if bounds is None else self._rule(bounds)

    def _number(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        bounds = {key for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")}
        given = {key for key in bounds if key in schema}
        if not given:
            return "number"
        if given == {"minimum"} and schema["minimum"] == 0:
            return self._rule('("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?')
        key = sorted(given)[0]
        raise InvalidField(".".join((*path, key)), 'this can be honoured for "integer" only (but for "minimum": 0).')

    def _array(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        items, first = schema.get("items", True), schema.get("prefixItems", [])
        if isinstance(items, list):
            items, first = schema.get("additionalItems", True), items
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        first = first[: len(first) if most is None else most]
        parts = [self.visit(item, (*path, "prefixItems", str(at))) for at, item in enumerate(first)]
        more_is_none = items is False or (most is not None and most <= len(first)) or (first and "items" not in schema)
        if more_is_none:
            if least > len(first):
                raise InvalidField(".".join((*path, "minItems")), f"there are only {len(first)} items.")
            return _enclosed("[", f" {_COMMA} ".join(parts), "]")
        item = self._rule(self.visit(items, (*path, "items")))
        least, most = max(0, least - len(first)), None if most is None else most - len(first)
        if parts:
            return _enclosed("[", f" {_COMMA} ".join(parts) + f" ({_COMMA} {item}){_times(least, most, path)}", "]")
        more = f"{item} ({_COMMA} {item}){_times(max(0, least - 1), None if most is None else most - 1, path)}"
        return _enclosed("[", more, "]", is_optional=not least)

    def _object(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> str:
        properties = dict(schema.get("properties", {}))
        others = schema.get("additionalProperties", not properties)
        for name in schema.get("required", []):
            if name not in properties and others is False and "additionalProperties" in schema:
                raise InvalidField(".".join((*path, "required")), f"{name!r} is no property, and others are forbidden.")
            properties.setdefault(name, schema.get("additionalProperties", True))
        others_rule = "" if others is False else self._others(list(properties), others, path)
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        if not properties:
            if others is False:
                return _enclosed("{", "", "}")
            pairs = f"{others_rule} ({_COMMA} {others_rule}){_times(max(0, least - 1), most and most - 1, path)}"
            return _enclosed("{", "" if most == 0 else pairs, "}", is_optional=not least)
        n_least = len(schema.get("required", []))
        if least > n_least or (most is not None and (most < len(properties) or others is not False)):
            raise InvalidField(".".join((*path, "maxProperties")), "this can't be honoured beside named properties.")
        pairs = self._pairs(properties, schema.get("required", []), others_rule, path)
        return self._rule(f'"{{" space {pairs} "}}"')

    def _pairs(self, properties: dict[str, Any], required: Sequence[str], others: str, path: tuple[str, ...]) -> str:
        """From the last property to the first: what may follow when none was written yet, and when some were."""
        none = f"({others} ({_COMMA} {others})* space)?" if others else ""
        some = f"({_COMMA} {others})* space" if others else "space"
        none, some = self._rule(none), self._rule(some)
        for name in reversed(properties):
            value = self.visit(properties[name], (*path, "properties", name))
            pair = self._rule(f"{quoted(json.dumps(name, ensure_ascii=False), path)} {_COLON} {value}")
            first, later = f"{pair} {some}", f"{_COMMA} {pair} {some}"
            if name not in required:
                first, later = f"{first} | {none}", f"{later} | {some}"
            none, some = self._rule(first), self._rule(later)
        return none

    def _others(self, names: Sequence[str], schema: Any, path: tuple[str, ...]) -> str:
        """Pairs with any other name."""
        if any(len(name) > MAX_NAME for name in names):
            raise InvalidField(".".join((*path, "additionalProperties")), "give false, or shorter names of properties.")
        value = self.visit(schema, (*path, "additionalProperties"))
        key = f'"\\"" {self._unlike([*names])} "\\""' if names else "string"
        return self._rule(f"{key} {_COLON} {value}")

    def _unlike(self, names: Sequence[str]) -> str:
        """Texts without escapes that are none of these, each letter of which leads to a rule."""
        letters = dict.fromkeys(name[0] for name in names if name)
        others = "".join(f"\\U{ord(letter):08x}" for letter in letters)
        options = [f'[^"\\\\\\x00-\\x1f\\x7f{others}] [^"\\\\\\x00-\\x1f\\x7f]*']
        for letter in letters:
            rests = [name[1:] for name in names if name[:1] == letter]
            options.append(f'"\\U{ord(letter):08x}" {self._unlike(rests)}')
        return self._rule(f"({' | '.join(options)}){'' if '' in names else '?'}")


def _written(value: Any, path: tuple[str, ...]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise InvalidField(".".join(path), "a number that is not finite can't be written as JSON.") from None


def _enclosed(opening: str, inside: str, closing: str, *, is_optional: bool = False) -> str:
    inside = f"{inside} space" if inside else ""
    return f'"{opening}" space {f"({inside})?" if is_optional and inside else inside} "{closing}"'


def _times(least: int, most: int | None, path: tuple[str, ...]) -> str:
    if most is not None and most < least:
        raise InvalidField(".".join(path), f"at least {least} and at most {most} contradict each other.")
    return f"{{{least},{'' if most is None else most}}}"
