"""Model files of strangers: tried out in a child, once; mutated headers end in clear errors and never in a crash."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import gguf_file, vetting
from server.engine import trial
from server.engine.trial import try_out
from server.errors import ModelFileError
from server.vetting import FILE, vet
from tests.tiny_model import write_tiny_model

DEMO = Path(__file__).parent.parent / "models" / "demo" / "sparrow-demo-f16.gguf"
HUGE = [0, 1, 0xFFFFFFFF, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, 1 << 40, 0x7F]


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really tried out."""
    tried: list[Path] = []

    def counted(path: Path) -> None:
        tried.append(path)
        try_out(path)

    monkeypatch.setattr(vetting, "try_out", counted)
    return tried


def with_number(source: Path, target: Path, key: bytes, value: int) -> Path:
    """A copy with another value of a 32-bit number in its metadata."""
    content = bytearray(source.read_bytes())
    place = content.index(key) + len(key) + 4
    content[place : place + 4] = struct.pack("<I", value)
    target.write_bytes(content)
    return target


def test_a_file_is_tried_out_once_and_again_when_it_changed(tmp_path: Path, tries: list[Path]) -> None:
    path, data = write_tiny_model(tmp_path / "model.gguf"), tmp_path / "data"
    vet(path, data)
    vet(path, data)
    assert len(tries) == 1 and (data / FILE).stat().st_mode & 0o777 == 0o600
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    os.utime(path, ns=(1, 1))
    vet(path, data)
    assert len(tries) == 2
    about = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    vet(path, data)
    assert len(tries) == 3, "the same size and time, another end"


@pytest.mark.parametrize("content", ["[]", '{"a": 1'])
def test_what_is_kept_may_be_nonsense(tmp_path: Path, tries: list[Path], content: str) -> None:
    path, kept = write_tiny_model(tmp_path / "model.gguf"), tmp_path / FILE
    kept.write_text(content)
    vet(path, tmp_path)
    vet(path, tmp_path)
    assert len(tries) == 1 and str(path) in json.loads(kept.read_text())


def test_a_folder_that_keeps_nothing_costs_another_trial(tmp_path: Path, tries: list[Path]) -> None:
    path = write_tiny_model(tmp_path / "model.gguf")
    for _ in range(2):
        vet(path, Path("/proc/nothing"))
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"qwen2.block_count", 600, "llama.cpp died of SIGABRT over it (GGML_ASSERT("),
        (b"qwen2.attention.head_count", 0, ""),
        (b"qwen2.context_length", 1, "trained for 1 tokens"),
        (
            b"qwen2.embedding_length",
            128,
            "can't load it: check_tensor_dims: tensor 'token_embd.weight' has wrong shape",
        ),
    ],
)
def test_a_file_that_takes_llama_cpp_down_takes_only_the_child(
    tmp_path: Path, key: bytes, value: int, said: str
) -> None:
    path = with_number(write_tiny_model(tmp_path / "tiny.gguf"), tmp_path / "model.gguf", key, value)
    with pytest.raises(ModelFileError) as caught:
        vet(path, tmp_path)
    assert said in caught.value.message and "\n" not in caught.value.message and not (tmp_path / FILE).exists()


def test_a_child_that_takes_for_ever_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LEAST_S", 0.05)
    monkeypatch.setattr(trial, "MIN_BYTES_PER_S", 10**12)
    with pytest.raises(ModelFileError, match="was not done with it after 0 s"):
        try_out(write_tiny_model(tmp_path / "model.gguf"))


def mutated(head: bytes, rng: random.Random) -> bytes:
    """Bits turned, numbers made huge, pieces cut out, doubled or overwritten."""
    damaged = bytearray(head)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, n = rng.randrange(4, len(damaged) - 8), rng.randrange(1, 40)
        kind = rng.randrange(5)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + 8] = struct.pack("<Q", rng.choice(HUGE))
        elif kind == 2:
            damaged[at : at + 4] = struct.pack("<I", rng.choice(HUGE) & 0xFFFFFFFF)
        elif kind == 3:
            del damaged[at : at + n]
        else:
            damaged[at:at] = damaged[at : at + n]
    return bytes(damaged)


def survivors(tmp_path: Path, n: int) -> Iterator[Path]:
    """Mutated files whose headers are sound."""
    content, rng = DEMO.read_bytes(), random.Random(2026)
    begin = gguf_file.read(DEMO).data_start
    meta_end = gguf_file.read(DEMO).meta_end
    for at in range(n):
        # The vocabulary is most of the header, and the same everywhere: what stands around it is as likely to be hit.
        split = rng.choice([400, meta_end, begin])
        path = tmp_path / f"{at}.gguf"
        path.write_bytes(mutated(content[:split], rng) + content[split:])
        try:
            gguf_file.read(path)
        except ModelFileError as error:
            assert "\n" not in error.message
            path.unlink()
        else:
            yield path


def test_mutated_headers_end_in_clear_errors(tmp_path: Path) -> None:
    """What llama.cpp gets to see of them is tried out in children; the first of these is one with nothing wrong."""
    found = list(survivors(tmp_path, 250))
    assert 10 < len(found) < 200
    try_out(DEMO)
    for path in found[:: max(1, len(found) // 4)]:
        try:
            try_out(path)
        except ModelFileError as error:
            assert "\n" not in error.message and len(error.message) < 600
