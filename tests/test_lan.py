"""The real server for other devices, over http and https: what the terminal says, who comes in, what is left behind."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import ssl
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from server.access import Access
from server.announce import addresses, announce, lan_address, qr_code
from server.errors import UsageError
from server.serving import check_certificate
from server.settings import Settings
from tests.server_process import ServerProcess

SAID, ASKED, KEY, WRONG, TITLE = "mark-said", "mark-asked", "mark-of-a-key", "mark-of-a-wrong-token", "mark-of-a-title"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lan") / "data"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[ServerProcess]:
    """Of somebody whose umask keeps nothing private."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    keys.chmod(0o600)
    before = os.umask(0)
    try:
        server = ServerProcess(["--demo", "--host", "0.0.0.0", "--api-key-file", str(keys), "--data-dir", str(data)])
        server.start()
    finally:
        os.umask(before)
    try:
        yield server
    finally:
        server.__exit__(None, None, None)


def fetch(url: str, body: object = None, **headers: str) -> tuple[int, Message, str]:
    """Status, headers and text; redirects are not followed, for they are what is looked at."""
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, given)
    try:
        with urllib.request.build_opener(_Stay()).open(request, timeout=30) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def test_the_terminal_shows_the_address_of_the_network_with_the_token(server: ServerProcess, data: Path) -> None:
    token = (data / "pairing").read_text().strip()
    port = server.url.rpartition(":")[2]
    shown = re.search(r"ready:\s+(\S+)", server.output)
    assert shown and shown[1].endswith(f":{port}/?pair={token}") and "0.0.0.0" not in server.output
    assert f"http://127.0.0.1:{port}/?pair={token}" in server.output
    assert "others in your network could read along" in server.output and "█" not in server.output


def test_a_device_is_paired_once_and_chats(server: ServerProcess, data: Path) -> None:
    assert fetch(server.url + "/", Accept="text/html", Accept_Language="zh")[0] == 401
    token = (data / "pairing").read_text().strip()
    status, headers, _ = fetch(f"{server.url}/?pair={token}", Accept="text/html")
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"].partition(";")[0]
    status, headers, page = fetch(server.url + "/", Cookie=cookie)
    assert status == 200 and 'aria-label="Message"' in page
    both = f"{cookie}; {headers['Set-Cookie'].partition(';')[0]}"
    asked = {"text": f"Repeat: {SAID} " + "long " * 40, "key": "k" * 16, "conversation": None}
    status, _, reply = fetch(server.url + "/messages", asked, Cookie=both)
    assert status == 201, reply
    assert fetch(server.url + "/messages", asked)[0] == 401


def test_programs_use_keys_and_nothing_of_theirs_is_in_the_log(server: ServerProcess) -> None:
    body = {"messages": [{"role": "user", "content": SAID}], "max_tokens": 4}
    url = server.url + "/v1/chat/completions"
    assert fetch(url, body)[0] == fetch(url, body, Authorization=f"Bearer {WRONG}")[0] == 401
    assert fetch(url, body, Authorization=f"Bearer {KEY}")[0] == 200
    assert fetch(f"{server.url}/stream?message={ASKED}", Authorization=f"Bearer {KEY}")[0] == 200
    assert fetch(f"{server.url}/?pair={WRONG}&q={ASKED}")[0] == 401
    assert fetch(f"{server.url}/c/{TITLE}?pair={WRONG}", Host=f"{TITLE}.example")[0] == 403
    assert fetch(url, {"messages": TITLE, "temperature": SAID}, Authorization=f"Bearer {KEY}")[0] == 400
    for mark in (SAID, ASKED, KEY, WRONG, TITLE):
        assert mark not in server.output


