"""What the page posts: JSON of this site's own page, and a session for who has none yet."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.body import read_json
from server.errors import InvalidRequest
from server.security import refuse_other_sites
from server.session import SINGLE, keep_session, owner_of
from server.state import AppState


async def posted(request: Request[AppState]) -> dict[str, Any]:
    """The body as a JSON object. Raises Forbidden, InvalidRequest, TooLarge."""
    check_posted(request)
    return await read_json(request)


def check_posted(request: Request[AppState]) -> None:
    """No form of another site can send this: application/json needs the permission of this one."""
    refuse_other_sites(request.headers)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("Send the body as application/json.")


def owner_or_new(request: Request[AppState]) -> str:
    """The owner, or a name for a new one, which `answered` gives to the browser."""
    return owner_of(request) or secrets.token_urlsafe(16)


def answered(request: Request[AppState], response: Response, owner: str) -> Response:
    """The reply, and with it the session for another COOKIE_S: else a list that is used daily would end one day."""
    if owner != SINGLE:
        keep_session(request, response, owner)
    return response
