"""Idle conversations outlive the process: their KV goes to disk when nothing else is to be done, and comes back.

Nobody waits for the disk. llama.cpp's memory is copied on the engine's thread, which owns it (18 ms for 1,500 tokens);
files are written, and brought into memory before a restore, by threads of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from server.engine.archive import Archive, clear
from server.engine.prefix import Ids, SlotTable

log = logging.getLogger("sparrow.snapshots")

SETTLED_S = 1.0
"""Seconds without work before the first conversation is saved: while people chat, the disk is left alone."""

ABANDONED_S = 60.0
"""Seconds without work after which a draft that was not sent gives way to the conversation before it."""

POLL_S = 0.05
"""Seconds between two looks at whether a file is written."""

CLOSE_S = 2.0
"""Seconds that the server's end waits for what is not saved yet."""

_HASH_FILE = "model-hash.json"


class Savable(Protocol):
    """The KV cache, as far as snapshots need it. llama.Context is one."""

    def save(self, slot: int) -> memoryview:
        """All that the slot holds."""
        ...

    def load(self, slot: int, data: memoryview) -> bool:
        """The slot holds what save() gave; False: it could not be had, and the slot is empty."""
        ...


class Snapshots:
    """The engine's thread calls it, and waits for nothing. A SlotTable knows it as its Shelf."""

    def __init__(self, memory: Savable, folder: Path | None, model: Path, settings: str, n_ctx: int, n_bytes: int):
        """folder: None keeps nothing. settings: what a saved slot depends on beside the model file's content.

        n_ctx: tokens that a slot holds. n_bytes: what all files together may take; 0 deletes those that are there.
        """
        self._memory = memory
        self._folder, self._model, self._settings = folder, model, settings
        self._n_ctx, self._n_bytes = n_ctx, n_bytes
        self._archive: Archive | None = None
        self._job: threading.Thread | None = None
        self._unhashed: Path | None = None

    def start(self) -> None:
        """Reads the index at once if the model file is the one of last time; else hashes it when nobody waits."""
        if self._folder is None:
            return
        if not self._n_bytes:
            return clear(self._folder)
        known = _known_hash(self._model, self._folder)
        if known:
            self._open(self._folder, known)
        else:
            self._unhashed = self._folder

    def _hash_unhashed(self) -> bool:
        """It takes a core for a second: not at the start, when somebody asks the first question. True: it has begun."""
        folder, self._unhashed = self._unhashed, None
        if folder:
            self._start(self._open_unknown, folder)
        return bool(folder)

    def _open_unknown(self, folder: Path) -> None:
        digest = _hash_of(self._model)
        self._open(folder, digest)
        if self._archive:
            _remember_hash(self._model, folder, digest)

    def _open(self, folder: Path, model_hash: str) -> None:
        key = hashlib.blake2b(f"{model_hash} {self._settings}".encode(), digest_size=32).digest()
        try:
            self._archive = Archive(folder, key, self._n_bytes, self._n_ctx)
        except OSError as error:
            log.warning("%s can't be used (%s): chats will be read anew after a restart", folder, error.strerror)

    def _start(self, job: Callable[..., None], *arguments: Any) -> None:
        """Raises RuntimeError when the system has no thread left."""
        thread = threading.Thread(target=job, args=arguments, name="snapshots", daemon=True)
        thread.start()
        self._job = thread

    @property
    def size(self) -> tuple[int, int]:
        """How many there are, and their bytes; for any thread."""
        return self._archive.size if self._archive else (0, 0)

    @property
    def quota(self) -> int:
        """Bytes that they may take; 0: none are kept."""
        return self._n_bytes if self._folder else 0

    # --- reading ----------------------------------------------------------------------------------------------

    def n_common(self, tokens: Ids) -> int:
        return self._archive.match(tokens)[1] if self._archive else 0

    def restore(self, slot: int, tokens: Ids) -> Ids | None:
        snapshot = self._archive.match(tokens)[0] if self._archive else None
        data = self._archive.read(snapshot) if self._archive and snapshot else None
        if self._archive is None or snapshot is None or data is None:
            return None
        if not self._memory.load(slot, data):
            self._archive.drop(snapshot)
            return None
        return snapshot.tokens

    def fetch(self, tokens: Sequence[int], slots: SlotTable, then: Callable[[], None]) -> None:
        """If a claim of `slots` would restore a snapshot, have a thread bring it from a slow disk into memory first.

        `then` is called in any case: there, or here and at once.
        """
        wanted = np.asarray(tokens, dtype=np.int32)
        if self._archive and slots.is_missed(wanted):
            thread = threading.Thread(target=self._fetch, args=(self._archive, wanted, then), name="fetch", daemon=True)
            with contextlib.suppress(RuntimeError):  # the system has none left: the disk is read when it is claimed
                return thread.start()
        then()

    def _fetch(self, archive: Archive, wanted: Ids, then: Callable[[], None]) -> None:
        snapshot, _ = archive.match(wanted)
        try:
            if snapshot:
                archive.fetch(snapshot)
        finally:
            then()

    def erase(self, find: Callable[[Ids], int | None]) -> None:
        """Delete those in whose tokens `find` finds something. It waits for what is being written: not for the engine.

        Those of a model that nobody knows yet can't be told apart, and are deleted.
        """
        if job := self._job:
            job.join()
        if self._archive:
            self._archive.erase(find)
        elif self._folder:
            clear(self._folder)

    # --- writing ----------------------------------------------------------------------------------------------

    def idle(self, slots: SlotTable) -> Iterator[float | None]:
        """Work for an idle engine, in small pieces: seconds to wait before the next one; None: nothing is left."""
        for wait_s, may_cut in ((SETTLED_S, False), (ABANDONED_S, True)):
            yield wait_s
            while self._save_one(slots, may_cut):
                yield POLL_S
        yield None

    def save_all(self, slots: SlotTable) -> Iterator[float]:
        """The same before the slots are given up: all that is idle is saved when it ends."""
        while self._save_one(slots, may_cut=True):
            yield POLL_S

    def close(self, slots: SlotTable) -> None:
        """Save what is not saved yet, for CLOSE_S at most."""
        deadline = time.monotonic() + CLOSE_S
        while self._save_one(slots, may_cut=True) and (left_s := deadline - time.monotonic()) > 0:
            if self._job:
                self._job.join(left_s)

    def _save_one(self, slots: SlotTable, may_cut: bool) -> bool:
        """Start to write the next slot that needs it. False: none does. One at a time, so that one is in memory."""
        if self._job and self._job.is_alive():
            return True
        try:
            if self._hash_unhashed():
                return True
            found = slots.next_unsaved(may_cut) if self._archive else None
            if self._archive is None or found is None:
                return False
            slot, ids = found
            self._start(self._archive.write, ids, self._memory.save(slot))
        except (MemoryError, OSError, RuntimeError) as error:
            log.warning("no memory or thread to save a conversation (%s); the next one may find some", error)
        return True


def _identity(model: Path) -> dict[str, Any]:
    """What changes with a file's content, without reading it."""
    about = model.stat()
    return {"path": str(model.resolve()), "size": about.st_size, "mtime_ns": about.st_mtime_ns}


def _known_hash(model: Path, folder: Path) -> str | None:
    """The hash of the model file, if it is the one that was hashed last: 350 MB take 0.5 s here, seconds on a Pi."""
    try:
        known = json.loads((folder / _HASH_FILE).read_bytes())
        return str(known.pop("hash")) if known.keys() > {"hash"} and known | _identity(model) == known else None
    except (OSError, ValueError, AttributeError):
        return None


def _hash_of(model: Path) -> str:
    digest = hashlib.blake2b(digest_size=32)
    with model.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _remember_hash(model: Path, folder: Path, digest: str) -> None:
    temporary = folder / f"{_HASH_FILE}.{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(_identity(model) | {"hash": digest}))
        temporary.replace(folder / _HASH_FILE)
