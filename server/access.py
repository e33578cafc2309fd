"""Who may come in: the pairing token and its cookie, keys for programs, names of this server, sites that may call it.

    on loopback             everybody on this machine; with --api-key-file programs need a key, the page does not
    on any other address    who has the pairing token (a browser once, then its cookie says so), or a key, for the API
    with --no-auth          everybody

A secret is compared as a digest and in constant time, and stands nowhere but in its file and its owner's hands.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from server.errors import UsageError
from server.settings import Settings

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""For people who type a token: nothing that looks like something else."""
N_GROUPS, N_IN_GROUP = 4, 4
"""16 letters of 31 are 79 bits."""
TOKEN_FILE = "pairing"
"""In the data folder."""
MIN_KEY = 8
LOCAL_DOMAINS = ("", ".local", ".lan", ".home", ".home.arpa", ".internal", ".localdomain")
"""Where routers and systems put this machine's name. None of them can be bought, so no stranger answers for one."""

_TOKEN = re.compile(rf"[{ALPHABET}]{{{N_GROUPS * N_IN_GROUP}}}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+)(?::\d{1,5})?")

Known = Literal["", "paired", "key"]
"""Not known; all of it is open to them; the API is."""


@dataclass(frozen=True)
class Access:
    """token: "" where no pairing is needed. keys: digests. hosts: names besides addresses and localhost.
    origins: other sites that may use the API, in small letters; "*" is all of them.
    """

    token: str = ""
    keys: frozenset[bytes] = frozenset()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    is_local: bool = True
    """It listens on loopback only."""

    def goes_by(self, host: str) -> bool:
        """Whether a Host header names this server. Another name is a page of a stranger whose name's address has been
        changed to ours (DNS rebinding). With an address that can't be done."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not self.is_local

    def knows(self, secret: str) -> Known:
        """Of a pairing token as a person typed it, or of a key."""
        known: Known = ""
        if self.token and hmac.compare_digest(_digest(_plain(secret)), _digest(self.token)):
            known = "paired"
        for key in self.keys:
            if hmac.compare_digest(_digest(secret), key):
                known = "key"
        return known

    @property
    def cookie_name(self) -> str:
        """Of this pairing: cookies of one host are shared by all its ports, and two servers must not fight over one."""
        return "sparrow-" + self._derived("name")[:8]

    @property
    def cookie_value(self) -> str:
        """Not the token: other servers of this host are sent it, too."""
        return self._derived("cookie")

    def is_paired(self, cookie: str | None) -> bool:
        return bool(self.token and cookie) and hmac.compare_digest(_digest(cookie or ""), _digest(self.cookie_value))

    def _derived(self, purpose: str) -> str:
        return hmac.new(self.token.encode(), purpose.encode(), hashlib.sha256).hexdigest()


def open_access(settings: Settings, address: str) -> Access:
    """What the settings ask for, listening on `address`. Makes the pairing token where one is needed.

    Raises UsageError, in one line, for a file or a value that can't be used.
    """
    is_local = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if settings.api_key_file and not settings.auth:
        raise UsageError("--no-auth and --api-key-file exclude each other: choose one.")
    needs_token = settings.auth and not is_local
    names = {_host_name(name) for name in _listed(settings.allow_host)} | {settings.host.lower()}
    if not is_local:
        own = socket.gethostname().lower().partition(".")[0]
        names |= {own + domain for domain in LOCAL_DOMAINS} | {socket.gethostname().lower()}
    return Access(
        token=_token(settings.data_dir / TOKEN_FILE) if needs_token else "",
        keys=read_keys(settings.api_key_file) if settings.api_key_file else frozenset(),
        hosts=frozenset(names),
        origins=frozenset(_origin(text) for text in _listed(settings.cors)),
        is_local=is_local,
    )


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text):
        raise UsageError(
            f"--allow-host: {text!r} is no name of a host; give one like chat.example.org, without a port."
        )
    return text.lower().removesuffix(".")


def _origin(text: str) -> str:
    if text == "*":
        return text
    try:
        parts = urlsplit(text)
        is_origin = parts.scheme in ("http", "https") and parts.netloc == text.partition("://")[2] and parts.hostname
    except ValueError:
        is_origin = False
    if not is_origin:
        raise UsageError(f"--cors: {text!r} is no origin; give one like https://app.example.org, without a path.")
    return text.lower()


def _token(path: Path) -> str:
    """The kept one, else a new one, which is kept. Who deletes the file gets a new one, and no paired browser stays."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            made = "".join(secrets.choice(ALPHABET) for _ in range(N_GROUPS * N_IN_GROUP))
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(grouped(made) + "\n")
        path.chmod(0o600)
        token = _plain(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(
            f"{path}: the pairing token can't be kept there ({reason}); give another --data-dir."
        ) from None
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{path} holds no pairing token: delete it, and the next start makes a new one.")
    return token


def grouped(token: str) -> str:
    """As people read it: abcd-efgh-jkmn-pqrs."""
    return "-".join(token[at : at + N_IN_GROUP] for at in range(0, len(token), N_IN_GROUP))


def _plain(typed: str) -> str:
    return re.sub(r"[\s-]", "", typed).lower()


def read_keys(path: Path) -> frozenset[bytes]:
    """Digests of the keys in a file: one a line, what follows it on its line is its name; # begins a comment."""
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"--api-key-file {path} can't be read: {reason}.") from None
    if mode & 0o077:
        raise UsageError(f"--api-key-file {path} can be read by other users of this machine: run chmod 600 {path}.")
    keys = [line.split()[0] for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise UsageError(f"--api-key-file {path} holds no key: write one a line, or leave the flag out.")
    if any(len(key) < MIN_KEY for key in keys):
        raise UsageError(f"--api-key-file {path} holds a key of fewer than {MIN_KEY} letters: it could be guessed.")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise UsageError(f"--api-key-file {path} holds a key that no header can carry: use letters, digits and signs.")
    return frozenset(map(_digest, keys))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
