"""/openapi.json and its page: what they say is what the server does."""

from __future__ import annotations

import html
import re
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from server.api.endpoints import ENDPOINTS
from server.api.openapi import document, in_words
from server.api.table import Number

SHORT = {"max_tokens": 2, "temperature": 0}
HI = [{"role": "user", "content": "Hi"}]
REPLIES: list[tuple[str, str, dict[str, Any]]] = [
    ("/v1/chat/completions", "ChatCompletion", {"messages": HI, **SHORT, "logprobs": True, "top_logprobs": 2, "x": 1}),
    ("/v1/chat/completions", "Error", {"messages": []}),
    ("/v1/completions", "Completion", {"prompt": "Hi", **SHORT, "logprobs": 1, "n": 2}),
    ("/v1/responses", "Response", {"input": "Hi", "max_output_tokens": 2, "include": ["message.output_text.logprobs"]}),
    ("/v1/embeddings", "Embeddings", {"input": "Hi"}),
    ("/tokenize", "Tokens", {"content": "é", "with_pieces": True}),
    ("/detokenize", "Content", {"tokens": [1, 2]}),
    ("/apply-template", "Prompt", {"messages": HI}),
    ("/v1/models", "Models", {}),
    ("/v1/models/tiny", "Model", {}),
    ("/props", "Props", {}),
    ("/slots", "Slots", {}),
    ("/health", "Health", {}),
]


@pytest.fixture(scope="module")
def spec(api: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = api.get("/openapi.json").json()
    return document


def test_the_document_is_openapi_3_1_with_every_route(spec: dict[str, Any]) -> None:
    assert spec["openapi"] == "3.1.0" and spec == document(ENDPOINTS)
    named = {(method.upper(), path) for path, operations in spec["paths"].items() for method in operations}
    assert named == {(endpoint.method, endpoint.path.replace(":path}", "}")) for endpoint in ENDPOINTS}
    for schema in spec["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for operations in spec["paths"].values() for operation in operations.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("path", "name", "body"), REPLIES)
def test_a_reply_has_the_shape_that_is_documented(
    api: TestClient, spec: dict[str, Any], path: str, name: str, body: dict[str, Any]
) -> None:
    reply = api.post(path, json=body) if body else api.get(path)
    jsonschema.validate(reply.json(), spec["components"]["schemas"][name])


def test_every_reply_of_the_list_is_tried(spec: dict[str, Any]) -> None:
    assert {name for _, name, _ in REPLIES} >= {endpoint.reply for endpoint in ENDPOINTS if endpoint.reply}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method} {endpoint.path}")
def test_a_wrong_method_is_a_405_with_allow(api: TestClient, endpoint: Any) -> None:
    reply = api.request("DELETE", endpoint.path.replace("{id:path}", "x"))
    assert reply.status_code == 405 and endpoint.method in reply.headers["allow"]
    assert reply.json()["error"]["message"] == f"DELETE is not possible here; use {reply.headers['allow']}."
    assert reply.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", [endpoint.path for endpoint in ENDPOINTS if endpoint.body])
def test_a_wrong_type_is_a_415_everywhere(api: TestClient, path: str) -> None:
    assert api.post(path, content="{}", headers={"content-type": "text/plain"}).status_code == 415


def test_the_page_names_every_field_and_needs_no_script(api: TestClient) -> None:
    reply = api.get("/docs")
    text = html.unescape(reply.text)
    assert reply.status_code == 200 and "<script" not in text and "style=" not in text
    for endpoint in ENDPOINTS:
        assert f"{endpoint.method} {endpoint.path.replace(':path}', '}')}" in text
        for field in endpoint.body.fields if endpoint.body else endpoint.query:
            assert f"<code>{field.name}</code>" in text
            assert not field.help or field.help in text
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text), "nothing comes from elsewhere"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "text or list of text"),
        (Number(float, above=0, most=1).schema(), "number, above 0, up to 1"),
        (Number(int, 0, 2**63 - 1).schema(), "whole number, 0 or more"),
        ({}, "anything"),
    ],
)
def test_a_schema_in_words(schema: dict[str, Any], words: str) -> None:
    assert in_words(schema) == words
