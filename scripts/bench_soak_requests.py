"""What the people of the soak ask for: words, wishes, files, and nonsense with the status that it deserves."""

from __future__ import annotations

from typing import Any

WORDS = (
    "Count from 1 to 100.",
    "Hello!",
    "My name is Ana.",
    "What is my name?",
    "Show me a table.",
    "Show me code.",
    "请重复：今天天气很好",
)
BAD: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/chat/completions", b"{", 400),
    ("/v1/chat/completions", b'{"messages": "\xff"}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": 99}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"long " * 3000), 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"long " * 300_000), 413),
    ("/messages", b'{"text": ""}', 400),
    ("/messages", b'{"text": "Hi", "conversation": 7}', 400),
    ("/messages", b'{"text": "%s"}' % (b"long " * 3000), 400),
    ("/answers/999999999/retry", b"{}", 404),
    ("/conversations/nowhere", b'{"title": "T"}', 404),
    ("/import", b'{"neither": 1}', 400),
    ("/nowhere", b"{}", 404),
)
PLACE = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "visit", "parameters": PLACE}}
WISHES: tuple[dict[str, Any], ...] = (
    {},
    {"n": 3},
    {"logprobs": True, "top_logprobs": 5},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": PLACE}}},
    {"tools": [TOOL], "tool_choice": "required"},
    {"logit_bias": {"7": -100}, "seed": 7},
)
OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/completions", {"prompt": "Hello", "max_tokens": 9}),
    ("/v1/embeddings", {"input": ["Hello!", "sparrow " * 40]}),
    ("/v1/responses", {"input": "Hello!", "max_output_tokens": 20}),
    ("/tokenize", {"content": "Hello!"}),
    ("/stream", {"message": "Hello!"}),
)
FILE = {"messages": [{"id": 1, "role": "user", "content": "Imported."}, {"id": 2, "parent": 1, "role": "assistant"}]}
