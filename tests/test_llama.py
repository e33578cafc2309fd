"""The door to llama.cpp: signatures of the pinned release, pieces of every length, statuses, errors with a way out."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import pytest

from server.engine.llama import Context, ContextParams, DecodeStatus, Model
from server.engine.loader import open_engine, sampling_defaults
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch, Span
from server.engine.sequence import Sequence
from server.errors import ModelFileError, UsageError
from tests.tiny_model import EMOJI, LONG_TOKEN


def test_the_c_api_is_the_one_that_this_code_was_written_for() -> None:
    """The API moves between releases: a bump of llama-cpp-python has to pass here first."""
    i32, f32, u32, size = ctypes.c_int32, ctypes.c_float, ctypes.c_uint32, ctypes.c_size_t
    void = ctypes.c_void_p
    signatures = {
        "llama_sampler_init_penalties": [i32, i32, f32, f32, f32],
        "llama_sampler_init_top_p": [f32, size],
        "llama_sampler_init_min_p": [f32, size],
        "llama_sampler_init_dist": [u32],
        "llama_get_logits_ith": [void, i32],
        "llama_memory_seq_rm": [void, i32, i32, i32],
        "llama_memory_seq_pos_max": [void, i32],
        "llama_token_to_piece": [void, i32, ctypes.c_char_p, i32, i32, ctypes.c_bool],
        "llama_decode": [void, llama_cpp.llama_batch],
    }
    for name, expected in signatures.items():
        assert getattr(llama_cpp, name).argtypes == expected, name
    data = llama_cpp.llama_token_data
    assert [(name, kind) for name, kind in data._fields_] == [("id", i32), ("logit", f32), ("p", f32)]
    wanted = {
        "n_ctx",
        "n_batch",
        "n_ubatch",
        "n_seq_max",
        "n_outputs_max",
        "n_threads",
        "kv_unified",
        "flash_attn_type",
    }
    assert wanted <= {name for name, _ in llama_cpp.llama_context_params._fields_}


def test_no_piece_is_lost_however_long(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    for text in (LONG_TOKEN, EMOJI, f"code:\n{' ' * 200}x", "naïve 你好 \x00\x01 ÿ"):
        ids = vocab.tokenize(text)
        assert b"".join(map(vocab.piece, ids)).decode() == text
    assert len(vocab.tokenize(LONG_TOKEN)) == 1


def test_special_tokens_in_a_text_stay_text(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    ids = vocab.tokenize("<|im_start|>system")
    assert not set(ids) & set(vocab.special.values())
    assert b"".join(map(vocab.piece, ids)) == b"<|im_start|>system"
    assert vocab.piece(vocab.special["<|im_end|>"]) == b"", "a control token is never shown"


def test_lone_surrogates_do_not_break_the_tokenizer(tiny_model: Model) -> None:
    ids = tiny_model.vocab.tokenize("a\ud800b")
    assert b"".join(map(tiny_model.vocab.piece, ids)).decode() == "a\ufffdb"


def test_a_full_cache_is_told_and_changes_nothing(tiny_model: Model) -> None:
    context = Context(tiny_model, ContextParams(n_ctx=256, n_slots=2, n_threads=1, n_batch=64))
    sequence = Sequence([1] * (context.n_ctx + 64), context.n_ctx + 128)
    sequence.place(0, 0)
    while sequence.n_past < context.n_ctx:
        assert context.decode(Batch([Span(sequence, 64)])) is DecodeStatus.OK
        sequence.advance(64)
    assert context.decode(Batch([Span(sequence, 64)])) is DecodeStatus.NO_SLOT
    assert context.n_held(0) == context.n_ctx and context.n_held(1) == 0
    assert context.truncate(0, 10) and context.n_held(0) == 10
    context.clear(0)
    assert context.n_held(0) == 0
    context.close()


def test_a_gap_in_the_positions_is_a_failure_not_a_crash(tiny_model: Model) -> None:
    context = Context(tiny_model, ContextParams(n_ctx=256, n_slots=1, n_threads=1))
    sequence = Sequence([1, 2, 3, 4], 10)
    sequence.place(0, 0)
    assert context.decode(Batch([Span(sequence, 1)])) is DecodeStatus.OK
    sequence.place(0, 3)
    assert context.decode(Batch([Span(sequence, 1)])) is DecodeStatus.FAILED
    context.close()


def test_the_context_gives_at_least_what_was_asked_for(tiny_model: Model) -> None:
    context = Context(tiny_model, ContextParams(n_ctx=100, n_slots=3, n_threads=1))
    assert context.n_ctx >= 100
    context.close()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"GGUF" + bytes(100)], ids=["empty", "html", "cut"])
def test_a_file_that_is_no_model_is_an_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        Model(bad)


def test_what_does_not_fit_is_refused_with_numbers_that_would(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="trained for 2048"):
        open_engine(tiny_path, n_ctx=4096, n_slots=1)
    monkeypatch.setattr("server.engine.loader.available_bytes", lambda: 1000)
    with pytest.raises(UsageError, match="0 MB of memory are free"):
        open_engine(tiny_path, n_ctx=256, n_slots=1)
    n_bytes = tiny_path.stat().st_size
    monkeypatch.setattr("server.engine.loader.available_bytes", lambda: n_bytes)
    fits = n_bytes // (64 * 256) // 256 * 256 or 256
    with pytest.raises(UsageError, match=f"--ctx {fits}, or fewer --slots"):
        open_engine(tiny_path, n_ctx=2048, n_slots=64)


def test_the_file_may_state_its_own_sampling(tiny_model: Model) -> None:
    assert sampling_defaults(tiny_model) == SamplingParams()
    assert tiny_model.kv_bytes_per_token > 0 and tiny_model.quant == "F16"
