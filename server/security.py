"""Which requests of a browser are this site's own: another site's page must not post in its reader's name."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from server.errors import Forbidden


def refuse_other_sites(headers: Mapping[str, str]) -> None:
    """Raises Forbidden when a browser says that another site's page sends this. Programs say nothing, and may.

    Sec-Fetch-Site is the browser's own judgement, also behind a proxy that changes Host; over plain HTTP in a local
    network browsers send only Origin.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        origin = headers.get("origin")
        allowed = origin is None or _host(origin) == headers.get("host", "").lower()
    if not allowed:
        raise Forbidden("This was sent from a page of another site: open Sparrow's own page and send it there.")


def refuse_silent_browsers(headers: Mapping[str, str]) -> None:
    """Raises Forbidden when a browser does not show that one of our own pages asks, or its reader.

    For what a GET sets going. Over plain HTTP in a local network browsers send neither Sec-Fetch-Site nor, with an
    <img> of another site's page, Origin; our own pages always send Referer.
    """
    is_browser = headers.get("user-agent", "").startswith("Mozilla/")
    is_said = "sec-fetch-site" in headers or "origin" in headers
    if is_browser and not is_said and _host(headers.get("referer", "")) != headers.get("host", "").lower():
        raise Forbidden("A browser may open this only from a page of Sparrow's own: write in the chat, or send a POST.")


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
