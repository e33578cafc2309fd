"""A GGUF is untrusted input: whatever is wrong with it is one line for a person, and never another exception."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import gguf
import pytest

from server import gguf_copy, gguf_file
from server.errors import ModelFileError
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", n_embd=96, output="equal")


def test_the_types_are_those_of_the_gguf_library() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: tuple(gguf_file.TYPES[number]) for number in theirs} == theirs


def test_the_header_is_read_as_the_gguf_library_reads_it(tiny: Path) -> None:
    ours, theirs = gguf_file.read(tiny), gguf.GGUFReader(tiny)
    assert [(t.name, t.shape, t.n_bytes, ours.data_start + t.offset) for t in ours.tensors] == [
        (t.name, tuple(t.shape), t.n_bytes, t.data_offset) for t in theirs.tensors
    ]
    assert ours.meta["general.architecture"] == "qwen2"
    assert ours.meta["qwen2.context_length"] == 2048
    assert "tokenizer.ggml.tokens" not in ours.meta


def test_a_file_cut_anywhere_is_called_cut(tiny: Path, tmp_path: Path) -> None:
    whole, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    data_start = gguf_file.read(tiny).data_start
    end = max(t.offset + t.n_bytes for t in gguf_file.read(tiny).tensors) + data_start
    for size in [*range(4, data_start, 97), data_start, (data_start + end) // 2, end - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="is cut off: it ends after|is no GGUF"):
            gguf_file.read(cut)
    cut.write_bytes(whole[:end])
    assert len(gguf_file.read(cut).tensors) == 27


def test_an_altered_header_is_refused_or_harmless(tiny: Path, tmp_path: Path) -> None:
    whole, altered = tiny.read_bytes(), tmp_path / "altered.gguf"
    data_start, rng, refused = gguf_file.read(tiny).data_start, random.Random(7), 0
    for _ in range(400):
        damaged = bytearray(whole[:data_start])
        damaged[rng.randrange(data_start)] ^= 1 << rng.randrange(8)
        altered.write_bytes(damaged + whole[data_start:])
        try:
            gguf_file.read(altered)
        except ModelFileError as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 40


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>blocked</html>", "HTML"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"weight": {}}', "safetensors"),
        (b"PK\x03\x04rest of a zip", "ZIP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"just words", "something else"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "version 50331648"),
        (b"GGUF\x01\x00\x00\x00" + bytes(16), "version 1"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "18446744073709551615 tensors; 65536 are the most"),
    ],
)
def test_what_is_no_gguf_is_called_by_its_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=said) as caught:
        gguf_file.read(path)
    assert str(path) in caught.value.message


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        gguf_file.read(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        gguf_file.read(tmp_path)


def test_the_copy_without_the_duplicate_is_the_tied_model(tiny: Path, tmp_path: Path) -> None:
    tied = write_tiny_model(tmp_path / "tied.gguf", n_embd=96, output="tied")
    file, copy, n_copied = gguf_file.read(tiny), io.BytesIO(), list[int]()
    assert gguf_copy.has_duplicate_output(file)
    gguf_copy.write(file, gguf_copy.without_output(file), copy, n_copied.append)
    assert copy.getvalue() == tied.read_bytes()
    assert sum(n_copied) == sum(tensor.n_bytes for tensor in gguf_file.read(tied).tensors)


def test_a_duplicate_is_added_to_the_tied_model(tiny: Path, tmp_path: Path) -> None:
    tied = gguf_file.read(write_tiny_model(tmp_path / "tied.gguf", n_embd=96, output="tied"))
    with (tmp_path / "made.gguf").open("wb") as out:
        gguf_copy.write(tied, gguf_copy.with_output(tied), out)
    made = gguf_file.read(tmp_path / "made.gguf")
    assert gguf_copy.has_duplicate_output(made)
    assert sorted(tensor.name for tensor in made.tensors) == sorted(t.name for t in gguf_file.read(tiny).tensors)
    assert len(gguf_copy.with_output(made)) == len(made.tensors), "it has one already"


def test_an_output_of_its_own_is_no_duplicate(tiny: Path, tmp_path: Path) -> None:
    different = write_tiny_model(tmp_path / "different.gguf", n_embd=96, output="different")
    assert not gguf_copy.has_duplicate_output(gguf_file.read(different))
    last = gguf_file.read(tiny)
    output = last.tensor(gguf_file.OUTPUT)
    assert output
    one_bit = bytearray(tiny.read_bytes())
    one_bit[last.data_start + output.offset + output.n_bytes - 1] ^= 1
    (tmp_path / "bit.gguf").write_bytes(one_bit)
    assert not gguf_copy.has_duplicate_output(gguf_file.read(tmp_path / "bit.gguf"))


def test_a_skeleton_takes_no_room(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "skeleton.gguf"
    file = gguf_file.read(tiny)
    with path.open("wb") as out:
        gguf_copy.write_skeleton(file, gguf_copy.without_output(file), out)
    assert len(gguf_file.read(path).tensors) == 26
    assert path.stat().st_blocks * 512 < 64 * 1024 < path.stat().st_size


def entry(key: str, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + content


def array(key: str, kind: int, length: int, content: bytes) -> bytes:
    return entry(key, 9, struct.pack("<IQ", kind, length) + content)


WORDS = array("tokenizer.ggml.tokens", 8, 2, (struct.pack("<Q", 1) + b"a") * 2)
TENSOR = struct.pack("<Q", 1) + b"t" + struct.pack("<IQ", 1, 8) + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    ("entries", "tensors", "said"),
    [
        ([entry("a", 4, bytes(4))] * 2, [], "there twice"),
        ([entry("general.alignment", 4, struct.pack("<I", 1 << 17))], [], "alignment 131072"),
        ([entry("general.alignment", 4, struct.pack("<I", 24))], [], "alignment 24"),
        ([entry("a", 77, b"")], [], "damaged"),
        ([array("a", 9, 1, b"")], [], "damaged"),
        ([array("a", 0, 1 << 40, b"")], [], "elements of an array; 4194304 are the most"),
        ([array("a", 12, 1 << 20, b"")], [], "cut off"),
        ([entry("a", 8, struct.pack("<Q", 1 << 20))], [], "cut off"),
        ([entry("a", 8, struct.pack("<Q", 1 << 21) + bytes(1 << 21))], [], "a text of 2097152 bytes"),
        ([WORDS, array("tokenizer.ggml.scores", 6, 1, bytes(4))], [], "scores has 1 elements"),
        ([WORDS, array("tokenizer.ggml.token_type", 6, 2, bytes(8))], [], "of type 6 for 2 tokens"),
        ([], [TENSOR] * 2, "there twice"),
        ([], [struct.pack("<Q", 64) + b"t" * 64], "a text of 64 bytes; 63"),
        ([], [struct.pack("<Q", 1) + b"t" + struct.pack("<I", 5)], "has 5 dimensions"),
        ([], [struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 63, 1 << 63, 0, 0)], "cut off"),
        ([], [struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 8, 99, 0)], "has type 99"),
    ],
)
def test_a_header_that_can_not_be_true_is_refused(
    tmp_path: Path, entries: list[bytes], tensors: list[bytes], said: str
) -> None:
    path = tmp_path / "model.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    path.write_bytes(head + b"".join([*entries, *tensors]) + bytes(64))
    with pytest.raises(ModelFileError, match=said) as caught:
        gguf_file.read(path)
    assert "\n" not in caught.value.message
