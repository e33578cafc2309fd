"""What stands before everything that is served, the page of the loading model too: pure ASGI, nothing gets past it.

1. Host: a name that is not ours is a stranger's page that was given our address (DNS rebinding): 403.
2. Sites: what another site's page sends is refused, unless --cors names it: then the API, and only that, is open to it.
3. Pairing: ?pair=TOKEN, or POST /pair from the page that asks for it, is swapped for a cookie by a 303.
4. Who has neither cookie nor key where one is needed gets 401; wrong guesses are limited.

Every reply gets the security headers. The routes behind learn from the scope whom they talk to (`clients`).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import body, cors
from server.access import Access, Known
from server.api.errors import error_json
from server.clients import KNOWN, PAIRED, bearer
from server.errors import Forbidden, InvalidRequest, SparrowError, TooManyTries, Unauthorized
from server.gates import ACTING, FORMS, OPEN, is_page
from server.security import refuse_other_sites, refuse_silent_browsers
from server.session import COOKIE_S
from server.templating import render
from server.tries import Tries

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class _UnknownHost(Forbidden):
    code = "unknown_host"

    def __init__(self, host: str) -> None:
        self.host = host.encode("ascii", "replace").decode()[:100]
        super().__init__(
            f"This server does not go by the name {self.host!r}: open the address that it shows in its terminal, or "
            "start it with --allow-host and that name."
        )


class _WrongToken(Unauthorized):
    """target: where the person wanted to go."""

    def __init__(self, target: str) -> None:
        super().__init__("This is not the pairing token that Sparrow shows in its terminal.")
        self.target = target


class Guard:
    """`Guard(app, access)` is an ASGI application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._tries = Tries()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request[Any](scope, receive)
        added = HEADERS | cors.headers(self._access, request)
        try:
            reply = await self._reply(request)
        except SparrowError as error:
            reply = self._refusal(request, error)
        except ClientDisconnect:  # in the middle of its token
            return
        await (reply or self._app)(scope, receive, _with_headers(send, added))

    async def _reply(self, request: Request[Any]) -> Response | None:
        """What is said instead of what was asked for; None lets it through. Raises SparrowError to refuse it."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._access.goes_by(hosts[0]):
            raise _UnknownHost(", ".join(hosts))
        is_allowed_site = cors.is_allowed(self._access, request)
        if is_allowed_site and cors.is_preflight(request):
            return cors.preflight(request)
        if not is_allowed_site and not _is_harmless(request):
            _refuse_other_sites(request)
            if request.method in ("GET", "HEAD") and request.scope["path"] in ACTING:
                refuse_silent_browsers(request.headers)
        if self._access.token and request.method == "POST" and request.scope["path"] == "/pair":
            return await self._posted_token(request)
        if self._access.token and request.method == "GET" and "pair" in request.query_params:
            return self._swap(request, request.query_params["pair"], _without_token(request))
        self._admit(request)
        return None

    async def _posted_token(self, request: Request[Any]) -> Response:
        """The form of the page that asks for it."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise InvalidRequest("Send this form from Sparrow's own page.")
        raw = await body.read(request, 8000, "send the token only")
        form = parse_qs(raw.decode("utf-8", "replace"))
        return self._swap(request, form.get("token", [""])[0], form.get("next", ["/"])[0])

    def _swap(self, request: Request[Any], typed: str, target: str) -> Response:
        """A cookie for the token, and on to `target`."""
        target = target if _is_here(target) else "/"
        reply = RedirectResponse(target, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        if self._is_paired(request):
            return reply
        if self._known(request, typed) != "paired":
            raise _WrongToken(target)
        reply.set_cookie(
            self._access.cookie_name,
            self._access.cookie_value,
            max_age=COOKIE_S,
            httponly=True,
            samesite="lax",
            secure=request.scope["scheme"] == "https",
        )
        return reply

    def _admit(self, request: Request[Any]) -> None:
        """Notes in the scope who it is. Raises Unauthorized."""
        path, of_page = request.scope["path"], is_page(request.scope["path"])
        if path.startswith(OPEN) or not (self._access.token or (self._access.keys and not of_page)):
            return
        known = "paired" if self._is_paired(request) else self._known(request, bearer(request))
        request.scope[KNOWN], request.scope[PAIRED] = bool(known), known == "paired"
        if known == "paired" or (known == "key" and not of_page) or path == "/health":
            return
        raise Unauthorized(self._how_to_come_in(known))

    def _is_paired(self, request: Request[Any]) -> bool:
        return self._access.is_paired(request.cookies.get(self._access.cookie_name, ""))

    def _known(self, request: Request[Any], secret: str) -> Known:
        """Raises TooManyTries."""
        if not secret:
            return ""
        address = request.client.host if request.client else ""
        self._tries.refuse_guessing(address)
        known = self._access.knows(secret)
        if not known:
            self._tries.note(address, secret)
        return known

    def _how_to_come_in(self, known: Known) -> str:
        if known == "key":
            return "This key is for the API: the page needs the pairing token that Sparrow shows in its terminal."
        if self._access.token:
            return (
                "This server answers only to devices that are paired with it: open the address with ?pair= that it "
                "shows in its terminal, or send the token that stands there as Authorization: Bearer."
            )
        return "The API of this server needs a key of its --api-key-file, as Authorization: Bearer; this was none."

    def _refusal(self, request: Request[Any], error: SparrowError) -> Response:
        """For a browser a page in its reader's language; for programs the usual JSON."""
        headers = {"Cache-Control": "no-store"}
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        if isinstance(error, TooManyTries):
            headers["Retry-After"] = str(error.retry_after)
        page = self._page(request, error) if "text/html" in request.headers.get("accept", "") else None
        if page is None:
            return JSONResponse(error_json(error), status_code=error.status, headers=headers)
        headers |= {"Vary": "Accept-Language, Cookie", "Referrer-Policy": "strict-origin"}
        return HTMLResponse(page, status_code=error.status, headers=headers)

    def _page(self, request: Request[Any], error: SparrowError) -> str | None:
        language = request.headers.get("accept-language", "")
        if isinstance(error, _UnknownHost):
            return render("host.html", language, host=error.host)
        if not self._access.token or not isinstance(error, (Unauthorized, TooManyTries)):
            return None
        target = error.target if isinstance(error, _WrongToken) else _without_token(request)
        wait_s = error.retry_after if isinstance(error, TooManyTries) else 0
        return render("pair.html", language, target=target, wait_s=wait_s, is_wrong=isinstance(error, _WrongToken))


def _without_token(request: Request[Any]) -> str:
    """The address that was asked for."""
    rest = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "pair"])
    path = "/" if request.scope["path"] == "/pair" else quote(request.scope["path"])
    return path + ("?" + rest if rest else "")


def _is_here(target: str) -> bool:
    """A path of this server: //host and /\\host lead elsewhere."""
    return target.startswith("/") and not target.startswith("//") and "\\" not in target and target.isprintable()


def _refuse_other_sites(request: Request[Any]) -> None:
    try:
        refuse_other_sites(request.headers)
    except Forbidden:
        if is_page(request.scope["path"]):
            raise
        raise Forbidden(
            "This was sent from a page of another site: start Sparrow with --cors and that site's origin if it may."
        ) from None


def _is_harmless(request: Request[Any]) -> bool:
    """A link on another site may lead here; its page may embed nothing of ours, and not make the model work."""
    headers, path = request.headers, request.scope["path"]
    if path.startswith(FORMS):
        return True
    if request.method not in ("GET", "HEAD") or path in ACTING:
        return False
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return "sec-fetch-site" not in headers or path.startswith(OPEN) or is_link


def _with_headers(send: Send, added: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in added.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
