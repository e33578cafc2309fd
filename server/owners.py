"""What an owner of conversations, who is a session's secret, is called where others may read it."""

from __future__ import annotations

import hashlib


def digest(secret: str) -> str:
    """A short name of a secret, from which nobody finds it again."""
    return hashlib.sha256(secret.encode()).hexdigest()[:16]


def client_of_owner(owner: str) -> str:
    """What `clients.client_of` says of a request of this session."""
    return "session " + digest(owner)
