"""Connections that owe something for too long are closed, those that are only slow are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from server import connections
from server.connections import Connection

SHORT_S = 0.3
BIG = b"x" * 1_000_000


async def _echo(request: Request) -> Response:
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def _refuse(_request: Request) -> Response:
    return PlainTextResponse("too large", status_code=413)


async def _big(_request: Request) -> Response:
    return Response(BIG)


async def _slow(_request: Request) -> Response:
    await asyncio.sleep(2.5 * SHORT_S)
    return PlainTextResponse("late")


POST = ["GET", "POST"]
ROUTES = [Route("/echo", _echo, methods=POST), Route("/refuse", _refuse, methods=POST)]
ROUTES += [Route("/big", _big), Route("/slow", _slow)]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name, value in (
        ("HEAD_S", SHORT_S),
        ("STALL_S", SHORT_S),
        ("REST_S", SHORT_S),
        ("CHECK_S", 0.05),
        ("MAX_SILENT", 3),
    ):
        monkeypatch.setattr(connections, name, value)
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(Starlette(routes=ROUTES), http=Connection, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        bound.close()


@pytest.fixture
def wire(port: int) -> Iterator[Callable[[], socket.socket]]:
    """A new connection, with a small buffer for what comes."""
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            made = stack.enter_context(socket.socket())
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.settimeout(10)
            made.connect(("127.0.0.1", port))
            return made

        yield connect


def rest(wire: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := wire.recv(65536):
            said += piece
    return said


def test_a_silent_one_is_closed_without_a_word(wire: Callable[[], socket.socket]) -> None:
    assert rest(wire()) == b""


@pytest.mark.parametrize("before", [b"", b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_head_that_drips_is_closed_with_one(wire: Callable[[], socket.socket], before: bytes) -> None:
    """Also the second one of a connection."""
    client = wire()
    client.sendall(before)
    with contextlib.suppress(ConnectionError):
        for letter in b"GET /echo HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200:
            client.sendall(bytes([letter]))
            time.sleep(0.02)
    assert rest(client).endswith(connections.TOO_LATE)


def test_a_body_that_stops_is_not_waited_for(wire: Callable[[], socket.socket]) -> None:
    client = wire()
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    assert rest(client) == b""


def test_a_body_that_comes_slowly_is(wire: Callable[[], socket.socket]) -> None:
    client, piece = wire(), b"x" * 1024
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10240\r\n\r\n")
    for _ in range(10):
        client.sendall(piece)
        time.sleep(SHORT_S / 3)
    assert rest(client).endswith(b"10240 bytes")


def test_a_body_that_was_refused_is_let_in_for_a_while_so_that_the_refusal_is_read(
    wire: Callable[[], socket.socket],
) -> None:
    client = wire()
    client.sendall(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
    for _ in range(4):
        client.sendall(b"x" * 1_000_000)
    assert b"413" in rest(client).split(b"\r\n")[0]


def test_an_answer_that_takes_its_time_is_not_cut(wire: Callable[[], socket.socket]) -> None:
    client = wire()
    client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert rest(client).endswith(b"late")


def test_a_reader_that_takes_nothing_is_cut_and_a_slow_one_has_it_all(wire: Callable[[], socket.socket]) -> None:
    deaf, slow = wire(), wire()
    for client in (deaf, slow):
        client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    n = 0
    while piece := slow.recv(40_000):
        n += len(piece)
        time.sleep(0.005)
    assert n > len(BIG)
    time.sleep(SHORT_S)
    assert len(rest(deaf)) < len(BIG)


def test_too_many_silent_ones_make_room_the_oldest_first(wire: Callable[[], socket.socket]) -> None:
    oldest, busy = wire(), wire()
    busy.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    time.sleep(0.15)
    others = [wire() for _ in range(3)]
    assert rest(oldest) == b""
    others[0].sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert rest(others[0]).endswith(b"0 bytes") and rest(busy).endswith(b"late")


def test_a_burst_of_new_ones_is_heard_first(wire: Callable[[], socket.socket]) -> None:
    """More than may be silent, and none of them is: their requests are on the way."""
    clients = [wire() for _ in range(12)]
    for client in clients:
        client.sendall(b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert all(rest(client).endswith(b"0 bytes") for client in clients)


def test_more_than_the_system_has_files_for_are_refused_in_words(
    wire: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "n_most", 2)
    busy = [wire(), wire()]
    for client in busy:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    time.sleep(0.1)
    assert rest(wire()) == connections.FULL
    assert all(rest(client).endswith(b"late") for client in busy)
