"""Snapshots as files: what llama.cpp held for a conversation, found again by the conversation's tokens.

    head      magic, version, key, n_tokens, n_bytes, checksum of the payload, checksum of the head and the tokens
    tokens    n_tokens × int32
    payload   n_bytes, which mean something to llama.cpp only

llama.cpp trusts what it is given and may end the process over one wrong byte, so nothing leaves this file unverified.
A file that is damaged, cut, foreign or gone is no snapshot: it is deleted, and costs the time of reading a prompt.
Several threads, and several processes in one folder, may use it: files appear whole and change never.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from server.engine.prefix import MIN_RESTORE, Ids, n_common

log = logging.getLogger("sparrow.snapshots")

MAGIC, VERSION = b"SPRW", 1
_FIELDS = struct.Struct("<4sI32sIQI")
_CHECKSUM = struct.Struct("<I")
_HEAD_BYTES = _FIELDS.size + _CHECKSUM.size
CHUNK = 1 << 20
"""Bytes that are verified at a time: a file of 50 MB must not take 50 MB of a small board's memory."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A file whose head was sound when it was read. checksum: crc32 of the payload, which 15 MB take 4 ms here."""

    path: Path
    tokens: Ids
    n_bytes: int
    checksum: int


class _Unusable(Exception):
    """Damaged, cut, of another version, or for another model."""


class Archive:
    """The snapshots of one key in one folder, at most so many bytes of them."""

    def __init__(self, folder: Path, key: bytes, n_most_bytes: int, n_ctx: int) -> None:
        """Reads the heads, not the payloads. key: 32 bytes, the same exactly where payloads mean the same.

        n_ctx: snapshots of more tokens than that are never found.

        Raises OSError when the folder can't be used.
        """
        self._folder, self._key = folder, key
        self._n_most_bytes, self._n_ctx = n_most_bytes, n_ctx
        self._snapshots: dict[Path, Snapshot] = {}
        self._lock = threading.Lock()
        self._is_failing = False
        self._fetched: tuple[Snapshot, memoryview] | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        _sweep(folder)
        self._refresh()
        self._trim()

    @property
    def size(self) -> tuple[int, int]:
        """How many snapshots there are, and the bytes that llama.cpp has in them."""
        with self._lock:
            return len(self._snapshots), sum(snapshot.n_bytes for snapshot in self._snapshots.values())

    def match(self, tokens: Ids) -> tuple[Snapshot | None, int]:
        """The snapshot that shares most with the beginning of `tokens`, the smallest of equals, and how many tokens."""
        with self._lock:
            snapshots = [found for found in self._snapshots.values() if len(found.tokens) <= self._n_ctx]
        found = [(n_common(snapshot.tokens, tokens), snapshot) for snapshot in snapshots]
        n, best = max(found, key=lambda one: (one[0], -len(one[1].tokens)), default=(0, None))
        return best if n else None, n

    def read(self, snapshot: Snapshot) -> memoryview | None:
        """The payload, verified; the snapshot counts as just used. None: it can't be used, and is deleted.

        It is read once, so that a bad disk is an error here, and then mapped: new memory for it would take longer
        than all else, 58 ms of a restart for 15 MB where the system has to find it first.
        """
        fetched, self._fetched = self._fetched, None
        if fetched and fetched[0] is snapshot:
            return fetched[1]
        try:
            with snapshot.path.open("rb") as file:
                now = _head(file, snapshot.path, self._key)
                if not np.array_equal(now.tokens, snapshot.tokens) or _checksum(file) != now.checksum:
                    raise _Unusable
                data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._use(snapshot.path)
        except (OSError, _Unusable):
            self.drop(snapshot)
            return None
        return memoryview(data)[len(data) - now.n_bytes :]

    def fetch(self, snapshot: Snapshot) -> None:
        """Have the next read() of it ready: for a thread that may wait for a slow disk."""
        data = self.read(snapshot)
        self._fetched = (snapshot, data) if data is not None else None

    def drop(self, snapshot: Snapshot) -> None:
        """It is of no use: delete it."""
        with self._lock:
            self._snapshots.pop(snapshot.path, None)
        _delete(snapshot.path)

    def erase(self, find: Callable[[Ids], int | None]) -> None:
        """Delete those in whose tokens `find` finds something."""
        with self._lock:
            snapshots = [*self._snapshots.values()]
        for snapshot in snapshots:
            if find(snapshot.tokens) is not None:
                self.drop(snapshot)

    def write(self, tokens: Ids, data: memoryview) -> None:
        """Keep `data` for these tokens. What it makes superfluous goes, then the least recently used ones over quota.

        A disk that is full or can't be written is a warning in the log, one until it works again.
        """
        try:
            self._write(tokens, data)
            self._is_failing = False
        except (OSError, _Unusable) as error:
            if not self._is_failing:
                log.warning("%s: a conversation could not be saved (%s); others may be later", self._folder, error)
            self._is_failing = True

    def _write(self, tokens: Ids, data: memoryview) -> None:
        head = self._head_of(tokens, data)
        if len(head) + len(data) > self._n_most_bytes:
            return
        path = self._folder / (hashlib.blake2b(head[_HEAD_BYTES:], key=self._key, digest_size=16).hexdigest() + ".kv")
        with _temporary(path) as (file, temporary):
            file.write(head)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written = _verify(temporary, self._key)
            temporary.replace(path)
        self._use(path)
        self._refresh()
        for other in [*self._snapshots.values()]:
            if other.path != path and len(other.tokens) - n_common(other.tokens, written.tokens) < MIN_RESTORE:
                self.drop(other)
        self._trim()

    def _head_of(self, tokens: Ids, data: memoryview) -> bytes:
        raw = np.asarray(tokens, dtype="<i4").tobytes()
        fields = _FIELDS.pack(MAGIC, VERSION, self._key, len(tokens), len(data), zlib.crc32(data))
        return fields + _CHECKSUM.pack(zlib.crc32(raw, zlib.crc32(fields))) + raw

    def _refresh(self) -> None:
        """See what is in the folder: other processes write and delete there, too."""
        paths = set(self._folder.glob("*.kv"))
        found: dict[Path, Snapshot] = {}
        for path in paths:
            try:
                found[path] = self._snapshots.get(path) or _read_head(path, self._key)
            except (OSError, _Unusable):
                _delete(path)
        with self._lock:
            self._snapshots = found

    def _use(self, path: Path) -> None:
        """Its time is the newest of all, also when the clock was set back: else what is written last would go first."""
        newest = max((at for at, _, other in _sizes(self._folder) if other != path), default=0)
        at = max(time.time_ns(), newest + 1)
        os.utime(path, ns=(at, at))

    def _trim(self) -> None:
        """Keep the quota; a file's time is when it was last used, so that this outlives the process."""
        files = sorted(_sizes(self._folder), reverse=True)
        total = 0
        for _, n_bytes, path in files:
            total += n_bytes
            if total > self._n_most_bytes:
                with self._lock:
                    self._snapshots.pop(path, None)
                _delete(path)


