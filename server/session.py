"""Whose request it is: the session cookie of one browser."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from server.state import AppState

COOKIE = "sparrow"
COOKIE_S = 400 * 24 * 3600
"""As long as browsers keep a cookie at all."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{22}")

SINGLE = "single"
"""The one owner of --single-user; no cookie can say it, being too short."""


def owner_of(request: Request[AppState]) -> str:
    """The session of this browser; "" owns nothing."""
    if request.state["settings"].single_user:
        return SINGLE
    return session_of(request)


def session_of(connection: HTTPConnection[Any]) -> str:
    """What the cookie says; "" without one."""
    value = connection.cookies.get(COOKIE, "")
    return value if _SESSION.fullmatch(value) else ""


def keep_session(request: Request[AppState], response: Response, owner: str) -> None:
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, owner, max_age=COOKIE_S, httponly=True, samesite="lax", secure=secure)


def form_token(request: Request[AppState], owner: str) -> str:
    """What a form of this server's own page holds for this owner; another site's can't know it."""
    return hmac.new(request.state["form_secret"], owner.encode(), hashlib.sha256).hexdigest()


def is_form_token(request: Request[AppState], owner: str, token: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(form_token(request, owner).encode(), token.encode("utf-8", "replace"))
