"""A copy of a GGUF file without its output.weight, where that repeats token_embd.weight, or with such a repetition, or
with one of fewer bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import BinaryIO

from server.gguf_file import CHUNK, HEAD_BYTES, OUTPUT, REPEATS, TOKEN_EMBD, GGUFFile, Tensor, padded


def has_duplicate_output(file: GGUFFile) -> bool:
    """Whether output.weight is token_embd.weight bit by bit: then llama.cpp needs only the latter."""
    one, other = file.tensor(TOKEN_EMBD), file.tensor(OUTPUT)
    if one is None or other is None or (one.type_id, one.shape) != (other.type_id, other.shape):
        return False
    with file.path.open("rb") as left, file.path.open("rb") as right:
        left.seek(file.data_start + one.offset)
        right.seek(file.data_start + other.offset)
        return all(left.read(n) == right.read(n) for n in _chunks(one.n_bytes))


def _chunks(n_bytes: int) -> Iterator[int]:
    yield from (min(CHUNK, n_bytes - start) for start in range(0, n_bytes, CHUNK))


def without_output(file: GGUFFile) -> list[Tensor]:
    """The file's tensors but output.weight."""
    return [tensor for tensor in file.tensors if tensor.name != OUTPUT]


def with_output(file: GGUFFile) -> list[Tensor]:
    """The file's tensors, token_embd.weight once more as output.weight among them."""
    table = [replace(tensor, name=OUTPUT) for tensor in file.tensors if tensor.name == TOKEN_EMBD]
    return [*without_output(file), *table]


def table_last(tensors: Sequence[Tensor]) -> list[Tensor]:
    """First what has the output layer's type, last the table, between them what llama.cpp uses where it lies.

    What lies between is small, and each page of it that is touched may bring 2 MB of its neighbours into memory.
    """
    output = next(tensor for tensor in tensors if tensor.name == OUTPUT)
    return sorted(tensors, key=lambda tensor: (tensor.name == TOKEN_EMBD, tensor.type_id != output.type_id))


def write(
    file: GGUFFile,
    tensors: Sequence[Tensor],
    target: BinaryIO,
    on_bytes: Callable[[int], object] | None = None,
    made: Mapping[str, Iterable[bytes]] | None = None,
) -> None:
    """Copy the file into `target` with these tensors, a chunk at a time. on_bytes hears of each chunk's length.

    made: what the data of these tensors is instead. With an output.weight among them, the file says that it REPEATS.
    """
    made = made or {}
    _write_header(file, tensors, target, _MARK if OUTPUT in made else b"")
    with file.path.open("rb") as source:
        for tensor in tensors:
            _pad(target, file.alignment)
            source.seek(file.data_start + tensor.offset)
            for data in made.get(tensor.name) or map(source.read, _chunks(tensor.n_bytes)):
                target.write(data)
                if on_bytes:
                    on_bytes(len(data))
    _pad(target, file.alignment)


def write_skeleton(file: GGUFFile, tensors: Sequence[Tensor], target: BinaryIO) -> None:
    """The header of that copy, and a hole where the weights would be: enough for a dry run, and no room on the disk."""
    _write_header(file, tensors, target)
    n_data = sum(padded(tensor.n_bytes, file.alignment) for tensor in tensors)
    target.truncate(padded(target.tell(), file.alignment) + n_data)


_MARK = struct.pack(f"<Q{len(REPEATS)}sI?", len(REPEATS), REPEATS.encode(), 7, True)
"""An entry of the metadata; 7: it is a bool."""


def _write_header(file: GGUFFile, tensors: Sequence[Tensor], target: BinaryIO, more: bytes = b"") -> None:
    """The metadata as it stands, one more entry or none, and the tensors in the order in which their data follows."""
    target.write(struct.pack("<4sIQQ", b"GGUF", file.version, len(tensors), file.n_meta + bool(more)))
    with file.path.open("rb") as source:
        source.seek(HEAD_BYTES)
        target.write(source.read(file.meta_end - HEAD_BYTES))
    target.write(more)
    target.write(_infos(tensors, file.alignment))


def _infos(tensors: Iterable[Tensor], alignment: int) -> bytes:
    """The tensors' part of a header, with the offsets that they have without gaps."""
    made, offset = bytearray(), 0
    for tensor in tensors:
        name = tensor.name.encode()
        made += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        made += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type_id, offset)
        offset = padded(offset + tensor.n_bytes, alignment)
    return bytes(made)


def _pad(target: BinaryIO, alignment: int) -> None:
    target.write(bytes(-target.tell() % alignment))
