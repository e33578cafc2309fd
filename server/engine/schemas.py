"""JSON schemas as they stand: what is known of their keywords, references, and what two of them say together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import InvalidField

KINDS = ("object", "array", "string", "integer", "number", "boolean", "null")

_SAID_OF = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_REMARKS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema"),
    *("$id", "id", "$comment", "$defs", "definitions", "$anchor", "discriminator", "contentMediaType", "strict"),
}
_KNOWN = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "format", *_REMARKS}.union(*_SAID_OF.values())
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_LISTS = {"required", "enum", "anyOf", "oneOf", "allOf", "prefixItems"}
MAX_COUNT = 1_000_000
MAX_OPTIONS = 200


def check_keys(schema: Any, path: tuple[str, ...]) -> None:
    """Raises InvalidField for what is no schema, or says something that a grammar can't."""
    if not isinstance(schema, Mapping):
        raise _error(path, "nothing could follow this." if schema is False else "give a schema, which is an object.")
    for key, value in schema.items():
        here = (*path, str(key))
        if key not in _KNOWN and not (key == "uniqueItems" and value is False):
            raise _error(here, "this can't be honoured; leave it out.")
        if key in _COUNTS and not (type(value) is int and 0 <= value <= MAX_COUNT):
            raise _error(here, f"give a whole number, 0 to {MAX_COUNT}.")
        if key in _LISTS and not (isinstance(value, list) and (value or key in ("required", "prefixItems"))):
            raise _error(here, "give a list that is not empty.")
        if key == "properties" and not isinstance(value, Mapping):
            raise _error(here, "give an object of schemas.")
        if key == "required" and not all(isinstance(name, str) for name in value):
            raise _error(here, "give a list of names.")
        if key in ("pattern", "$ref", "format") and not isinstance(value, str):
            raise _error(here, "give a text.")


def _error(path: tuple[str, ...], message: str) -> InvalidField:
    return InvalidField(".".join(path), message)


def local(root: Any, schema: Any, path: tuple[str, ...]) -> Any:
    """The schema with what its $ref names, in this document, instead of it; what it says beside that holds too."""
    seen = set[str]()
    while isinstance(schema, Mapping) and "$ref" in schema:
        check_keys(schema, path)
        ref = schema["$ref"]
        if ref in seen:
            raise _error((*path, "$ref"), f"{ref} leads back to itself.")
        seen.add(ref)
        schema = merged([_find(root, ref, path), {key: schema[key] for key in schema if key != "$ref"}], path)
    return schema


def _find(root: Any, ref: str, path: tuple[str, ...]) -> Any:
    if ref != "#" and not ref.startswith("#/"):
        raise _error((*path, "$ref"), f"{ref[:60]!r} is not inside this schema; only #/… is looked for.")
    found = root
    for part in ref.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (LookupError, ValueError, TypeError):
            raise _error((*path, "$ref"), f"there is no {ref[:60]!r} in this schema.") from None
    return found


def merged(schemas: Sequence[Any], path: tuple[str, ...]) -> Any:
    """A schema for what all of them describe, without remarks; True where none says anything."""
    both = dict[str, Any]()
    for schema in schemas:
        if schema is True:
            continue
        check_keys(schema, path)
        new = {key: value for key, value in schema.items() if key not in _REMARKS}
        _check_closed(both, new, path)
        for key, value in new.items():
            both[key] = _together(key, both[key], value, (*path, key)) if key in both else value
    return both


def _check_closed(one: Mapping[str, Any], other: Mapping[str, Any], path: tuple[str, ...]) -> None:
    for closed, more in ((one, other), (other, one)):
        unknown = set(more.get("properties", {})) - set(closed.get("properties", {}))
        if closed.get("additionalProperties") is False and unknown:
            raise _error((*path, "additionalProperties"), f"one part forbids {sorted(unknown)[0]!r}, another names it.")


def _together(key: str, one: Any, other: Any, path: tuple[str, ...]) -> Any:
    if one == other:
        return one
    if key == "properties":
        shared = {name: {"allOf": [one[name], other[name]]} for name in one if name in other}
        return {**one, **other, **shared}
    if key == "required":
        return [*one, *(name for name in other if name not in one)]
    if key == "enum":
        return [value for value in one if value in other]
    if key == "allOf":
        return [*one, *other]
    if key == "type":
        return [kind for kind in KINDS if kind in _kinds(one, path) and kind in _kinds(other, path)]
    if key in _COUNTS or key in _SAID_OF["integer"]:
        return (max if "min" in key.lower() else min)(one, other)
    raise _error(path, "two parts say different things of it.")


def types_of(schema: Mapping[str, Any], path: tuple[str, ...]) -> set[str]:
    """The types that the schema's values may have; "number" comes with "integer"."""
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return set[str]().union(*(_types_of_value(value) for value in values))
    if "type" in schema:
        kinds = set(_kinds(schema["type"], (*path, "type")))
        return kinds | ({"integer"} if "number" in kinds else set())
    said = {kind for kind, keys in _SAID_OF.items() if keys & schema.keys()}
    return (said | ({"number"} if "integer" in said else set())) or set(KINDS)


def _kinds(given: Any, path: tuple[str, ...]) -> list[str]:
    kinds = [given] if isinstance(given, str) else given
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise _error(path, f"give {', '.join(KINDS)}, or a list of some.")
    return kinds


def _types_of_value(value: Any) -> set[str]:
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, float):
        return {"number"}
    names = {int: "integer", str: "string", dict: "object", list: "array", type(None): "null"}
    return {names[type(value)]}


def check_options(options: Sequence[Any], path: tuple[str, ...]) -> None:
    """Raises InvalidField unless no value can follow two options of this oneOf: a grammar takes the first that fits."""
    if len(options) > MAX_OPTIONS:
        raise _error(path, f"more than {MAX_OPTIONS} options can't be told apart here; use anyOf.")
    for option in options:
        if option is not True:
            check_keys(option, path)
    for at, option in enumerate(options):
        for other in options[:at]:
            if not _are_apart(option, other, path):
                raise _error(path, "a value could follow two of these; use anyOf, or say what tells them apart.")


def _are_apart(one: Any, other: Any, path: tuple[str, ...]) -> bool:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    if not types_of(one, path) & types_of(other, path):
        return True
    values = [_values(schema) for schema in (one, other)]
    if all(values) and not any(value in values[1] for value in values[0]):
        return True
    shared = set(one.get("required", [])) & set(other.get("required", []))
    return any(
        _are_apart(one["properties"][name], other["properties"][name], path)
        for name in shared
        if name in one.get("properties", {}) and name in other.get("properties", {})
    )


def _values(schema: Mapping[str, Any]) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))
