"""Conversations in SQLite: one writer thread with a queue, readers beside it, nothing of it on the event loop.

Messages are a tree (`parent_id`): a retry is a new branch beside the old answer, and nothing is overwritten. A row is
"streaming" while its answer is being written; what a crash leaves so is "interrupted" from the next start on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeVar

from server import rows, search
from server.errors import StoreBusy, StoreFailed, UsageError
from server.migrations import migrate
from server.preferences import ChatSettings
from server.records import Ending, Exchange, Message, Progress

P = ParamSpec("P")
T = TypeVar("T")

NONE = ChatSettings()
INDEXES: tuple[Literal["message_index", "title_index"], ...] = ("message_index", "title_index")

N_READERS = 2

BUSY_S, STILL_BUSY_S = 3.0, 0.2
"""Seconds to wait for another process that holds the file (a backup, an sqlite3 shell); and, once that was in vain,
until it lets go: writes wait in one line, and a person stands at its end."""


class Store:
    """Each method runs whole on a thread of the store, as one transaction. Raises StoreFailed when the disk does.

    The methods are what an answer needs; for all else, `read` and `write` run a function of the modules beside.
    """

    def __init__(self, path: Path) -> None:
        """Use `Store.open`."""
        self._path = path
        self._writer = ThreadPoolExecutor(1, "store-writer")
        self._readers = ThreadPoolExecutor(N_READERS, "store-reader")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    @classmethod
    async def open(cls, path: Path) -> Store:
        """Make or open the database and bring its schema up to date.

        Raises UsageError when the folder can't be written, the file is no database, or a newer Sparrow wrote it.
        """
        store = cls(path)
        try:
            await asyncio.get_running_loop().run_in_executor(store._writer, store._prepare)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        """Finish the writes that wait, then close the file. May be called twice."""
        for pool in (self._writer, self._readers):
            await asyncio.to_thread(pool.shutdown)
        while self._connections:
            self._connections.pop().close()

    async def message(self, owner: str, id: int) -> Message:
        """Raises NotFound also when it belongs to somebody else: nobody learns that it exists."""
        return await self.read(rows.message, owner, id)

    async def exchange(self, owner: str, key: str) -> Exchange | None:
        """What was begun with this key, if anything was."""
        return await self.read(rows.exchange, owner, key)

    async def begin(
        self,
        owner: str,
        conversation_id: str | None,
        text: str,
        key: str,
        n_dropped: int = 0,
        *,
        below: int | None | Literal["shown"] = "shown",
        settings: ChatSettings = NONE,
    ) -> Exchange:
        """Add a question and its empty answer, and show them; a conversation_id of None makes a conversation for them.

        `key` is the sender's own name for this question: sent again (a double click, a lost reply), it adds nothing.
        below: the message that it follows, None for a first one; settings: of a new conversation.
        """
        return await self.write(rows.begin, owner, conversation_id, text, key, n_dropped, below, settings)

    async def begin_again(self, question: Message, n_dropped: int = 0) -> Message:
        """Another empty answer to the question, beside those that it has."""
        return await self.write(rows.add_answer, question, n_dropped)

    async def save(self, answer_id: int, said: Progress) -> None:
        """Keep an answer as far as it goes."""
        await self.write(rows.save, answer_id, said)

    async def progress(self, answer_id: int) -> Progress:
        """What was saved of an answer that was cut off."""
        return await self.read(rows.progress, answer_id)

    async def resume(self, answer_id: int, n_dropped: int) -> Message:
        """Mark an answer that was cut off as one that is being written, for one more time."""
        return await self.write(rows.resume, answer_id, n_dropped)

    async def finish(self, answer_id: int, end: Ending) -> None:
        """Write the whole answer and how it ended."""
        await self.write(rows.finish, answer_id, end)

    async def forget(self) -> None:
        """Leave no word of what was deleted in the search's indexes either. A full disk leaves them until the next."""
        with contextlib.suppress(StoreFailed):
            for index in INDEXES:
                goes_on = False
                while await self.write(search.forget, index, goes_on=goes_on):
                    goes_on = True

    async def read(
        self, query: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function of `rows`, `conversations` or `branches` that only reads."""
        # Also a read is a transaction: its statements see one state of the database.
        work = _with(query, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._run, "BEGIN", work)

    async def write(
        self, change: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run one that writes: all of it, or nothing when it raises."""
        work = _with(change, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._run, "BEGIN IMMEDIATE", work)

    def _run(self, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            result = _transaction(self._connection(), begin, work)
            self._wait_for_others(BUSY_S)
            return result
        except sqlite3.DatabaseError as error:
            if _is_held(error):
                self._wait_for_others(STILL_BUSY_S)
                raise StoreBusy(f"Another program holds {self._path}: close it, then send this again.") from error
            way = "if its disk is full, make room there, then send this again"
            raise StoreFailed(f"{self._path} can't be read or written ({error}): {way}.") from error

    def _wait_for_others(self, seconds: float) -> None:
        """At most so long, from now on and on this thread."""
        if self._local.busy_s != seconds:
            self._connection().execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")
            self._local.busy_s = seconds

    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            # isolation_level=None: transactions are ours alone. Only `close` uses it from another thread.
            db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._connections.append(db)
            # NORMAL: a power cut may take the last moments, never the database; an SD card syncs in 10-100 ms.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only let go
            self._local.db, self._local.busy_s = db, BUSY_S
        return db

    def _prepare(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What people write here is nobody else's. SQLite gives its -wal and -shm files the mode of this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            db = self._connection()
            db.execute("PRAGMA journal_mode = WAL")
            _transaction(db, "BEGIN IMMEDIATE", migrate)
            _transaction(db, "BEGIN IMMEDIATE", rows.interrupt)
        except OSError as error:
            raise UsageError(
                f"{self._path} can't be written ({error.strerror}): choose another folder with --data-dir."
            ) from error
        except sqlite3.DatabaseError as error:
            way = "move it away, or choose another folder with --data-dir"
            if _is_held(error):
                way = "another program holds it; close that one, or choose another folder with --data-dir"
            raise UsageError(f"{self._path} can't be used ({error}): {way}.") from error


def _is_held(error: sqlite3.DatabaseError) -> bool:
    """SQLite's own texts; its codes have names only from Python 3.11 on."""
    return "is locked" in str(error)


def _with(
    work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[sqlite3.Connection], T]:
    return lambda db: work(db, *args, **kwargs)


def _transaction(db: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute(begin)
    try:
        result = work(db)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk has rolled it back already
            db.execute("ROLLBACK")
        raise
    return result
