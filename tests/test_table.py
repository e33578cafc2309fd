"""Our own mix: a 4-bit output layer, whose best logits are computed again from the 8-bit table."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import quantize
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from server import gguf_file
from server.engine import table as tables
from server.engine.llama import Context, ContextParams, DecodeStatus, Model
from server.engine.loader import open_engine
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch, Span
from server.engine.sequence import Sequence
from server.engine.table import N_BEST, Table, open_table
from server.engine.vocab import Vocab
from tests.conftest import DEMO
from tests.test_engine import Reader
from tests.tiny_model import write_tiny_model

SENTENCES = ["My name is Wilma.", "Count from 1 to 20.", "What is my name?", "Repeat this: blue, green, red."]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize.quantize(DEMO, tmp_path_factory.mktemp("mixed") / "mixed.gguf", "IQ4_NL")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, and the 8-bit table for both purposes."""
    path = tmp_path_factory.mktemp("tied") / "tied.gguf"
    return quantize.quantize(DEMO, path, "IQ4_NL", token_embedding_type="Q8_0")


@pytest.fixture
def ours(mixed: Path) -> Iterator[Table]:
    ours = open_table(mixed)
    assert ours
    yield ours
    ours.close()


def weights_of(path: Path) -> npt.NDArray[np.float32]:
    """token_embd.weight by the gguf library. [n_vocab, n_embd]"""
    file = gguf_file.read(path)
    tensor = file.tensor(gguf_file.TOKEN_EMBD)
    assert tensor
    data = np.fromfile(path, dtype=np.uint8, count=tensor.n_bytes, offset=file.data_start + tensor.offset)
    return np.asarray(dequantize(data.reshape(tensor.shape[1], -1), GGMLQuantizationType.Q8_0), dtype=np.float32)


def test_rows_are_those_of_the_table(mixed: Path, ours: Table) -> None:
    ids = [0, 17, 3, 200]
    assert np.array_equal(ours.rows(ids), weights_of(mixed)[ids])


def test_the_best_are_corrected_and_the_rest_stays(mixed: Path, ours: Table) -> None:
    rng, weights = np.random.default_rng(1), weights_of(mixed)
    state = np.asarray(rng.normal(size=weights.shape[1]), dtype=np.float32)
    rough = (weights @ state + rng.normal(scale=0.01, size=len(weights))).astype(np.float32)
    logits = rough.copy()
    found = ours.correct(logits, state)
    best = np.argsort(-rough)[:N_BEST]
    assert np.allclose(logits[best], (weights @ state)[best], atol=1e-4)
    rest = np.setdiff1d(np.arange(len(rough)), best)
    assert np.array_equal(logits[rest], rough[rest])
    assert found.n_sure >= 100 and set(np.argsort(-logits)[: found.n_sure]) <= set(found.ids)


def logits_of(path: Path, text: str) -> list[npt.NDArray[np.float32]]:
    """What each token of the text gives, one step each."""
    model = Model(path)
    context = Context(model, ContextParams(256, 1, 1))
    tokens = model.vocab.tokenize(text)
    sequence, found = Sequence(tokens, len(tokens) + 1), list[npt.NDArray[np.float32]]()
    sequence.place(0, 0)
    for at in range(len(tokens)):
        row = Sequence(tokens[: at + 1], len(tokens) + 1)
        row.place(0, at)
        assert context.decode(Batch([Span(row, 1)])) is DecodeStatus.OK
        found.append(context.logits(0).copy())
    context.close()
    model.close()
    return found


