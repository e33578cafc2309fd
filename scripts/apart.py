"""A copy of a GGUF in the layout that the server answers fastest with: the output layer apart from the table of tokens.

A tied model multiplies its whole 8-bit table in every step. In the copy a 4-bit output layer does that, and the server
computes the best logits again from the table (server/engine/table.py). quantize.py makes files that way where it can;
this is for those that come from elsewhere. Only the server's own: the original stays as it is.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import folder
import numpy as np
import numpy.typing as npt
from folder import megabytes
from tqdm import tqdm

from server import gguf_copy, gguf_file
from server.engine.table import ARCHITECTURES, unpacked
from server.errors import UsageError
from server.gguf_file import OUTPUT, REPEATS, TOKEN_EMBD, GGUFFile, Tensor

COPIES = "copies"
"""The folder of the copies, in that of the server's data."""
LEAST_FREE_BYTES = 4 * 10**9
"""What stays free beside the copy, or none is made: a small SD card has better uses."""
LEAST_TABLE_BYTES = 32_000_000
"""A smaller table is no part of a step worth 1 % of it."""
_OURS = re.compile("[0-9a-f]+-[0-9a-f]+")
"""How the folders of copies are called, by size and time of the original; what else lies there is none of ours."""
_N_ROWS = 2048
_Q4_0 = 2
_BLOCK = np.dtype([("scale", "<f2"), ("values", np.uint8, 16)])


def prepared(source: Path, copies: Path) -> Path:
    """The file to serve for `source`: its copy in the folder `copies`, made if need be, or itself where that would gain
    nothing or has no room. Other files' copies go. `source` has been tried out before (server/vetting.py).
    """
    about = source.stat()
    target = copies / f"{about.st_size:x}-{about.st_mtime_ns:x}" / source.name
    if target.exists():
        return target
    file = gguf_file.read(source)
    if not gains(file):
        return source
    try:
        return _made(file, target)
    except (OSError, UsageError) as error:
        reason = error.message if isinstance(error, UsageError) else f"{target} can't be written: {error.strerror}."
        print(f"{reason} So {source.name} is served as it is, a little slower.", flush=True)
        return source


def gains(file: GGUFFile) -> bool:
    """Whether the copy would be faster: a tied model of a known kind, with an 8-bit table for both purposes."""
    table = file.tensor(TOKEN_EMBD)
    is_known = file.meta.get("general.architecture") in ARCHITECTURES and REPEATS not in file.meta
    is_table = table is not None and table.type.name == "Q8_0" and len(table.shape) == 2
    is_large = table is not None and table.n_bytes >= LEAST_TABLE_BYTES
    return is_known and is_table and is_large and (file.tensor(OUTPUT) is None or gguf_copy.has_duplicate_output(file))


def _made(file: GGUFFile, target: Path) -> Path:
    tensors = _tensors(file)
    copies, n_bytes = target.parent.parent, sum(tensor.n_bytes for tensor in tensors)
    with folder.alone(copies):
        for old in copies.iterdir():
            if _OURS.fullmatch(old.name):
                shutil.rmtree(old)
        if shutil.disk_usage(copies).free < n_bytes + LEAST_FREE_BYTES:
            print(f"{file.path.name} is served as it is: this disk has no room for a faster copy.", flush=True)
            return file.path
        target.parent.mkdir()
        partial = Path(f"{target}.partial")
        try:
            with (
                partial.open("wb") as out,
                tqdm(total=n_bytes, unit="B", unit_scale=True, desc="Making it faster", disable=None, delay=0.5) as bar,
            ):
                gguf_copy.write(file, tensors, out, bar.update, {OUTPUT: rows_of_output(file)})
            folder.put_in_place(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    print(f"{file.path.name} is served from a copy that answers faster ({megabytes(n_bytes)}): {target}", flush=True)
    return target


def _tensors(file: GGUFFile) -> list[Tensor]:
    table = file.tensor(TOKEN_EMBD)
    assert table
    kind = gguf_file.TYPES[_Q4_0]
    output = replace(table, name=OUTPUT, type_id=_Q4_0, n_bytes=table.n_elements // kind.n_block * kind.n_bytes)
    return gguf_copy.table_last([*gguf_copy.without_output(file), output])


def rows_of_output(file: GGUFFile) -> Iterator[bytes]:
    """The table's rows in Q4_0, some at a time."""
    table = file.tensor(TOKEN_EMBD)
    assert table
    n_embd, n_rows = table.shape
    with file.path.open("rb") as source:
        source.seek(file.data_start + table.offset)
        for at in range(0, n_rows, _N_ROWS):
            n = min(_N_ROWS, n_rows - at)
            yield packed(unpacked(source.read(n * table.n_bytes // n_rows), n, n_embd))


def packed(rows: npt.NDArray[np.float32]) -> bytes:
    """Rows in Q4_0, as ggml's quantize_row_q4_0_ref makes it: of 32 weights the largest becomes -8 times the scale."""
    blocks = rows.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    whole = np.minimum(blocks * inverse + np.float32(8.5), np.float32(15)).astype(np.uint8)
    made = np.empty(len(blocks), dtype=_BLOCK)
    made["scale"], made["values"] = scale[:, 0], whole[:, :16] | whole[:, 16:] << 4
    return made.tobytes()
