"""The folder where models lie: one writer at a time, enough room, and files that appear whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.errors import UsageError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder until the block ends; waits for another process that fetches or quantizes there.

    The system drops the lock with the process, however that ends: no stale file can block the next start.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{folder} can't be used as a folder for models: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is writing in {folder}: waiting for it.", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def need_room(folder: Path, n_bytes: int, purpose: str) -> None:
    """Raises UsageError unless the folder's disk has n_bytes and a little more free."""
    free, wanted = shutil.disk_usage(folder).free, n_bytes + 32_000_000
    if free < wanted:
        raise UsageError(
            f"{purpose} needs {megabytes(wanted)} in {folder} and {megabytes(free)} are free: free some space."
        )


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a finished file to its name, so that after a power cut the name holds all of it or what it held before."""
    for path in (partial, partial.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    partial.replace(target)


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 9.5e6 else f"{n_bytes / 1e6:.1f} MB"
