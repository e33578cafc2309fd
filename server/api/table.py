"""The fields of a request's JSON as tables: a row reads its field, and says in /openapi.json what it takes.

null is everywhere the same as leaving a field out. What a table does not know is reported, and so is what it knows
and can't honour; what would make the answer a wrong one is refused.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from server.api.report import Report
from server.errors import InvalidField
from server.fields import flag, number

Schema = dict[str, Any]
"""A JSON Schema, as OpenAPI 3.1 takes it."""


class Kind(Protocol):
    """What a field takes."""

    def read(self, given: Any, where: str, report: Report) -> Any:
        """The value inside the server. `where` is the field's name in messages. Raises InvalidField."""

    def schema(self) -> Schema: ...


@dataclass(frozen=True)
class Number:
    kind: type[int] | type[float]
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    """Like `least`, but not itself allowed."""

    def read(self, given: Any, where: str, report: Report) -> float | int:
        value = number(given, where, self.kind)
        if not (self.least <= value <= self.most and value > self.above):
            raise InvalidField(where, f"{value} is out of range; give {self._range()}.")
        return value

    def _range(self) -> str:
        above, least, most = map(self._shown, (self.above, self.least, self.most))
        if above:
            return f"a number above {above} and at most {most}"
        return f"{least} to {most}" if most else f"{least} or more"

    def _shown(self, limit: float) -> str:
        if not math.isfinite(limit):
            return ""
        return str(limit) if self.kind is int else f"{limit:g}"

    def schema(self) -> Schema:
        limits = {"minimum": self.least, "maximum": self.most, "exclusiveMinimum": self.above}
        finite = {name: self.kind(limit) for name, limit in limits.items() if math.isfinite(limit)}
        return {"type": "integer" if self.kind is int else "number", **finite}


@dataclass(frozen=True)
class Flag:
    def read(self, given: Any, where: str, report: Report) -> bool:
        return flag(given, where)

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text:
    least: int = 0
    """Characters."""

    def read(self, given: Any, where: str, report: Report) -> str:
        if not isinstance(given, str):
            raise InvalidField(where, "give a text.")
        if len(given) < self.least:
            raise InvalidField(where, "give a text that is not empty.")
        return given

    def schema(self) -> Schema:
        return {"type": "string", **({"minLength": self.least} if self.least else {})}


@dataclass(frozen=True)
class Choice:
    values: tuple[str, ...]

    def read(self, given: Any, where: str, report: Report) -> str:
        if not isinstance(given, str) or given not in self.values:
            raise InvalidField(where, f"{shown(given)} is not possible; give {listed(self.values)}.")
        return given

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True)
class ListOf:
    kind: Kind
    least: int = 0
    most: int = 100_000
    what: str = "entries"

    def read(self, given: Any, where: str, report: Report) -> list[Any]:
        if not isinstance(given, list):
            raise InvalidField(where, f"give a list of {self.what}.")
        if not self.least <= len(given) <= self.most:
            n = f"{self.least} to {self.most}" if self.most < 100_000 else f"at least {self.least}"
            raise InvalidField(where, f"{len(given)} are out of range; give {n} {self.what}.")
        return [self.kind.read(entry, f"{where}[{at}]", report) for at, entry in enumerate(given)]

    def schema(self) -> Schema:
        limits = {"minItems": self.least} if self.least else {}
        return {"type": "array", "items": self.kind.schema(), **limits, "maxItems": self.most}


@dataclass(frozen=True)
class Either:
    """One of several kinds, told apart by their JSON types."""

    kinds: tuple[Kind, ...]
    hint: str

    def read(self, given: Any, where: str, report: Report) -> Any:
        for kind in self.kinds:
            if _has_type(given, kind.schema()["type"]):
                return kind.read(given, where, report)
        raise InvalidField(where, self.hint)

    def schema(self) -> Schema:
        return {"anyOf": [kind.schema() for kind in self.kinds]}


