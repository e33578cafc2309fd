"""The page's files: compressed once, and kept by browsers for as long as their address is the same.

    GET /static/{path}           {version}/{name}; the version is of all files, so that modules may import each other
    GET /sw.js                   the service worker; at the root, because it may only look after what is below it
    GET /offline                 what the service worker shows while the server is away, in the reader's language
    GET /manifest.webmanifest    how the page is installed on a phone

HTML goes out as it is: compressed, the length of a page would say something of the form's token in it.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from server.errors import NotFound
from server.templating import STATIC, catalogue, render, static_url, version

FOR_EVER = "public, max-age=31536000, immutable"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
PAPER = "#faf9f6"
"""The page's own colour, for the moment before it is there; chat.css calls it --paper."""


@dataclass(frozen=True)
class Asset:
    """One file. `small`: it compressed, where that makes it smaller."""

    media_type: str
    content: bytes
    small: bytes | None

    def response(self, request: Request, keep: str) -> Response:
        headers = {"Cache-Control": keep, "Vary": "Accept-Encoding"}
        content = self.content
        if self.small is not None and "gzip" in request.headers.get("accept-encoding", ""):
            content, headers["Content-Encoding"] = self.small, "gzip"
        return Response(content, headers=headers, media_type=self.media_type)


@cache
def assets() -> dict[str, Asset]:
    """Every file of static/ by its name: 130 KB, read at the first request. What editors and systems leave is none."""
    found = {}
    for path in STATIC.iterdir():
        if path.suffix not in TYPES:
            continue
        content = path.read_bytes()
        small = gzip.compress(content, mtime=0)
        found[path.name] = Asset(TYPES[path.suffix], content, small if len(small) < len(content) else None)
    return found


async def static(request: Request) -> Response:
    """An old address, of a page that was open while the server was renewed, gives today's file, once."""
    given, _, name = str(request.path_params["path"]).rpartition("/")
    asset = assets().get(name)
    if asset is None or "/" in given:
        raise NotFound(f"/static/{request.path_params['path']}: there is nothing here.")
    return asset.response(request, FOR_EVER if given == version() else "no-cache")


async def worker(request: Request) -> Response:
    return assets()["sw.js"].response(request, "no-cache")


async def offline(request: Request) -> Response:
    html = render("offline.html", request.headers.get("accept-language", ""))
    return HTMLResponse(html, headers={"Cache-Control": "no-cache", "Vary": "Accept-Language"})


async def manifest(request: Request) -> Response:
    words = catalogue(request.headers.get("accept-language", ""))
    name = words.gettext("Sparrow")
    content = {
        "name": name,
        "short_name": name,
        "description": words.gettext("A small model on your own machine. What you write stays there."),
        "lang": words.tag,
        "id": "/",
        "start_url": "/",
        "display": "standalone",
        "background_color": PAPER,
        "theme_color": PAPER,
        "icons": [
            {"src": static_url("sparrow.svg"), "sizes": "any", "type": "image/svg+xml"},
            {"src": static_url("icon-192.png"), "sizes": "192x192", "type": "image/png", "purpose": "any maskable"},
            {"src": static_url("icon-512.png"), "sizes": "512x512", "type": "image/png", "purpose": "any maskable"},
        ],
    }
    headers = {"Cache-Control": "no-cache", "Vary": "Accept-Language"}
    return JSONResponse(content, headers=headers, media_type="application/manifest+json")


routes: list[BaseRoute] = [
    Route("/static/{path:path}", static),
    Route("/sw.js", worker),
    Route("/offline", offline),
    Route("/manifest.webmanifest", manifest),
]