def test_all_files_are_their_owners_alone(server: ServerProcess, data: Path) -> None:
    """Also those that an idle server writes, and those that its end leaves."""
    deadline = time.monotonic() + 20
    while not list(data.glob("kv/*.kv")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for _ in range(2):
        found = [data, *data.rglob("*")]
        assert {path.name for path in found} >= {"sparrow.db", "pairing", "kv"} and list(data.glob("kv/*.kv"))
        for path in found:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        server.stop()


def test_what_was_readable_is_not_any_more(server: ServerProcess, data: Path) -> None:
    """Runs on the folder of the tests above: the same pairing after a restart, and modes mended."""
    token = (data / "pairing").read_text().strip()
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    server.start()
    assert token in server.output
    for path in [data, *data.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        (Settings(host="192.168.1.5"), "http://192.168.1.5:8000/?pair=abcd-efgh-jkmn-pqrs"),
        (Settings(host="fd00::5"), "http://[fd00::5]:8000/?pair=abcd-efgh-jkmn-pqrs"),
        (Settings(host="192.168.1.5", ssl_certfile=Path("c")), "https://192.168.1.5:8000/?pair=abcd-efgh-jkmn-pqrs"),
    ],
)
def test_the_address_that_is_listened_on_is_shown(settings: Settings, there: str) -> None:
    assert addresses(settings, Access(token="abcdefghjkmnpqrs", is_local=False)).there == there


def test_who_asks_for_no_token_is_warned(capsys: pytest.CaptureFixture[str]) -> None:
    announce(Settings(host="0.0.0.0", auth=False, browser=False), Access(is_local=False))
    said = capsys.readouterr().out
    assert "WARNING: with --no-auth everybody who reaches this address can chat here." in said and "pair=" not in said


@pytest.mark.parametrize(
    ("columns", "lines", "fits"), [(80, 40, True), (32, 40, False), (80, 20, False), (0, 0, False)]
)
def test_a_qr_code_is_drawn_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, columns: int, lines: int, fits: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setattr(shutil, "get_terminal_size", lambda _=None: os.terminal_size((columns, lines)))
    drawn = qr_code("http://192.168.178.123:8000/?pair=abcd-efgh-jkmn-pqrs")
    assert bool(drawn) == fits and all(len(line) <= columns for line in drawn.splitlines())
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="ascii"))
    assert qr_code("http://x") == ""


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_on_loopback_there_is_no_other_address() -> None:
    assert addresses(Settings(), Access()).there == ""
    assert lan_address(socket.AF_INET) != "0.0.0.0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, ssl.SSLContext]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    made, trusting = authority.issue_cert("127.0.0.1", "localhost"), ssl.create_default_context()
    authority.configure_trust(trusting)
    made.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    return folder / "cert.pem", folder / "key.pem", trusting


def test_https_and_a_log_for_programs_without_the_token(
    certificate: tuple[Path, Path, ssl.SSLContext], tmp_path: Path
) -> None:
    cert, key, trusting = certificate
    flags = ["--demo", "--host", "0.0.0.0", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--log-json"]
    with ServerProcess([*flags, "--data-dir", str(tmp_path)]) as server:
        url = "https://127.0.0.1:" + server.url.rpartition(":")[2]
        assert "ready: https://" in server.output and str(tmp_path / "pairing") in server.output
        opener = urllib.request.build_opener(_Stay(), urllib.request.HTTPSHandler(context=trusting))
        with opener.open(url + "/health", timeout=30) as reply:
            assert json.loads(reply.read()) == {"status": "ok"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            opener.open(f"{url}/?pair={(tmp_path / 'pairing').read_text().strip()}", timeout=30)
        with caught.value as reply:
            assert reply.code == 303 and "; Secure" in reply.headers["Set-Cookie"]
        assert (tmp_path / "pairing").read_text().strip() not in server.output


def test_a_certificate_that_can_not_be_used_is_one_line(
    certificate: tuple[Path, Path, ssl.SSLContext], tmp_path: Path
) -> None:
    cert, key, _ = certificate
    other, nothing, locked = tmp_path / "other.pem", tmp_path / "nothing.pem", tmp_path / "locked.pem"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(other))
    nothing.write_text("hello\n")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(private.private_bytes(*form, serialization.BestAvailableEncryption(b"secret")))
    for one, two, said in [
        (tmp_path / "none", key, "--ssl-certfile"),
        (cert, tmp_path / "none", "can't be read: No such file"),
        (cert, other, "is not the key of --ssl-certfile"),
        (cert, locked, "has a password: decrypt it"),
        (nothing, key, "are no certificate and its key"),
        (key, cert, "are no certificate and its key"),
    ]:
        with pytest.raises(UsageError) as caught:
            check_certificate(Settings(ssl_certfile=one, ssl_keyfile=two))
        assert said in caught.value.message and "\n" not in caught.value.message
    check_certificate(Settings(ssl_certfile=cert, ssl_keyfile=key))