def test_the_logits_are_nearly_those_of_the_8_bit_layer(
    mixed: Path, tied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without the correction they are not: 0.02 against 0.3 here."""
    exact, ours = logits_of(tied, SENTENCES[1]), logits_of(mixed, SENTENCES[1])
    monkeypatch.setattr(Table, "correct", lambda *_: None)
    rough = logits_of(mixed, SENTENCES[1])

    def error(found: list[npt.NDArray[np.float32]]) -> float:
        return max(
            float(np.abs(one - right)[np.argsort(-right)[:20]].max()) for one, right in zip(found, exact, strict=True)
        )

    assert error(ours) < 0.1 and error(ours) < error(rough) / 3


def prompt(vocab: Vocab, text: str) -> list[int]:
    begin, end = vocab.special["<|im_start|>"], vocab.special["<|im_end|>"]
    return [
        *[begin, *vocab.tokenize(f"user\n{text}"), end, *vocab.tokenize("\n")],
        *[begin, *vocab.tokenize("assistant\n")],
    ]


def answers(path: Path) -> list[str]:
    """Greedy, all at once, with prompts of which one is longer than a chunk; then one from a draft."""
    engine = open_engine(path, n_ctx=512, n_slots=4, n_threads=1)
    engine.start()
    prompts = [prompt(engine.vocab, text) for text in [*SENTENCES, "Count from 1 to 30. " * 8]]
    greedy = SamplingParams(temperature=0.0, repeat_penalty=1.0, max_tokens=60)
    readers = [Reader() for _ in prompts]
    for tokens, reader in zip(prompts, readers, strict=True):
        engine.submit(tokens, greedy, reader)
    draft, again = Reader(), Reader()
    for reader in readers:
        reader.wait()
    engine.submit(prompts[1], SamplingParams(max_tokens=0), draft)
    draft.wait()
    engine.submit(prompts[1], greedy, again)
    again.wait()
    engine.close()
    return [reader.text for reader in (*readers, again)]


def test_answers_are_those_of_the_8_bit_layer(mixed: Path, tied: Path) -> None:
    ours = answers(mixed)
    assert ours == answers(tied) and ours[1] == ours[-1] and "15, 16, 17" in ours[1]


def test_it_embeds_in_between_and_sleeps_and_wakes(mixed: Path) -> None:
    model = Model(mixed)
    context = Context(model, ContextParams(256, 1, 1))
    before = logits_of(mixed, SENTENCES[0])[-1]
    model.unload(context.close)
    model.reload(lambda _: True)
    context.open()
    tokens = model.vocab.tokenize(SENTENCES[0])
    embedded, sequence = Sequence(tokens, 99, is_embedding=True), Sequence(tokens, 99)
    for each in (embedded, sequence):
        each.place(0, 0)
    assert context.decode(Batch([Span(embedded, 1)])) is DecodeStatus.OK
    assert context.states(0, 1).shape == (1, context.n_embd)
    context.clear(0)
    for _ in tokens:
        assert context.decode(Batch([Span(sequence, 1)])) is DecodeStatus.OK
        sequence.advance(1)
    assert np.allclose(context.logits(0), before, atol=1e-4)
    context.close()
    model.close()


@pytest.mark.parametrize("kind", ["tied", "different", "damaged", "missing"])
def test_other_files_have_none(tmp_path: Path, tied: Path, kind: str) -> None:
    path = tmp_path / "other.gguf"
    if kind == "different":
        quantize.quantize(write_tiny_model(tmp_path / "own.gguf", output="different"), path, "IQ4_NL")
    elif kind != "missing":
        path.write_bytes(tied.read_bytes()[: 200 if kind == "damaged" else None])
    assert open_table(path) is None


def test_the_table_is_not_counted_as_memory(mixed: Path, tied: Path, tmp_path: Path) -> None:
    assert tables.n_loaded_bytes(tied) == tied.stat().st_size
    table = gguf_file.read(mixed).tensor(gguf_file.TOKEN_EMBD)
    assert table and tables.n_loaded_bytes(mixed) == mixed.stat().st_size - table.n_bytes
    assert tables.n_loaded_bytes(tmp_path / "missing.gguf") == 0


def test_a_file_that_can_not_be_read_any_more_ends_the_answer_with_a_reason(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    engine = open_engine(mixed, n_ctx=512, n_slots=1, n_threads=1)
    engine.start()
    monkeypatch.setattr("server.engine.table.os.pread", gone)
    reader = Reader()
    engine.submit(prompt(engine.vocab, SENTENCES[0]), SamplingParams(max_tokens=4), reader)
    finished = reader.wait()
    assert finished.error and "can't be read any more ([Errno 5] Input/output error)" in finished.error.message
    monkeypatch.undo()
    reader = Reader()
    engine.submit(prompt(engine.vocab, SENTENCES[0]), SamplingParams(max_tokens=4), reader)
    assert reader.wait().reason == "length"
    engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages stay")
def test_mapped_pages_leave_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        whole = bytes(mapped)
        assert resident(path) >= 1 << 20
        tables.forget(path)
        assert resident(path) == 0
        assert mapped[:] == whole
    assert ctypes.get_errno() == 0


def resident(path: Path) -> int:
    """Bytes of this file's mapping that are in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("Rss:"))
    raise AssertionError("it is not mapped")
