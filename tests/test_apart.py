"""The faster copy of somebody's file: what is in it, when it is made, and that it answers as the file does."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import apart
import folder
import llama_cpp._ggml
import numpy as np
import pytest
import quantize
import serve
from hypothesis import given
from hypothesis import strategies as st

from server import gguf_file, serving
from server.engine.table import open_table, unpacked
from server.gguf_file import OUTPUT, REPEATS, TOKEN_EMBD
from tests.conftest import DEMO
from tests.test_table import SENTENCES, logits_of

Q8 = "Q8_0"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As llama.cpp makes it: one 8-bit table for both purposes."""
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    return quantize.quantize(DEMO, path, "Q4_0", token_embedding_type=Q8)


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "LEAST_TABLE_BYTES", 0)
    monkeypatch.setattr(apart, "LEAST_FREE_BYTES", 0)


def data_of(path: Path, name: str) -> bytes:
    file = gguf_file.read(path)
    tensor = file.tensor(name)
    assert tensor
    with path.open("rb") as content:
        content.seek(file.data_start + tensor.offset)
        return content.read(tensor.n_bytes)


def ggml_q4_0(rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> bytes:
    quantize_chunk = llama_cpp._ggml.libggml.ggml_quantize_chunk
    quantize_chunk.restype = ctypes.c_size_t
    made = np.zeros(rows.size // 32 * 18, dtype=np.uint8)
    sizes = [ctypes.c_int64(n) for n in (0, *rows.shape)]
    quantize_chunk(2, ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(made.ctypes.data), *sizes, None)
    return made.tobytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1e-3, 1.0, 1e3]))
def test_rows_are_packed_as_ggml_packs_them(seed: int, scale: float) -> None:
    rows = (np.random.default_rng(seed).standard_normal((4, 64)) * scale).astype(np.float32)
    rows[1, :32] = 0
    rows[2] = np.round(rows[2] / np.float32(scale)) * np.float32(scale)  # several are the largest
    assert apart.packed(rows) == ggml_q4_0(rows)


def test_the_copy_is_the_file_with_an_output_layer_of_its_own(plain: Path, tmp_path: Path) -> None:
    made = apart.prepared(plain, tmp_path / "copies")
    file, copy = gguf_file.read(plain), gguf_file.read(made)
    assert made.name == plain.name and copy.meta == {**file.meta, REPEATS: True}
    names = {tensor.name for tensor in file.tensors}
    assert {tensor.name for tensor in copy.tensors} == names | {OUTPUT} and OUTPUT not in names
    assert all(data_of(made, name) == data_of(plain, name) for name in names)
    table = copy.tensor(TOKEN_EMBD)
    assert table and copy.tensors[-1] == table
    rows = unpacked(data_of(plain, TOKEN_EMBD), table.shape[1], table.shape[0])
    assert data_of(made, OUTPUT) == ggml_q4_0(np.ascontiguousarray(rows))
    opened = open_table(made)
    assert opened and np.array_equal(opened.rows([5, 9]), rows[[5, 9]])
    opened.close()


def test_its_best_logits_are_the_files(plain: Path, tmp_path: Path) -> None:
    made = apart.prepared(plain, tmp_path / "copies")
    for one, right in zip(logits_of(made, SENTENCES[1]), logits_of(plain, SENTENCES[1]), strict=True):
        best = np.argsort(-right)[:20]
        assert np.abs(one - right)[best].max() < 0.1


def test_it_is_made_once_and_again_when_the_file_changes(plain: Path, tmp_path: Path) -> None:
    source, copies = tmp_path / "my.gguf", tmp_path / "copies"
    source.write_bytes(plain.read_bytes())
    first = apart.prepared(source, copies)
    about = first.stat()
    assert apart.prepared(source, copies) == first and first.stat() == about
    (copies / "mine").mkdir()
    os.utime(source, ns=(1, 1))
    second = apart.prepared(source, copies)
    assert second != first and second.exists() and not first.exists()
    assert {path.name for path in copies.iterdir()} == {second.parent.name, "mine"}, "what is not ours stays"


def test_what_would_gain_nothing_is_served_as_it_is(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = quantize.quantize(DEMO, tmp_path / "ours.gguf", "IQ4_NL")
    unquantized = quantize.quantize(DEMO, tmp_path / "f16.gguf", "F16")
    for path in (ours, unquantized):
        assert apart.prepared(path, tmp_path / "copies") == path
    monkeypatch.setattr(apart, "LEAST_TABLE_BYTES", 10**9)
    assert apart.prepared(plain, tmp_path / "copies") == plain
    assert not (tmp_path / "copies").exists()


def test_without_room_the_file_is_served_as_it_is(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apart, "LEAST_FREE_BYTES", 10**18)
    assert apart.prepared(plain, tmp_path / "copies") == plain
    assert capsys.readouterr().out == "plain.gguf is served as it is: this disk has no room for a faster copy.\n"


def test_a_folder_that_can_not_be_written_is_no_reason_not_to_serve(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert apart.prepared(plain, tmp_path / "file" / "copies") == plain
    assert "plain.gguf is served as it is, a little slower." in capsys.readouterr().out

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "put_in_place", full)
    assert apart.prepared(plain, tmp_path / "copies") == plain
    assert "No space left on device" in capsys.readouterr().out
    assert not [path for path in (tmp_path / "copies").rglob("*") if path.is_file()]


def test_what_a_power_cut_left_is_no_copy(plain: Path, tmp_path: Path) -> None:
    made = apart.prepared(plain, tmp_path / "copies")
    content = made.read_bytes()
    made.rename(f"{made}.partial")
    assert apart.prepared(plain, tmp_path / "copies") == made and made.read_bytes() == content
    assert [*made.parent.iterdir()] == [made]


def test_the_server_serves_the_copy(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Path] = []

    def note(_settings: object, _bound: object, model: Path, *, is_demo: bool) -> int:
        served.append(model)
        return 0

    monkeypatch.setattr(serving, "serve", note)
    flags = ["--model", str(plain), "--data-dir", str(tmp_path), "--port", "0", "--no-browser"]
    umask = os.umask(0o077)
    try:
        assert serve.main(flags) == 0
    finally:
        os.umask(umask)
    assert served[0].name == plain.name and served[0].is_relative_to(tmp_path / apart.COPIES)
