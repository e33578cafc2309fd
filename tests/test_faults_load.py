"""500 connections that say nothing, 100 readers of a byte a second, a request of 50 MB: the others notice nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults import HUNDRED, Person, Reply, assert_well, send
from tests.server_process import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at a process through /proc, or limits it")

N_SILENT, N_SLOW = 500, 100
MANY_MB = 50
QUESTION = [{"role": "user", "content": "Count from 1 to 100."}]
STREAM = json.dumps({"messages": QUESTION, "stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 40})
"""An answer that is larger than what the system takes for a slow reader."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    flags = ["--demo", "--queue", "300", "--data-dir", str(tmp_path_factory.mktemp("data"))]
    with ServerProcess(flags) as server:
        yield server
        assert_well(server)
        assert "Traceback" not in server.output, server.output


@pytest.fixture
def wires(server: ServerProcess) -> Iterator[contextlib.ExitStack]:
    """Connections that are closed at the end; this process may have as many as the test needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
    with contextlib.ExitStack() as stack:
        yield stack
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(server: ServerProcess, wires: contextlib.ExitStack, buffer: int = 0) -> socket.socket:
    wire = wires.enter_context(socket.socket())
    if buffer:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    wire.settimeout(30)
    wire.connect(("127.0.0.1", urlsplit(server.url).port))
    return wire


def post(n_bytes: int) -> bytes:
    """The head of a question of so many bytes."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {n_bytes}\r\n\r\n".encode()


def n_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def memory_mb(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1000


def test_500_that_say_nothing_keep_nobody_out(server: ServerProcess, wires: contextlib.ExitStack) -> None:
    """Half of them began a head that never ends. The oldest make room; the newest are still there."""
    before = n_files(server)
    silent = [connect(server, wires) for _ in range(N_SILENT // 2)]
    time.sleep(1.1)  # longer than a new connection is waited for
    silent += [connect(server, wires) for _ in range(N_SILENT // 2)]
    for wire in silent[::2]:
        with contextlib.suppress(OSError):  # it was closed already
            wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Drip: ")
    assert_well(server)
    assert n_files(server) - before < N_SILENT * 0.6, "they hold no more of the server than it allows"
    assert silent[1].recv(1) == b"", "the oldest were let go"
    newest = silent[-1]
    newest.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert newest.recv(15) == b"HTTP/1.1 200 OK"


def test_a_system_that_allows_few_files_is_told_and_served(tmp_path: Path) -> None:
    """140 files: too many connections are refused in words, and the database still opens its own."""
    limit = ["prlimit", "--nofile=140:140", "--"]
    with (
        ServerProcess(["--demo", "--data-dir", str(tmp_path)], inside=limit) as server,
        contextlib.ExitStack() as wires,
    ):
        streams = []
        for _ in range(60):
            streams.append(connect(server, wires))
            streams[-1].sendall(post(100_000))
            time.sleep(0.005)
        said = [wire.recv(1000) for wire in streams[-5:]]
        assert all(text.startswith(b"HTTP/1.1 503") and b"try again" in text for text in said), said
        for wire in streams:
            wire.close()
        deadline = time.monotonic() + 20
        while n_files(server) > 60:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert_well(server)


def test_100_readers_of_a_byte_a_second_hold_nobody(server: ServerProcess, wires: contextlib.ExitStack) -> None:
    """Their answers are computed all the same, wait in little memory, and leave the slots to others."""
    person = Person(server)
    assert person.ask("Count from 1 to 100.") == HUNDRED
    before = memory_mb(server)
    slow = [connect(server, wires, 2048) for _ in range(N_SLOW)]
    over = threading.Event()

    def read() -> None:
        """A byte a second of each of them."""
        while not over.wait(1 / N_SLOW):
            for wire in slow:
                with contextlib.suppress(OSError):
                    wire.recv(1)
                if over.wait(1 / N_SLOW):
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for at, wire in enumerate(slow, 1):
            wire.sendall(post(len(STREAM)) + STREAM.encode())
            if at % 50 == 0:
                assert_well(server)
        assert person.ask("Count from 1 to 100.") == HUNDRED
        assert memory_mb(server) - before < MANY_MB
    finally:
        over.set()
        reader.join()
    person.finds_all()


BIG = 50_000_000


def upload(server: ServerProcess, path: str, expect: bool = False, more: str = "") -> tuple[Reply, int]:
    """50 MB to be sent; the reply, and how much of them had to be sent for it."""
    wire = socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=30)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {BIG}\r\n"
    n_sent, piece = 0, b" " * 100_000
    with wire:
        wire.sendall((head + ("Expect: 100-continue\r\n" if expect else "") + more + "\r\n").encode())
        reply = http.client.HTTPResponse(wire, method="POST")
        while not expect and n_sent < BIG:
            wire.sendall(piece)
            n_sent += len(piece)
        reply.begin()
        return Reply(reply.status, dict(reply.getheaders()), reply.read()), n_sent


@pytest.mark.parametrize("path", ["/messages", "/v1/chat/completions", "/stream", "/drafts", "/preferences"])
def test_a_request_of_50_mb_is_refused_and_its_sender_reads_why(server: ServerProcess, path: str) -> None:
    before = memory_mb(server)
    reply, _ = upload(server, path)
    assert reply.status == 413 and "larger than" in reply.message and "less" in reply.message
    assert memory_mb(server) - before < 20, "it is not kept"


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [("/v1/chat/completions", "", 413), ("/nothing", "", 404), ("/messages", "Origin: https://evil.example\r\n", 403)],
)
def test_also_who_wants_the_connection_closed_reads_why(
    server: ServerProcess, path: str, more: str, status: int
) -> None:
    """As small libraries do, and nginx: the reply would be lost with what they still send."""
    before = memory_mb(server)
    reply, _ = upload(server, path, more="Connection: close\r\n" + more)
    assert reply.status == status and reply.message
    assert memory_mb(server) - before < 20, "it is not kept"


def test_who_asks_first_sends_nothing(server: ServerProcess) -> None:
    """Expect: 100-continue is answered at once: what is announced is enough to refuse it."""
    reply, n_sent = upload(server, "/messages", expect=True, more="Connection: close\r\n")
    assert (reply.status, n_sent) == (413, 0) and "larger than" in reply.message


def test_an_import_larger_than_50_mb_too(server: ServerProcess) -> None:
    head = {"Content-Length": str(BIG + 1), "Expect": "100-continue"}
    reply = send(server, "POST", "/import", None, head)
    assert reply.status == 413 and "split it" in reply.message
