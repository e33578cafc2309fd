"""What a GGUF file holds, read from its header in a tenth of a second.

The gguf library makes an object of every word of the vocabulary: 11 s and 540 MB for Qwen's, on a board that has 1 GB.
Here the vocabulary is stepped over, nothing of the weights is read, and every number is checked against the file's size
before llama.cpp, which trusts it, sees the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from server.errors import ModelFileError

CHUNK = 1 << 20
"""Bytes that are compared or copied at a time."""
HEAD_BYTES = 24
"""Magic, version and the two counts."""
TOKEN_EMBD, OUTPUT = "token_embd.weight", "output.weight"

REPEATS = "sparrow.output_repeats_token_embd"
"""The name under which our own files say that the one is the other with fewer bits."""


class TensorType(NamedTuple):
    """n_block elements of a row take n_bytes."""

    name: str
    n_block: int
    n_bytes: int


_LAYOUTS = """
    0 F32 1 4, 1 F16 1 2, 2 Q4_0 32 18, 3 Q4_1 32 20, 6 Q5_0 32 22, 7 Q5_1 32 24, 8 Q8_0 32 34, 9 Q8_1 32 40,
    10 Q2_K 256 84, 11 Q3_K 256 110, 12 Q4_K 256 144, 13 Q5_K 256 176, 14 Q6_K 256 210, 15 Q8_K 256 292,
    16 IQ2_XXS 256 66, 17 IQ2_XS 256 74, 18 IQ3_XXS 256 98, 19 IQ1_S 256 50, 20 IQ4_NL 32 18, 21 IQ3_S 256 110,
    22 IQ2_S 256 82, 23 IQ4_XS 256 136, 24 I8 1 1, 25 I16 1 2, 26 I32 1 4, 27 I64 1 8, 28 F64 1 8, 29 IQ1_M 256 56,
    30 BF16 1 2, 34 TQ1_0 256 54, 35 TQ2_0 256 66, 39 MXFP4 32 17, 40 NVFP4 64 36, 41 Q1_0 128 18, 42 Q2_0 64 18
"""
TYPES = {
    int(number): TensorType(name, int(n_block), int(n_bytes))
    for number, name, n_block, n_bytes in (row.split() for row in _LAYOUTS.split(","))
}
"""llama.cpp's tensor types by their number in a file."""

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
Value = int | float | bool | str
MAX_ENTRIES = 1 << 16
"""Of metadata, and tensors: a hundred times what any model has."""
MAX_LENGTH = 1 << 22
"""Elements of an array: ten times the largest vocabularies."""
MAX_STRING, MAX_NAME = 1 << 20, 63
MAX_ALIGNMENT = 1 << 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """offset: bytes from the file's data_start; shape: as ggml has it, the row's length first."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    n_bytes: int

    @property
    def type(self) -> TensorType:
        return TYPES[self.type_id]

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A file whose header is sound and whose tensors all lie inside it. Offsets are bytes from the file's start."""

    path: Path
    version: int
    n_meta: int
    meta: dict[str, Value]
    """Metadata, without the arrays."""
    meta_end: int
    alignment: int
    data_start: int
    tensors: tuple[Tensor, ...]

    def tensor(self, name: str) -> Tensor | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)

    @property
    def n_elements(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.n_bytes for tensor in self.tensors) / self.n_elements


class Array(NamedTuple):
    """An array in the metadata: the number of its type, and how many elements."""

    kind: int
    length: int


class _Cut(Exception):
    """The file ends before what it announces."""


