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


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