def clear(folder: Path) -> None:
    """Delete all snapshots: none are wanted any more."""
    for _, _, path in _sizes(folder):
        _delete(path)
    _sweep(folder)


def _head(file: BinaryIO, path: Path, key: bytes) -> Snapshot:
    """Reads up to the payload. Raises _Unusable."""
    raw = file.read(_HEAD_BYTES)
    if len(raw) < _HEAD_BYTES:
        raise _Unusable
    magic, version, its_key, n_tokens, n_bytes, checksum = _FIELDS.unpack_from(raw)
    size = os.fstat(file.fileno()).st_size
    if (magic, version, its_key) != (MAGIC, VERSION, key) or size != _HEAD_BYTES + 4 * n_tokens + n_bytes:
        raise _Unusable
    tokens = file.read(4 * n_tokens)
    if zlib.crc32(tokens, zlib.crc32(raw[: _FIELDS.size])) != _CHECKSUM.unpack_from(raw, _FIELDS.size)[0]:
        raise _Unusable
    return Snapshot(path, np.frombuffer(tokens, dtype="<i4").astype(np.int32), n_bytes, checksum)


def _read_head(path: Path, key: bytes) -> Snapshot:
    with path.open("rb") as file:
        return _head(file, path, key)


def _verify(path: Path, key: bytes) -> Snapshot:
    """Reads all of the file, a piece at a time. Raises OSError or _Unusable."""
    with path.open("rb") as file:
        snapshot = _head(file, path, key)
        if _checksum(file) != snapshot.checksum:
            raise _Unusable("what was read is not what was written")
    return snapshot


def _checksum(file: BinaryIO) -> int:
    """Of all that follows."""
    checksum, room = 0, memoryview(bytearray(CHUNK))
    while n := file.readinto(room):  # type: ignore[attr-defined]
        checksum = zlib.crc32(room[:n], checksum)
    return checksum


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside `path`, for its owner only, locked while it is written; gone at the end, unless renamed."""
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, temporary
    finally:
        _delete(temporary)


def _sweep(folder: Path) -> None:
    """Delete half-written files of processes that are no more: a lock goes with its process, however that ends."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _sizes(folder: Path) -> list[tuple[int, int, Path]]:
    """(when last used, bytes, path) of each snapshot there."""
    found = []
    for path in folder.glob("*.kv"):
        with contextlib.suppress(OSError):
            about = path.stat()
            found.append((about.st_mtime_ns, about.st_size, path))
    return found


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