@dataclass(frozen=True)
class Anything:
    """What nobody here looks into."""

    is_object: bool = False

    def read(self, given: Any, where: str, report: Report) -> Any:
        if self.is_object and not isinstance(given, Mapping):
            raise InvalidField(where, "give an object.")
        return given

    def schema(self) -> Schema:
        return {"type": "object"} if self.is_object else {}


@dataclass(frozen=True)
class Custom:
    """What no other kind can say: a function and the schema that describes it."""

    reads: Callable[[Any, str], Any]
    described: Schema

    def read(self, given: Any, where: str, report: Report) -> Any:
        return self.reads(given, where)

    def schema(self) -> Schema:
        return self.described


@dataclass(frozen=True)
class Field:
    """A row. ignored: why the field changes nothing here; refused: what to do instead of giving it.

    `allows` are values that need no report and no refusal: they ask for what is done anyway.
    """

    name: str
    kind: Kind
    help: str = ""
    required: bool = False
    ignored: str = ""
    refused: str = ""
    allows: tuple[Any, ...] = ()

    def read(self, given: Any, where: str, report: Report) -> Any:
        if self.refused and given not in self.allows:
            raise InvalidField(where, self.refused)
        if self.ignored:
            if given not in self.allows:
                report.ignore(where, self.ignored)
            return None
        return self.kind.read(given, where, report)

    def schema(self) -> Schema:
        if self.ignored:  # of any type: nobody looks at it
            return {"description": f"Ignored, with a warning: {self.ignored}"}
        schema = {**self.kind.schema(), "description": self.help or f"Refused: {self.refused}"}
        if self.refused:
            schema["enum"] = [*self.allows, None]
        return schema if self.required else nullable(schema)


@dataclass(frozen=True)
class Table:
    """An object with known fields. Also a Kind: objects stand in objects."""

    fields: tuple[Field, ...]

    def read(self, given: Any, where: str, report: Report) -> dict[str, Any]:
        """The fields that are given, not null and honoured. Raises InvalidField, with `where` in front of its names."""
        if not isinstance(given, Mapping):
            raise InvalidField(where, f"give an object, like {self._example()}.")
        before, known = f"{where}." if where else "", {field.name: field for field in self.fields}
        for name in given:
            if name not in known and not report.is_full:  # looking for what is meant takes 0.2 ms a name
                report.ignore(before + name, self._unknown(name))
        values: dict[str, Any] = {}
        for name, field in known.items():
            if given.get(name) is None:
                if field.required:
                    raise InvalidField(before + name, f"it is missing. {field.help}".rstrip())
            elif (value := field.read(given[name], before + name, report)) is not None:
                values[name] = value
        return values

    def schema(self) -> Schema:
        required = [field.name for field in self.fields if field.required]
        properties = {field.name: field.schema() for field in self.fields}
        return {"type": "object", "properties": properties, **({"required": required} if required else {})}

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name[:40], [field.name for field in self.fields], 1, 0.75)
        return "this server does not know the field" + (f"; did you mean {near[0]}?" if near else " and ignored it.")

    def _example(self) -> str:
        field = next((field for field in self.fields if field.required), self.fields[0])
        return f'{{"{field.name}": …}}'


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if isinstance(schema.get("type"), str):
        more = {"enum": [*schema["enum"], None]} if "enum" in schema and None not in schema["enum"] else {}
        return {**schema, "type": [schema["type"], "null"], **more}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return schema


def shown(given: Any) -> str:
    """A value that somebody sent, as a message can show it."""
    if isinstance(given, (list, dict)):
        return "a list" if isinstance(given, list) else "an object"
    return repr(given)[:40]


def listed(values: Sequence[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "array": list,
    "object": dict,
    "boolean": bool,
    "number": (int, float),
    "integer": int,
}


def _has_type(given: Any, name: str) -> bool:
    return isinstance(given, _TYPES[name]) and (name == "boolean" or not isinstance(given, bool))