class _Cursor:
    """Steps through a header; raises _Cut at the end of the file, wherever that is."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0

    def count(self, what: str, n_most: int) -> int:
        n = self.number("Q")
        if n > n_most:
            raise ValueError(f"{n} {what}; {n_most} are the most")
        return n

    def number(self, kind: str) -> int:
        layout = "<" + kind
        try:
            values: tuple[int] = struct.unpack_from(layout, self.data, self.place)
        except struct.error:
            raise _Cut from None
        self.place += struct.calcsize(layout)
        return values[0]

    def skip(self, n_bytes: int) -> None:
        self.place += n_bytes
        if self.place > len(self.data):
            raise _Cut

    def string(self, n_most: int = MAX_STRING) -> str:
        length = self.number("Q")
        if length > len(self.data):
            raise _Cut
        if length > n_most:
            raise ValueError(f"a text of {length} bytes; {n_most} are the most")
        start = self.place
        self.skip(length)
        return self.data[start : self.place].decode("utf-8")

    def value(self) -> Value | Array:
        """Arrays are stepped over."""
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_FORMATS[kind])
        kind, length = self.number("I"), self.count("elements of an array", MAX_LENGTH)
        if kind != _STRING:
            self.skip(length * struct.calcsize(_FORMATS[kind]))
        else:
            for _ in range(length):
                self.skip(self.number("Q"))
        return Array(kind, length)


def read(path: Path) -> GGUFFile:
    """Raises ModelFileError, in one line, for what is missing, cut, altered, or no GGUF."""
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder: give the GGUF file inside it.")
        with path.open("rb") as file:
            _refuse_other_formats(path, file.read(16))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file.") from None
    except OSError as error:
        raise ModelFileError(f"{path} can't be read: {error.strerror}.") from None
    except _Cut:
        size = path.stat().st_size
        raise ModelFileError(f"{path} is cut off: it ends after {size:,} bytes; fetch or copy it again.") from None
    except (KeyError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{path} is altered or damaged ({error}): fetch or copy it again.") from None


_OTHERS: dict[bytes, str] = {
    b"<": "an HTML or XML page (a proxy's or an error page, saved as a file)",
    b"PK\x03\x04": "a ZIP or PyTorch file",
    b"version https://": "a Git LFS pointer (run git lfs pull)",
    b"\x1f\x8b": "a gzip file",
    b"ggml": "a model in llama.cpp's old GGML format",
}


def _refuse_other_formats(path: Path, head: bytes) -> None:
    if not head:
        raise ModelFileError(f"{path} is empty: fetch or copy it again.")
    if head[:4] == b"GGUF":
        return
    found = next((text for start, text in _OTHERS.items() if head.lstrip().startswith(start)), None)
    if found is None and head[8:10] == b'{"':
        found = "a safetensors file"
    raise ModelFileError(f"{path} is no GGUF but {found or 'something else'}: give a GGUF file.")


def _parse(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(data)
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise ModelFileError(f"{path} is a GGUF of version {version}: this llama.cpp reads 2 and 3 (little-endian).")
    n_tensors, n_meta = cursor.count("tensors", MAX_ENTRIES), cursor.count("entries of metadata", MAX_ENTRIES)
    entries = [(cursor.string(), cursor.value()) for _ in range(n_meta)]
    if len(dict(entries)) < n_meta:
        raise ValueError("an entry of the metadata is there twice")
    meta = {key: value for key, value in entries if not isinstance(value, Array)}
    _check_vocabulary({key: value for key, value in entries if isinstance(value, Array)})
    meta_end = cursor.place
    alignment = meta.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment}")
    tensors = tuple(_tensors(cursor, n_tensors, alignment))
    data_start = padded(cursor.place, alignment)
    if tensors and data_start + tensors[-1].offset + tensors[-1].n_bytes > len(data):
        raise _Cut
    return GGUFFile(path, version, n_meta, meta, meta_end, alignment, data_start, tensors)


def _check_vocabulary(arrays: dict[str, Array]) -> None:
    """llama.cpp reads a score and a type for each token, without asking how many there are."""
    expected = {"tokens": _STRING, "merges": _STRING, "scores": 6, "token_type": 5}
    found = {key: array for name in expected if (array := arrays.get(key := f"tokenizer.ggml.{name}"))}
    n_tokens = arrays.get("tokenizer.ggml.tokens", Array(_STRING, 0)).length
    for key, (kind, length) in found.items():
        name = key.rpartition(".")[2]
        if kind != expected[name] or (name != "merges" and length != n_tokens):
            raise ValueError(f"{key} has {length} elements of type {kind} for {n_tokens} tokens")


def _tensors(cursor: _Cursor, n_tensors: int, alignment: int) -> Iterator[Tensor]:
    """One after another and without gaps, as llama.cpp wants them."""
    expected, names = 0, set[str]()
    for _ in range(n_tensors):
        name = cursor.string(MAX_NAME)
        n_dims = cursor.number("I")
        if not 1 <= n_dims <= 4:
            raise ValueError(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(n_dims))
        type_id, offset = cursor.number("I"), cursor.number("Q")
        kind = TYPES.get(type_id)
        if kind is None or 0 in shape or shape[0] % kind.n_block:
            raise ValueError(f"tensor {name!r} has type {type_id} and shape {shape}")
        if offset != expected or name in names:
            raise ValueError(f"tensor {name!r} is at {offset}, not at {expected}, or there twice")
        n_bytes = prod(shape) // kind.n_block * kind.n_bytes
        expected = padded(offset + n_bytes, alignment)
        names.add(name)
        yield Tensor(name, shape, type_id, offset, n_bytes)


def padded(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
