"""GET /openapi.json and GET /docs, made from the tables that read the requests: they can't say anything else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from server.api.shapes import NAMED
from server.api.table import Field, Schema, Table
from server.state import AppState
from server.templating import render

_MEANS = {
    400: "A field is wrong, or the body is no JSON; `param` names the field.",
    401: "The server wants a key: `Authorization: Bearer …`.",
    403: "This comes from a page of another site.",
    404: "There is no such thing here.",
    413: "The body is larger than 1 MB.",
    415: "The body is not application/json, or does not say so.",
    421: "The server does not know itself by this Host.",
    429: "Too many are waiting; Retry-After says when to come back.",
    500: "Something went wrong inside the server.",
    503: "The model is still loading, or the server is shutting down.",
}
_ALWAYS = (401, 403, 421, 500, 503)

_HEADERS: dict[str, Schema] = {
    "x-ignored-params": {"type": "string"},
    "x-queue-position": {"type": "string", "pattern": "^[0-9]+$"},
}


_EVENT: Schema = {
    "type": "object",
    "description": "One server-sent event. `data` is JSON: a chunk of the reply, an error, or at the end [DONE].",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


@dataclass(frozen=True)
class Endpoint:
    """A route and all that is to say of it. reply: a name of shapes.NAMED; "" where it is a stream only."""

    method: str
    path: str
    handler: Callable[[Request[AppState]], Awaitable[Response]]
    help: str
    reply: str = ""
    body: Table | None = None
    query: tuple[Field, ...] = ()
    errors: tuple[int, ...] = ()
    streams: bool = False

    @property
    def name(self) -> str:
        """Of the request's schema."""
        words = self.path.strip("/").replace("-", "/").split("/")
        return "".join(word.capitalize() for word in words if word != "v1") + "Request"

    @property
    def statuses(self) -> list[int]:
        body = (400, 413, 415) if self.body else (400,) if self.query else ()
        return sorted({*_ALWAYS, *body, *((429,) if self.streams else ()), *self.errors})


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path.replace(":path}", "}"), {})[endpoint.method.lower()] = _operation(endpoint)
    bodies = {endpoint.name: endpoint.body.schema() for endpoint in endpoints if endpoint.body}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sparrow",
            "version": "1",
            "description": "OpenAI's API and llama-server's routes for one local model. Special tokens in texts stay "
            "text. null is the same as leaving a field out. What is not honoured stands in `warnings`.",
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**NAMED, **bodies},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    made: dict[str, Any] = {
        "summary": endpoint.help,
        "operationId": endpoint.method.lower() + endpoint.name.removesuffix("Request"),
        "responses": {"200": _success(endpoint), **{str(status): _failure(status) for status in endpoint.statuses}},
    }
    if endpoint.body:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{endpoint.name}"}}}
        made["requestBody"] = {"required": True, "content": content}
    parameters = [_parameter(field, "query") for field in endpoint.query]
    if "{id" in endpoint.path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}})
    return made | ({"parameters": parameters} if parameters else {})


def _parameter(field: Field, place: str) -> dict[str, Any]:
    return {
        "name": field.name,
        "in": place,
        "required": field.required,
        "description": field.help,
        "schema": field.kind.schema(),
    }


def _success(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.reply:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{endpoint.reply}"}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    names = ["x-ignored-params", "x-queue-position"] if 429 in endpoint.statuses else ["x-ignored-params"]
    headers = {name: {"schema": _HEADERS[name], "required": name == "x-queue-position"} for name in names}
    return {"description": "Done.", "content": content, **({"headers": headers} if endpoint.body else {})}


def _failure(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    headers = {"Retry-After": {"schema": {"type": "string"}, "required": True}} if status == 429 else {}
    return {"description": _MEANS[status], "content": content, **({"headers": headers} if headers else {})}


def routes_for(endpoints: Sequence[Endpoint]) -> list[Route]:
    """One for each path: a wrong method is told all that are possible. And /openapi.json and /docs."""
    methods: dict[tuple[str, Any], list[str]] = {}
    for endpoint in endpoints:
        methods.setdefault((endpoint.path, endpoint.handler), []).append(endpoint.method)
    routes = [Route(path, handler, methods=allowed) for (path, handler), allowed in methods.items()]

    async def openapi(request: Request[AppState]) -> Response:
        return JSONResponse(document(endpoints))

    async def docs(request: Request[AppState]) -> Response:
        shown = [_shown(endpoint) for endpoint in endpoints]
        return HTMLResponse(render("api.html", "en", endpoints=shown, base=str(request.base_url)))

    documents = {"/openapi.json": openapi, "/docs": docs}
    return [*routes, *(Route(path, handler, methods=["GET"]) for path, handler in documents.items())]


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    """For the page: each field with its type in words."""
    fields = endpoint.body.fields if endpoint.body else endpoint.query
    rows = [
        {
            "name": field.name,
            "type": in_words(field.kind.schema()),
            "required": field.required,
            "help": field.help or f"{'Refused' if field.refused else 'Ignored'}: {field.refused or field.ignored}",
        }
        for field in fields
    ]
    path = endpoint.path.replace(":path}", "}")
    return {"method": endpoint.method, "path": path, "help": endpoint.help, "fields": rows, "reply": endpoint.reply}


def in_words(schema: Schema) -> str:
    """A schema in a few words: "number, 0 to 2"."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(in_words(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f'"{value}"' for value in schema["enum"] if value is not None)
    name = str(schema.get("type", "anything"))
    kind = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(name, name)
    if kind == "array":
        return f"list of {in_words(schema['items'])}"
    if "properties" in schema:
        return f"object with {', '.join(schema['properties'])}"
    return kind + _range_in_words(schema)


def _range_in_words(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f", above {schema['exclusiveMinimum']:g}" + (f", up to {most:g}" if most is not None else "")
    if least is None:
        return ""
    return f", {least:g} to {most:g}" if most is not None and most < 2**31 - 1 else f", {least:g} or more"
