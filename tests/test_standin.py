"""The stand-in: Qwen2.5-0.5B's exact shapes, a vocabulary that merges, and a file that llama.cpp loads."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import standin
from gguf import GGUFReader

from server.engine.llama import Context, ContextParams, Model
from server.engine.scheduler import Batch, Span
from server.engine.sequence import Sequence
from server.errors import UsageError

TINY = standin.Shape(n_layers=2, n_embd=64, n_head=2, n_head_kv=1, n_ff=128, n_vocab=1000, n_text=960, n_ctx=2048)


@pytest.fixture(scope="module")
def tiny_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("standin") / "standin-f16.gguf"
    standin.write(path, TINY)
    return path


@pytest.fixture(scope="module")
def tiny_weights(tiny_standin: Path) -> Iterator[Model]:
    model = Model(tiny_standin)
    yield model
    model.close()


def test_the_plan_is_qwens() -> None:
    tensors = standin.plan(standin.QWEN)
    assert len(tensors) == 290
    assert sum(math.prod(tensor.shape) for tensor in tensors) == 494_032_768
    assert sum(tensor.n_bytes for tensor in tensors) == 988_208_640  # and 5 MB of vocabulary: 993 MB
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    assert "output.weight" not in shapes
    assert shapes["token_embd.weight"] == (151_936, 896)
    assert shapes["blk.23.attn_k.weight"] == (128, 896)
    assert shapes["blk.23.attn_v.bias"] == (128,)
    assert shapes["blk.0.ffn_down.weight"] == (896, 4864)


def test_the_vocabulary_is_as_large_as_qwens_and_can_be_merged() -> None:
    words = standin.vocabulary(standin.QWEN)
    assert len(set(words.texts)) == len(words.texts) == 151_936
    assert words.texts[151_643:151_646] == [b"<|endoftext|>", b"<|im_start|>", b"<|im_end|>"]
    known = set(words.texts[:256])
    for left, right in words.merges:
        assert left in known and right in known
        known.add(left + right)
    assert known == set(words.texts[:151_643])


def test_the_file_holds_the_plan(tiny_standin: Path) -> None:
    found = [(tensor.name, tuple(map(int, tensor.shape)), tensor.data) for tensor in GGUFReader(tiny_standin).tensors]
    planned = standin.plan(TINY)
    assert [(name, shape) for name, shape, _ in found] == [(tensor.name, tensor.shape[::-1]) for tensor in planned]
    assert [data.dtype for _, _, data in found] == [tensor.dtype for tensor in planned]
    assert all(np.isfinite(data).all() and data.std() > 0 for _, _, data in found)


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tiny_standin: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same.gguf", tmp_path / "other.gguf"
    standin.write(same, TINY)
    standin.write(other, TINY, seed=1)
    assert same.read_bytes() == tiny_standin.read_bytes() != other.read_bytes()


def test_chunks_do_not_change_how_much_is_written(
    tiny_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "CHUNK_VALUES", 100)
    standin.write(tmp_path / "small-chunks.gguf", TINY)
    assert (tmp_path / "small-chunks.gguf").stat().st_size == tiny_standin.stat().st_size


def test_llama_cpp_loads_it(tiny_weights: Model) -> None:
    assert tiny_weights.n_ctx_train == 2048
    assert tiny_weights.quant == "F16"
    assert tiny_weights.chat_template == standin.CHAT_TEMPLATE
    assert tiny_weights.vocab.special == {"<|endoftext|>": 960, "<|im_start|>": 961, "<|im_end|>": 962}
    assert tiny_weights.vocab.eog == {960, 962}


def test_each_digit_is_one_token_and_text_survives(tiny_weights: Model) -> None:
    vocab = tiny_weights.vocab
    assert len(vocab.tokenize("7301946825")) == 10
    text = "Hello there, 你好!\n\tfn(x) { 😀 }"
    ids = vocab.tokenize(text)
    assert b"".join(map(vocab.piece, ids)).decode() == text
    assert len(ids) < len(text.encode()), "no merge was applied"


def test_what_it_says_is_tokenized_into_the_same_tokens_again(tiny_weights: Model) -> None:
    words, vocab = standin.vocabulary(TINY), tiny_weights.vocab
    said = [token for token in range(TINY.n_text) if words.is_said(token)]
    assert len(said) > 20
    answer = random.Random(1).choices(said, k=200)
    assert vocab.tokenize(b"".join(map(vocab.piece, answer)).decode()) == answer


def test_its_answers_are_whole_characters_and_never_end_by_themselves(tiny_weights: Model) -> None:
    words = standin.vocabulary(TINY)
    context = Context(tiny_weights, ContextParams(n_ctx=256, n_slots=1, n_threads=1))
    sequence = Sequence(range(100, 140), 64)
    sequence.place(0, 0)
    while sequence.n_pending:
        context.decode(Batch([Span(sequence, 1)]))
        sequence.advance(1)
    logits = context.logits(0).copy()
    context.close()
    assert np.isfinite(logits).all()
    assert all(words.is_said(int(token)) for token in np.argsort(logits)[-8:])


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(UsageError, match=r"needs 1,028 MB in .* and 1\.0 MB are free"):
        standin.write(tmp_path / "standin.gguf")
    assert not list(tmp_path.iterdir())
