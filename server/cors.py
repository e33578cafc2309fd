"""Pages of other sites that --cors lets use the API: what browsers ask for that, and are told.

Never the page's addresses, and never with cookies: such a site comes with a key of its own, or on loopback without.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.access import Access
from server.gates import is_page

EXPOSED = "x-queue-position, x-ignored-params, retry-after"


def is_allowed(access: Access, request: Request[Any]) -> bool:
    """Whether it comes from a page of such a site, and goes to the API."""
    origin = request.headers.get("origin", "").lower()
    return bool(origin) and not is_page(request.scope["path"]) and (origin in access.origins or "*" in access.origins)


def headers(access: Access, request: Request[Any]) -> dict[str, str]:
    """What every reply of the API says about it, errors too: else a page could not read why."""
    if not access.origins or is_page(request.scope["path"]):
        return {}
    if not is_allowed(access, request):
        return {"Vary": "Origin"}
    origin = "*" if "*" in access.origins else request.headers["origin"]
    return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED}


def is_preflight(request: Request[Any]) -> bool:
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def preflight(request: Request[Any]) -> Response:
    """Any header may be sent: the API's clients add their own."""
    asked = request.headers.get("access-control-request-headers", "authorization, content-type")
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }
    if "access-control-request-private-network" in request.headers:
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)
