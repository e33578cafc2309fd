"""The JSON body of a request, read up to a limit."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from server.errors import InvalidRequest, TooLarge

MAX_BODY = 1_000_000
"""Bytes of JSON that are read: thirty times what fits into the model's longest context."""


async def read(request: Request[Any], n_most: int, hint: str) -> bytearray:
    """The body as it is. Raises TooLarge, with a hint what to do, above so many bytes."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > n_most:
            size = f"{n_most // 10**6} MB" if n_most > MAX_BODY else f"{n_most // 1000} kB"
            raise TooLarge(f"The request is larger than {size}: {hint}.")
    return raw


async def read_json(request: Request[Any]) -> dict[str, Any]:
    """The body as a JSON object. Raises TooLarge or InvalidRequest."""
    try:
        body = json.loads(await read(request, MAX_BODY, "send less text"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest('The body must be a JSON object, like {"text": "Hi"}.')
    return body
