"""Wrong tokens and keys, by address: who tries many different ones has to wait. The same wrong one again is no guess:
a program with an old key locks nobody out."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from dataclasses import dataclass, field

from server.errors import TooManyTries

N_TRIES, WINDOW_S = 10, 60.0
N_ADDRESSES = 1000
"""Remembered at most: the oldest goes, so that many senders fill no memory."""


@dataclass
class _Wrong:
    since: float
    digests: set[bytes] = field(default_factory=set)


class Tries:
    def __init__(self) -> None:
        self._wrong: dict[str, _Wrong] = {}

    def refuse_guessing(self, address: str) -> None:
        """Raises TooManyTries while this address has to wait; right ones wait too, else waiting would be none."""
        wrong = self._wrong.get(_network(address))
        if wrong is None:
            return
        left = wrong.since + WINDOW_S - time.monotonic()
        if left <= 0:
            del self._wrong[_network(address)]
        elif len(wrong.digests) >= N_TRIES:
            raise TooManyTries(int(left) + 1)

    def note(self, address: str, secret: str) -> None:
        """It was wrong."""
        wrong = self._wrong.setdefault(_network(address), _Wrong(time.monotonic()))
        wrong.digests.add(hashlib.sha256(secret.encode("utf-8", "replace")).digest())
        if len(self._wrong) > N_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]


def _network(address: str) -> str:
    """One home or machine: of IPv6 it has 2⁶⁴ addresses."""
    try:
        given = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ipaddress.ip_network((given, 64), strict=False)) if given.version == 6 else str(given)
