"""Qwen's own form of tools: what the model is told, how it asks for a call, how it is answered.

<tool_call>
{"name": "weather", "arguments": {"city": "Bern"}}
</tool_call>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

BEGIN = "<tool_call>"
END = "</tool_call>"

_SYSTEM = "You are a helpful assistant."

_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def without_tools(messages: Sequence[dict[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The same conversation for a chat template that knows neither tools nor calls: roles and texts only.

    messages: as templates take them. Calls become the assistant's text; the results of one turn a user's message.
    """
    plain: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            content = "\n".join([*([content] if content else []), *map(_call, message["tool_calls"])])
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
            if plain and plain[-1].get("is_result"):
                plain[-1]["content"] += f"\n{content}"
                continue
        plain.append(
            {"role": "user", "content": content, "is_result": True} if role == "tool" else _said(role, content)
        )
    if tools:
        system = plain.pop(0)["content"] if plain and plain[0]["role"] == "system" else _SYSTEM
        plain.insert(0, _said("system", f"{system}\n\n{_introduction(tools)}"))
    return plain


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _introduction(tools: Sequence[Any]) -> str:
    return _INTRODUCTION.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def _call(call: dict[str, Any]) -> str:
    function = call["function"]
    body = {"name": function["name"], "arguments": function["arguments"]}
    return f"{BEGIN}\n{json.dumps(body, ensure_ascii=False)}\n{END}"
