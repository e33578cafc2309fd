"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from server.errors import SparrowError


def error_json(error: SparrowError) -> dict[str, Any]:
    """The body of a reply that is an error, and the data of an event that ends a stream."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
