"""A tied model's table of tokens, read from the file where it is needed instead of kept in memory.

The table serves two purposes: a token looks one row up, and each step multiplies all rows with the model's state, two
fifths of the bytes that a step reads. Our own files (scripts/quantize.py, apart.py) hold it as token_embd.weight in 8
bits and, for the multiplication alone, as output.weight in 4. Four bits tell safely which tokens are among the best;
how good each of those is, their rows in the file say. So a step reads a fifth less, the process takes 78 MB less than
with one 8-bit table, and what is sampled is what 8 bits give: 40 rows take 0.1 ms.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server import gguf_file
from server.engine.topk import Best, Logits, top_ids
from server.errors import EngineFailed, SparrowError
from server.gguf_file import OUTPUT, REPEATS, TOKEN_EMBD

Rows = npt.NDArray[np.float32]

N_BEST = 40
"""Logits that are computed again: the official sampling chooses from the best 20."""

N_SEEN = 160
"""Logits that are looked at for that: enough for the official sampling, whose penalties reach 84."""

ARCHITECTURES = {"qwen2"}
"""Others may treat a row that comes as a vector, as an image does, unlike a token's: Gemma scales only the latter."""

_BLOCK = np.dtype([("scale", "<f2"), ("values", np.int8, 32)])
"""Q8_0: 32 weights are whole numbers times one scale."""

_N_HEADER = 32 << 20
"""Bytes in which a header ends: Qwen's has 6 MB."""

_MADV_DONTNEED, _MADV_NOHUGEPAGE = 4, 15
_N_FORGOTTEN = 16
"""How often, while a file is loaded, what was read of it is let go."""


class Table:
    """token_embd.weight of one file, Q8_0. The engine's thread only."""

    def __init__(self, path: Path, start: int, n_embd: int, n_bytes: int) -> None:
        """start: bytes before the first row. n_bytes: of all rows; the system reads them ahead if it has the memory."""
        self._path = path
        self._file = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):  # row by row, an SD card would take 0.5 ms for each
            os.posix_fadvise(self._file, start, n_bytes, os.POSIX_FADV_WILLNEED)
        self._start, self._n_embd, self._row_bytes = start, n_embd, n_embd // 32 * _BLOCK.itemsize

    def rows(self, ids: Sequence[int]) -> Rows:
        """[len(ids), n_embd]. Raises EngineFailed when the file can't be read: a stick that was pulled out."""
        n = self._row_bytes
        try:
            data = b"".join([os.pread(self._file, n, self._start + at * n) for at in ids])
            return unpacked(data, len(ids), self._n_embd)
        except (OSError, ValueError) as error:
            raise EngineFailed(f"{self._path} can't be read any more ({error}): start the server again.") from None

    def correct(self, logits: Logits, state: npt.NDArray[np.float32]) -> Best:
        """Compute the best of `logits` again, and return the best of the result: whoever chooses looks at no others.

        state: [n_embd], what the output layer was given. Raises as rows().
        """
        seen = top_ids(logits, N_SEEN)
        best = seen[top_ids(logits[seen], N_BEST)]
        logits[best] = self.rows(best.tolist()) @ state
        return Best(seen, len(seen) - N_BEST)  # so many are as they were, and nothing unseen is above them

    def close(self) -> None:
        os.close(self._file)


def unpacked(data: bytes, n_rows: int, n_embd: int) -> Rows:
    """[n_rows, n_embd] of rows in Q8_0. Raises ValueError when some are missing."""
    blocks = np.frombuffer(data, dtype=_BLOCK).reshape(n_rows, n_embd // 32)
    return (blocks["values"] * blocks["scale"].astype(np.float32)[:, :, None]).reshape(n_rows, n_embd)


def open_table(path: Path) -> Table | None:
    """For a file whose output layer is a smaller copy of its table, as our scripts make it; else None."""
    found = _find(path)
    return Table(path, *found) if found else None


def n_loaded_bytes(path: Path) -> int:
    """What loading the file takes of the memory: all of it but a table that stays where it is. 0: there is none."""
    if not path.exists():
        return 0
    found = _find(path)
    return path.stat().st_size - (found[2] if found else 0)


def _find(path: Path) -> tuple[int, int, int] | None:
    """Bytes before the table's first row, n_embd, bytes of the table; None: this is no such file."""
    try:
        file = gguf_file.read(path) if _is_marked(path) else None
    except (SparrowError, OSError, ValueError):
        return None  # llama.cpp says better what is wrong with it
    table, output = (file.tensor(TOKEN_EMBD), file.tensor(OUTPUT)) if file else (None, None)
    if file is None or table is None or output is None or table.type.name != "Q8_0":
        return None
    if not file.meta.get(REPEATS) or file.meta.get("general.architecture") not in ARCHITECTURES:
        return None
    return file.data_start + table.offset, table.shape[0], table.n_bytes


def _is_marked(path: Path) -> bool:
    """Whether the whole header is worth being read, which takes a second on a small board."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return data.find(REPEATS.encode(), 0, _N_HEADER) >= 0


def forgetting(path: Path, on_progress: Callable[[float], bool]) -> Callable[[float], bool]:
    """on_progress for a file that is mapped while it is loaded: what was copied out of it leaves the memory."""
    n_done = 0

    def progress(done: float) -> bool:
        nonlocal n_done
        if done * _N_FORGOTTEN >= n_done:
            n_done += 1
            forget(path)
        return on_progress(done)

    return progress


def forget(path: Path) -> None:
    """Take the mapped pages of this file out of this process; one that is needed comes back from the system's cache.

    Linux only: elsewhere they stay until the memory is needed.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    name = os.path.realpath(path)
    for line in lines:
        if line.endswith(name):
            first, end = (int(place, 16) for place in line.split()[0].split("-"))
            for advice in (_MADV_NOHUGEPAGE, _MADV_DONTNEED):  # else one page would bring 2 MB of others back
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), advice)
