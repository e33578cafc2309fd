"""Whose a request is, for sharing the machine out fairly: a browser's session, else an API key, else an address."""

from __future__ import annotations

from typing import Any

from starlette.requests import HTTPConnection

from server.owners import client_of_owner, digest
from server.session import session_of

KNOWN, PAIRED = "sparrow.known", "sparrow.paired"
"""What the guard notes in a request's scope."""


def client_of(connection: HTTPConnection[Any]) -> str:
    """A name that is the same for all requests of one client, and holds no secret: it may stand in a log.

    A page's session comes first: several browsers behind one proxy have one address.
    """
    session = session_of(connection)
    if session:
        return client_of_owner(session)
    key = bearer(connection)
    if key and not connection.scope.get(PAIRED):  # all devices share one pairing token
        return "key " + digest(key)
    return connection.client.host if connection.client else ""


def is_known(connection: HTTPConnection[Any]) -> bool:
    """False for who may only learn that the server is up: see Guard."""
    return bool(connection.scope.get(KNOWN, True))


def bearer(connection: HTTPConnection[Any]) -> str:
    """The key of an `Authorization: Bearer …` header; "" where there is none."""
    kind, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""
