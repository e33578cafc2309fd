"""Who shares the machine with whom: a browser's session, a key, an address."""

from __future__ import annotations

import pytest
from starlette.requests import HTTPConnection

from server.clients import client_of
from server.owners import client_of_owner

SESSION = "abcdefghijklmnopqrstuv"


def connection(address: str = "10.0.0.5", **headers: str) -> HTTPConnection:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return HTTPConnection({"type": "http", "headers": raw, "client": (address, 50000)})


def test_a_session_comes_before_a_key_and_that_before_an_address() -> None:
    key = "Bearer sk-a"
    assert client_of(connection(cookie=f"sparrow={SESSION}", authorization=key)) == client_of_owner(SESSION)
    assert client_of(connection(authorization=key)) == client_of(connection("10.0.0.6", authorization=key))
    assert client_of(connection(authorization=key)) != client_of(connection(authorization="Bearer sk-b"))
    assert client_of(connection()) == "10.0.0.5"


def test_no_secret_stands_in_the_name() -> None:
    assert SESSION not in client_of(connection(cookie=f"sparrow={SESSION}"))
    assert "sk-secret" not in client_of(connection(authorization="bearer sk-secret"))


@pytest.mark.parametrize("header", ["Basic eDp5", "Bearer", "Bearer  ", ""])
def test_what_is_no_key_is_none(header: str) -> None:
    assert client_of(connection(authorization=header)) == "10.0.0.5"
    assert client_of(connection(cookie="sparrow=short")) == "10.0.0.5"
