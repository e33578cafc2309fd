"""The JSON body of a request, read up to a limit."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from server.errors import InvalidRequest, TooLarge

MAX_BODY = 1_000_000
"""Bytes of JSON that are read: thirty times what fits into the model's longest context."""


async def read_json(request: Request[Any]) -> dict[str, Any]:
    """The body as a JSON object. Raises TooLarge or InvalidRequest."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise TooLarge(f"The request is larger than {MAX_BODY // 1000} kB: send less text.")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest('The body must be a JSON object, like {"text": "Hi"}.')
    return body
