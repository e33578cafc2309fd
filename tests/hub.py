"""A small hub on loopback that speaks the protocol as huggingface-hub uses it, and fails in every way asked for.

Like the real one it is two servers: the hub answers HEAD and GET of /{repo}/resolve/{revision}/{file} with the file's
commit, size and SHA-256 and a redirect; the other host, the CDN, has the bytes and knows Range.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "9217f5db79a29953eb74d5343926648285ec7e67"


@dataclass
class Faults:
    """What goes wrong. Numbers of times count down."""

    cut_at: int | None = None
    """The CDN closes the connection after this byte of the file, `cuts` times."""
    cuts: int = 1
    wrong_bytes: bool = False
    hub_status: int | None = None
    cdn_status: int | None = None
    no_range: bool = False
    pause_s: float = 0.0
    """Between chunks of 64 KiB."""
    error_code: str | None = None
    """X-Error-Code of the hub: EntryNotFound and RevisionNotFound come with 404, RepoNotFound with 401."""
    login_page: bool = False
    no_sha256: bool = False
    hang_s: float = 0.0
    """The hub accepts the connection and says nothing for that long."""


@dataclass(frozen=True)
class Request:
    server: str
    method: str
    path: str
    headers: Message


@dataclass
class Hub:
    """`with Hub({"a.gguf": content}) as hub: hub.url` ; hub.requests is what was asked, in order."""

    files: dict[str, bytes]
    repo: str = "Qwen/Qwen2.5-0.5B-Instruct-GGUF"
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    """Bytes of files that the CDN has sent."""

    def __enter__(self) -> Hub:
        self._servers = [_server(self, _HubHandler), _server(self, _CdnHandler)]
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://localhost:{self._servers[1].server_port}"

    def asked(self, server: str, method: str) -> list[Request]:
        return [request for request in self.requests if (request.server, request.method) == (server, method)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


def _server(hub: Hub, handler: type[BaseHTTPRequestHandler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    name = ""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_HEAD(self) -> None:
        self._do()

    def do_GET(self) -> None:
        self._do()

    def _do(self) -> None:
        self.hub.requests.append(Request(self.name, self.command, self.path, self.headers))
        self.answer()

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: hub.requests has it."""


class _HubHandler(_Handler):
    name = "hub"

    def answer(self) -> None:
        faults = self.hub.faults
        time.sleep(faults.hang_s)
        if faults.hub_status:
            return self.reply(faults.hub_status, {})
        if faults.login_page:
            return self.reply(200, {"Content-Type": "text/html"}, b"<html>Log in to this network</html>")
        found = re.fullmatch(rf"/{re.escape(self.hub.repo)}/resolve/([^/]+)/(.+)", self.path)
        error = faults.error_code or self._missing(found)
        if error:
            return self.reply(401 if error == "RepoNotFound" else 404, {"X-Error-Code": error})
        assert found
        self._redirect(found[2])

    def _missing(self, found: re.Match[str] | None) -> str | None:
        if found is None:
            return "RepoNotFound"
        if found[1] not in (COMMIT, "main"):
            return "RevisionNotFound"
        return None if found[2] in self.hub.files else "EntryNotFound"

    def _redirect(self, name: str) -> None:
        content = self.hub.files[name]
        git_sha1, sha256 = hashlib.sha1(content).hexdigest(), hashlib.sha256(content).hexdigest()
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{git_sha1 if self.hub.faults.no_sha256 else sha256}"',
            "ETag": f'"{git_sha1}"',
            "Accept-Ranges": "bytes",
            "Location": f"{self.hub.cdn_url}/{name}?signed={time.monotonic_ns()}",
        }
        self.reply(302, headers)


class _CdnHandler(_Handler):
    name = "cdn"

    def answer(self) -> None:
        faults, content = self.hub.faults, self.hub.files[self.path[1:].partition("?")[0]]
        if faults.cdn_status:
            return self.reply(faults.cdn_status, {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(asked[1]) if asked and not faults.no_range else 0
        if start >= len(content):
            return self.reply(416, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self._send(content, start)

    def _send(self, content: bytes, start: int) -> None:
        faults = self.hub.faults
        end = len(content)
        if faults.cut_at is not None and faults.cuts and start <= faults.cut_at < end:
            faults.cuts -= 1
            end = faults.cut_at
            self.close_connection = True
        try:
            for at in range(start, end, 1 << 16):
                piece = bytearray(content[at : min(at + (1 << 16), end)])
                if faults.wrong_bytes:
                    piece[0] ^= 1
                self.wfile.write(piece)
                self.hub.sent += len(piece)
                time.sleep(faults.pause_s)
        except OSError:  # whoever asked was killed
            self.close_connection = True
