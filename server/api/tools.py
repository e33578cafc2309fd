"""Tools, tool_choice and response_format -> what the template is told, and the grammar that the answer follows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.api.report import Report
from server.api.table import Choice, Custom, Either, Field, Flag, ListOf, Table, Text
from server.chat import Tool
from server.engine.grammar import JSON_OBJECT, from_schema
from server.errors import InvalidField
from server.tool_text import BEGIN, END

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

MAX_TOOLS = 128
"""As many as OpenAI's API takes."""


def _object(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InvalidField(where, 'give a JSON Schema, like {"type": "object", "properties": {}}.')
    return given


def _name(given: Any, where: str) -> str:
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise InvalidField(where, "give 1 to 64 letters, digits, - or _.")
    return given


JSON_SCHEMA = Custom(_object, {"type": "object"})
NAME = Custom(_name, {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"})

_FUNCTION = Table(
    (
        Field("name", NAME, "What the model calls it by.", required=True),
        Field("description", Text(), "What it does, for the model."),
        Field("parameters", JSON_SCHEMA, "The JSON Schema of its arguments; none takes none."),
        Field("strict", Flag(), "Refuse a schema that can't be held; else the arguments are any JSON object then."),
    )
)
TOOLS = Field(
    "tools",
    ListOf(
        Table(
            (
                Field("type", Choice(("function",)), "Functions only.", True),
                Field("function", _FUNCTION, "Its name, and what it takes.", True),
            )
        ),
        most=MAX_TOOLS,
        what="tools",
    ),
    "Functions that the model may call. Their arguments always are valid JSON of their schema.",
)
_NAMED = Table(
    (
        Field("type", Choice(("function",)), 'Give "function".', True),
        Field(
            "function",
            Table((Field("name", NAME, "Give the tool's name.", True),)),
            'Give {"name": "…"} with the tool\'s name.',
            True,
        ),
    )
)
TOOL_CHOICE = Field(
    "tool_choice",
    Either(
        (Choice(("none", "auto", "required")), _NAMED), 'give "none", "auto", "required" or {"type": "function", …}.'
    ),
    'Whether a tool is called: "auto" lets the model choose, "required" makes it call one; or name one.',
)
PARALLEL = Field("parallel_tool_calls", Flag(), "false: one call at most. Default: true.")

_FORMAT_SCHEMA = Table(
    (
        Field("name", NAME),
        Field("description", Text(), "Accepted."),
        Field("schema", JSON_SCHEMA, "The JSON Schema that the answer follows."),
        Field("strict", Flag(), "Refuse a schema that can't be held; else the answer is any JSON object then."),
    )
)
RESPONSE_FORMAT = Field(
    "response_format",
    Table(
        (
            Field("type", Choice(("text", "json_object", "json_schema")), "text, json_object or json_schema.", True),
            Field("json_schema", _FORMAT_SCHEMA, "With type json_schema."),
            Field("schema", JSON_SCHEMA, "With type json_object, as llama-server takes it."),
        )
    ),
    "The form of the answer; JSON is forced by a grammar, so it is always valid unless max_tokens cuts it.",
)


@dataclass(frozen=True)
class Form:
    """What an answer has to look like. tools: what the template is told; with any, the text may hold calls."""

    tools: tuple[Tool, ...] = ()
    grammar: str = ""
    trigger: str = ""
    is_call: bool = False
    """It is nothing but calls, and must not end in the middle of one."""


@dataclass(frozen=True)
class Described:
    """A JSON Schema, and where in the request it stands."""

    schema: Mapping[str, Any]
    where: str
    is_strict: bool = False

    def grammar(self, report: Report) -> str:
        """Raises InvalidField for what can't be held, or reports it where nobody asked for strictness."""
        try:
            return from_schema(self.schema)
        except InvalidField as error:
            why = error.message.removeprefix(f"{error.param}: ")
            place = ".".join(filter(None, [self.where, error.param]))
            if self.is_strict:
                raise InvalidField(place, why) from None
            report.ignore(place, f"{why} Any JSON object may come, since strict is not true.")
            return JSON_OBJECT


_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Function:
    """A tool. where: its place in the request."""

    name: str
    where: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    is_strict: bool = False

    @property
    def tool(self) -> Tool:
        """As templates take it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": {name: value for name, value in told.items() if value}}

    @property
    def arguments(self) -> Described:
        return Described(self.parameters or _NO_ARGUMENTS, f"{self.where}.parameters", self.is_strict)


@dataclass(frozen=True)
class Asked:
    """choice: "none", "auto", "required", or with is_named the name of a tool."""

    functions: list[Function] = field(default_factory=list)
    choice: str = "auto"
    is_named: bool = False
    in_parallel: bool = True
    answer: str = ""
    """The grammar of an answer that is no call; "" leaves it free."""


def asked_in_chat(given: Mapping[str, Any], report: Report) -> Asked:
    """given: what the fields above, and `grammar`, have read. Raises InvalidField."""
    functions = [function(tool["function"], f"tools[{at}].function") for at, tool in enumerate(given.get("tools", []))]
    choice = given.get("tool_choice", "auto")
    name = choice["function"]["name"] if isinstance(choice, Mapping) else choice
    answer = _answer(given, report)
    return Asked(functions, name, isinstance(choice, Mapping), given.get("parallel_tool_calls", True), answer)


def function(given: Mapping[str, Any], where: str) -> Function:
    strict = given.get("strict", False)
    return Function(given["name"], where, given.get("description", ""), given.get("parameters"), strict)


def _answer(given: Mapping[str, Any], report: Report) -> str:
    form, grammar = given.get("response_format", {"type": "text"}), str(given.get("grammar", ""))
    if form["type"] == "text":
        return grammar
    if grammar:
        raise InvalidField("grammar", "grammar and response_format exclude each other; give one.")
    if form["type"] == "json_object":
        schema = form.get("schema")
        return Described(schema, "response_format.schema", True).grammar(report) if schema else JSON_OBJECT
    asked, where = form.get("json_schema", {}), "response_format.json_schema.schema"
    if "schema" not in asked:
        raise InvalidField(where, "it is missing; give the JSON Schema of the answer.")
    return Described(asked["schema"], where, asked.get("strict", False)).grammar(report)


def form_of(asked: Asked, report: Report) -> Form:
    """Raises InvalidField."""
    _check_names(asked)
    if not asked.functions or (asked.choice == "none" and not asked.is_named):
        return Form(grammar=asked.answer)
    tools = tuple(function.tool for function in asked.functions)
    called = [function for function in asked.functions if not asked.is_named or function.name == asked.choice]
    calls = _calls_grammar(called, asked.in_parallel and not asked.is_named, report)
    if asked.is_named or asked.choice == "required":
        return Form(tools, calls, is_call=True)
    if asked.answer:
        both = ["root ::= calls-root | text-root", _renamed(calls, "calls"), _renamed(asked.answer, "text")]
        return Form(tools, "\n".join(both))
    return Form(tools, calls, BEGIN)


def _check_names(asked: Asked) -> None:
    names = [function.name for function in asked.functions]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise InvalidField(f"{asked.functions[at].where}.name", f"{name} is there twice.")
    if asked.choice == "required" and not asked.is_named and not names:
        raise InvalidField("tool_choice", "there are no tools to call; give tools.")
    if asked.is_named and asked.choice not in names:
        raise InvalidField("tool_choice", f"{asked.choice} is none of the tools.")


MAX_CALLS = 16
"""In one answer: a small model that may always call once more goes on for ever."""

_BASE = [line for line in JSON_OBJECT.splitlines() if line and not line.startswith("root ")]
"""What the grammars of all schemas have in common."""
_SHARED = frozenset(line.partition(" ")[0] for line in _BASE)
_SPACE = re.compile(r"^space ::= .*$", re.MULTILINE)
_ON_ONE_LINE = _SPACE.sub('space ::= " "?', "\n".join(_BASE))


def _calls_grammar(functions: Sequence[Function], in_parallel: bool, report: Report) -> str:
    """One call or, in parallel, several: in the very form that Qwen was trained on, so that no token is unusual."""
    heads, rules = [], []
    for at, function in enumerate(functions):
        opening = f'{BEGIN}\n{{"name": "{function.name}", "arguments": '
        heads.append(f"{_literal(opening)} f{at}-root")
        own = [line for line in function.arguments.grammar(report).splitlines() if line not in _BASE]
        rules.append(_renamed("\n".join(own), f"f{at}", _SHARED))
    ending = f"}}\n{END}"
    call = f"call ::= ({' | '.join(heads)}) {_literal(ending)}"
    more = f" ({_literal(chr(10))} call){{0,{MAX_CALLS - 1}}}" if in_parallel else ""
    return "\n".join([f"root ::= call{more}", call, *rules, _ON_ONE_LINE])


def _literal(text: str) -> str:
    return json.dumps(text)


_RULE_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*|[a-zA-Z][a-zA-Z0-9_-]*')


def _renamed(grammar: str, prefix: str, keep: frozenset[str] = frozenset()) -> str:
    """The same grammar, each rule's name but those to keep with a prefix: so several can stand in one."""

    def rename(found: re.Match[str]) -> str:
        is_name = found[0][0].isalpha() and found[0] not in keep
        return f"{prefix}-{found[0]}" if is_name else found[0]

    return _RULE_TEXT.sub(rename, grammar)
