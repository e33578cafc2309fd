"""The guard before the real app: names, sites, pairing, keys, headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from server import assets, pages
from server.access import Access, read_keys
from server.app import create_app, routes
from server.clients import client_of
from server.engine.loader import open_engine
from server.gates import is_page
from server.guard import HEADERS, Guard
from server.settings import Settings
from server.tries import Tries

TOKEN = "abcdefghjkmnpqrs"
HTML = {"accept": "text/html"}
OTHER = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
FIREFOX = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
"""Over plain http in a local network it says nothing of who asks."""
SITE = "https://app.example.org"
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

Behind = Callable[[Access], TestClient]


@pytest.fixture(scope="module")
def guarded(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guard, TestClient]]:
    data = tmp_path_factory.mktemp("data")
    guard = Guard(
        create_app(Settings(data_dir=data), open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1)), Access()
    )
    with TestClient(guard, "http://127.0.0.1:8000", follow_redirects=False) as client:
        yield guard, client


@pytest.fixture
def behind(guarded: tuple[Guard, TestClient]) -> Behind:
    """A browser that is new here, and an access of the test's own."""
    guard, client = guarded

    def one(access: Access) -> TestClient:
        guard._access, guard._tries = access, Tries()
        client.cookies.clear()
        return client

    return one


@pytest.fixture
def keys(tmp_path: Path) -> frozenset[bytes]:
    path = tmp_path / "keys"
    path.write_text("sk-right-key\n")
    path.chmod(0o600)
    return read_keys(path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_another_name_gets_nothing(behind: Behind) -> None:
    client = behind(Access())
    for path in ("/", "/v1/models", "/health", "/conversations", "/static/x.css"):
        reply = client.get(path, headers={"host": "evil.example"})
        assert reply.status_code == 403 and "--allow-host" in reply.json()["error"]["message"]
    page = client.get("/", headers={"host": "<b>evil</b>.example:80", "accept-language": "zh", **HTML})
    assert page.status_code == 403 and "麻雀不认识这个名字" in page.text and "<b>evil" not in page.text
    assert client.get("/", headers={"host": "localhost"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/chat/completions", OTHER, 403),
        ("POST", "/v1/chat/completions", {"origin": "http://localhost:3000"}, 403),
        ("POST", "/v1/chat/completions", {"sec-fetch-site": "same-site"}, 403),
        ("POST", "/v1/chat/completions", {"origin": "null"}, 403),
        ("POST", "/v1/chat/completions", {"sec-fetch-site": "same-origin"}, 200),
        ("POST", "/v1/chat/completions", {}, 200),
        ("POST", "/messages", OTHER, 403),
        ("DELETE", "/anything", OTHER, 403),
        ("GET", "/stream?message=x", {"sec-fetch-site": "cross-site"}, 403),
        ("GET", "/stream?message=x", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 403),
        ("GET", "/stream?message=x", {"origin": "https://evil.example"}, 403),
        ("GET", "/stream?message=x", FIREFOX, 403),
        ("HEAD", "/stream?message=x", FIREFOX, 403),
        ("GET", "/stream?message=x", FIREFOX | {"referer": "http://evil.example/"}, 403),
        ("GET", "/stream?message=x", FIREFOX | {"referer": "http://[x"}, 403),
        ("GET", "/stream?message=x", FIREFOX | {"referer": "http://127.0.0.1:8000/c/1"}, 200),
        ("GET", "/stream?message=x", FIREFOX | {"sec-fetch-site": "none"}, 200),
        ("GET", "/conversations", FIREFOX, 200),
        ("GET", "/conversations", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ("GET", "/v1/models", OTHER, 403),
        ("GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
        ("GET", "/", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ("GET", "/conversations", {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
        ("GET", "/manifest.webmanifest", OTHER, 200),
    ],
)
def test_another_site_makes_nobody_do_anything(
    behind: Behind, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    body: Any = CHAT if method == "POST" else None
    assert behind(Access()).request(method, path, headers=headers, json=body).status_code == status


def test_a_site_that_cors_names_may_use_the_api_and_only_that(behind: Behind) -> None:
    client = behind(Access(origins=frozenset({SITE})))
    asking = {
        "origin": SITE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    preflight = client.options("/v1/chat/completions", headers=asking)
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == SITE
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    reply = client.post("/v1/chat/completions", json=CHAT, headers={"origin": SITE, "sec-fetch-site": "cross-site"})
    assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == SITE
    wrong = client.post("/v1/chat/completions", json={}, headers={"origin": SITE})
    assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == SITE
    for path in ("/conversations", "/messages", "/export"):
        reply = client.options(path, headers=asking)
        assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers
    stranger = client.options("/v1/chat/completions", headers=asking | {"origin": "https://evil.example"})
    assert stranger.status_code == 403 and "access-control-allow-origin" not in stranger.headers
    assert stranger.headers["vary"] == "Origin"


def test_cors_for_everybody_is_a_star_and_still_no_cookies(behind: Behind) -> None:
    client = behind(Access(origins=frozenset({"*"})))
    reply = client.get("/v1/models", headers=OTHER)
    assert reply.status_code == 200 and reply.headers["access-control-allow-origin"] == "*"
    assert client.get("/conversations", headers=OTHER).status_code == 403


def test_who_is_not_paired_sees_only_that(behind: Behind) -> None:
    client = behind(Access(token=TOKEN))
    page = client.get("/c/abc?leaf=7", headers=HTML | {"accept-language": "zh-CN"})
    assert page.status_code == 401 and page.headers["cache-control"] == "no-store"
    assert (
        "这台设备还没有配对" in page.text and 'value="/c/abc?leaf=7"' in page.text and "set-cookie" not in page.headers
    )
    for path in ("/v1/models", "/conversations", "/stream?message=x", "/metrics", "/", "/nothing"):
        reply = client.get(path)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), path
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert client.post("/messages", json={}).status_code == 401
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/manifest.webmanifest").status_code == 200


def test_the_first_visit_swaps_the_token_for_a_cookie(behind: Behind) -> None:
    client = behind(Access(token=TOKEN))
    reply = client.get("/?q=a%26b&pair=ABCD-efgh-jkmn-pqrs", headers=HTML)
    assert (reply.status_code, reply.headers["location"]) == (303, "/?q=a%26b")
    assert reply.headers["cache-control"] == "no-store" and reply.headers["referrer-policy"] == "no-referrer"
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get("/", headers=HTML).status_code == 200
    assert client.get("/v1/models").status_code == 200 and "quant" in client.get("/health").json()
    assert client.post(f"/v1/chat/completions?pair={TOKEN}", json=CHAT).status_code == 200
    again = client.get("/?pair=nonsense")
    assert again.status_code == 303 and "set-cookie" not in again.headers


def test_a_token_can_be_typed(behind: Behind) -> None:
    client = behind(Access(token=TOKEN))
    wrong = client.post("/pair", data={"token": "abcd", "next": "/c/x"}, headers=HTML)
    assert (
        wrong.status_code == 401 and "That token is not the right one." in wrong.text and 'value="/c/x"' in wrong.text
    )
    assert client.get("/?pair=abcd", headers=HTML).status_code == 401
    for target, leads_to in [("/c/x?leaf=1", "/c/x?leaf=1"), ("//evil.example", "/"), ("https://evil.example", "/")]:
        client.cookies.clear()
        right = client.post("/pair", data={"token": "abcd efgh jkmn pqrs", "next": target}, headers=HTML)
        assert (right.status_code, right.headers["location"]) == (303, leads_to)
        assert client.get("/", headers=HTML).status_code == 200
    assert client.post("/pair", data={"token": TOKEN}, headers=OTHER).status_code == 403
    assert client.post("/pair", json={"token": TOKEN}).status_code == 400
    assert client.post("/pair", data={"token": TOKEN * 999}).status_code == 413


def test_programs_send_the_token_as_their_key(behind: Behind) -> None:
    client = behind(Access(token=TOKEN))
    assert client.post("/v1/chat/completions", json=CHAT, headers=bearer(TOKEN)).status_code == 200
    assert client.get("/conversations", headers=bearer(TOKEN)).status_code == 200
    for wrong in ("", "x", TOKEN[:-1], f"{TOKEN}x", "\xe9"):
        raw = {b"authorization": b"Bearer " + wrong.encode("latin-1")}
        assert client.get("/v1/models", headers=raw).status_code == 401
    assert client.get("/v1/models", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401


def test_guessing_ends_and_paired_devices_go_on(behind: Behind) -> None:
    client = behind(Access(token=TOKEN))
    client.get(f"/?pair={TOKEN}")
    kept = dict(client.cookies)
    client.cookies.clear()
    statuses = [client.get("/v1/models", headers=bearer(f"guess-{n}")).status_code for n in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    right = client.get("/v1/models", headers=bearer(TOKEN))
    assert right.status_code == 429 and 0 < int(right.headers["retry-after"]) <= 61
    page = client.get(f"/?pair={TOKEN}", headers=HTML)
    assert page.status_code == 429 and "Too many wrong tokens" in page.text
    client.cookies.update(kept)
    assert client.get("/v1/models").status_code == 200


def test_keys_on_loopback_are_for_programs(behind: Behind, keys: frozenset[bytes]) -> None:
    client = behind(Access(keys=keys))
    for path in ("/v1/models", "/stream?message=x", "/metrics"):
        assert (
            client.get(path, headers=HTML).json()["error"]["message"].startswith("The API of this server needs a key")
        )
        assert client.get(path, headers=bearer("sk-wrong-key")).status_code == 401
        assert client.get(path, headers=bearer("sk-right-key")).status_code != 401
    assert client.get("/", headers=HTML).status_code == client.get("/conversations").status_code == 200
    assert client.get("/health").json() == {"status": "ok"}


def test_keys_beyond_it_do_not_open_the_page(behind: Behind, keys: frozenset[bytes]) -> None:
    client = behind(Access(token=TOKEN, keys=keys))
    assert client.get("/v1/models", headers=bearer("sk-right-key")).status_code == 200
    reply = client.get("/conversations", headers=bearer("sk-right-key"))
    assert reply.status_code == 401 and "This key is for the API" in reply.json()["error"]["message"]
    assert client.post("/pair", data={"token": "sk-right-key"}).status_code == 401


def test_every_address_is_the_pages_or_the_apis() -> None:
    """A new address of the page has to be written into gates.py: until then it is guarded like the API."""
    of_page = {id(route) for route in [*pages.routes, *assets.routes]}
    for route in routes():
        assert isinstance(route, Route) and is_page(route.path) == (id(route) in of_page), route


def test_devices_with_one_token_are_still_different_clients() -> None:
    named: list[str] = []

    async def name(request: Request) -> Response:
        named.append(client_of(request))
        return Response()

    guard = Guard(Starlette(routes=[Route("/v1/x", name)]), Access(token=TOKEN))
    for address in ("10.0.0.1", "10.0.0.2"):
        client = TestClient(guard, "http://127.0.0.1", client=(address, 1))
        assert client.get("/v1/x", headers=bearer(TOKEN)).status_code == 200
    assert named == ["10.0.0.1", "10.0.0.2"]


def test_all_replies_have_the_headers(behind: Behind, keys: frozenset[bytes]) -> None:
    def broken(_request: Request) -> Response:
        raise RuntimeError("a mistake of ours")

    failing = TestClient(
        Guard(Starlette(routes=[Route("/v1/x", broken)]), Access()), "http://127.0.0.1", raise_server_exceptions=False
    )
    client = behind(Access(keys=keys))
    replies = [client.get(path) for path in ("/", "/v1/models", "/none", "/health", "/static/none")]
    replies += [client.get("/", headers={"host": "evil.example"}), client.put("/v1/models"), failing.get("/v1/x")]
    assert {reply.status_code for reply in replies} == {200, 401, 403, 404, 500} | {replies[6].status_code}
    for reply in replies:
        for name, value in HEADERS.items():
            assert reply.headers[name] == value, reply.request.url
        assert "server" not in reply.headers
    policy = HEADERS["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy and "unsafe-inline" not in policy
