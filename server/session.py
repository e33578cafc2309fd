"""Whose request it is: the session cookie of one browser."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from server.state import AppState

COOKIE = "sparrow"
COOKIE_S = 400 * 24 * 3600
"""As long as browsers keep a cookie at all."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{22}")


def owner_of(request: Request[AppState]) -> str:
    """The session of this browser; "" owns nothing."""
    value = request.cookies.get(COOKIE, "")
    return value if _SESSION.fullmatch(value) else ""


def keep_session(request: Request[AppState], response: Response, owner: str) -> None:
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, owner, max_age=COOKIE_S, httponly=True, samesite="lax", secure=secure)
