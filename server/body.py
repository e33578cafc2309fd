"""The JSON body of a request, read up to a limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from server.errors import InvalidRequest, TooLarge, UnsupportedMedia
from server.fields import parse_json

MAX_BODY = 1_000_000
"""Bytes of JSON that are read: thirty times what fits into the model's longest context."""

MAX_DEPTH = 100
"""Lists and objects in one another; who walks through them calls itself once for each."""


async def read(request: Request[Any], n_most: int, hint: str) -> bytearray:
    """The body as it is. Raises TooLarge, with a hint what to do, above so many bytes: before any if it says so."""
    size = f"{n_most // 10**6} MB" if n_most > MAX_BODY else f"{n_most // 1000} kB"
    too_large = TooLarge(f"The request is larger than {size}: {hint}.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > n_most:
        raise too_large
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > n_most:
            raise too_large
    return raw


async def read_json(request: Request[Any]) -> dict[str, Any]:
    """The body as a JSON object. Raises UnsupportedMedia, TooLarge or InvalidRequest."""
    _check_is_json(request.headers)
    raw = await read(request, MAX_BODY, "send less text")
    body = parse_json(raw, "The body")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(body)
    if not isinstance(body, dict):
        raise InvalidRequest('The body must be a JSON object, like {"text": "Hi"}.')
    return body


def _check_is_json(headers: Mapping[str, str]) -> None:
    """A page of another site can post a form or plain text without asking; nothing is read from those."""
    given = headers.get("content-type", "").partition(";")[0].strip()
    if given.lower() != "application/json":
        said = f"{given[:60]!a} is not read here" if given else "it is missing"
        raise UnsupportedMedia(f"Content-Type: {said}; send the header Content-Type: application/json.")


def _check_depth(body: Any) -> None:
    level, depth = [body], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"The body's lists and objects are nested more than {MAX_DEPTH} deep.")
        inside = [
            value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list)
        ]
        level = [entry for entries in inside for entry in entries]
