"""Embeddings: the mean of all tokens' last states, whatever else the engine does meanwhile."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.engine.sequence import Embedding, Finished
from server.errors import ContextOverflow, InvalidField
from tests.conftest import DEMO
from tests.test_engine import GREEDY, ask

N_CTX = 256


class Receiver:
    """Waits for a vector and the end."""

    def __init__(self) -> None:
        self._events: queue.Queue[Embedding | Finished] = queue.Queue()

    def __call__(self, event: Embedding | Finished) -> None:
        self._events.put(event)

    def wait(self) -> npt.NDArray[np.float32]:
        first, last = (self._events.get(timeout=20) for _ in range(2))
        assert isinstance(first, Embedding) and isinstance(last, Finished)
        assert last.reason == "stop" and last.usage.n_completion == 0 and self._events.empty()
        return first.vector

    def end(self) -> Finished:
        event = self._events.get(timeout=20)
        assert isinstance(event, Finished)
        return event


@pytest.fixture
def engine(tiny_path: Path) -> Iterator[Engine]:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=3, n_threads=1)
    engine.start()
    yield engine
    engine.close()


def embed(engine: Engine, text: str) -> Receiver:
    receiver = Receiver()
    engine.embed(engine.vocab.tokenize(text), receiver)
    return receiver


def official(engine: Engine, tokens: list[int]) -> npt.NDArray[np.float32]:
    """llama.cpp's own mean pooling, in a context of its own, all tokens at once."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = N_CTX
    params.embeddings, params.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_MEAN
    params.n_threads = params.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(engine._model._model, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for row, token in enumerate(tokens):
        batch.token[row], batch.pos[row], batch.logits[row] = token, row, True
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
    batch.n_tokens = len(tokens)
    assert llama_cpp.llama_decode(context, batch) == 0
    n = llama_cpp.llama_model_n_embd(engine._model._model)
    vector = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, 0), shape=(n,)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    normalised: npt.NDArray[np.float32] = vector / np.linalg.norm(vector)
    return normalised


@pytest.mark.parametrize("n", [1, 16, 17, 150, N_CTX])
def test_it_is_the_mean_that_llama_cpp_would_give(engine: Engine, n: int) -> None:
    text = "".join(chr(97 + at * at % 26) for at in range(n))
    vector = embed(engine, text).wait()
    expected = official(engine, engine.vocab.tokenize(text))
    assert vector.dtype == np.float32 and vector.shape == expected.shape
    assert abs(np.linalg.norm(vector) - 1) < 1e-5 and float(vector @ expected) > 0.9999


def test_streams_beside_it_say_what_they_say_alone(engine: Engine) -> None:
    params = replace(GREEDY, max_tokens=60)
    alone = [ask(engine, text, params) for text in ("hello there", "y" * 150)]
    for reader in alone:
        reader.wait()
    vector = embed(engine, "z" * 200).wait()
    beside = [ask(engine, text, params) for text in ("hello there", "y" * 150)]
    receivers = [embed(engine, "z" * 200) for _ in range(3)]
    for reader, other in zip(beside, alone, strict=True):
        assert reader.wait().reason == "length" and len(reader.tokens) == len(other.tokens)
    assert all(float(receiver.wait() @ vector) > 0.9999 for receiver in receivers)
    engine.scheduler.check_integrity()


def test_nothing_of_it_stays(engine: Engine) -> None:
    first = ask(engine, "a chat that is remembered")
    first.wait()
    embed(engine, "b" * 100).wait()
    assert not any(engine.scheduler.slots.held(slot)[:5] == engine.vocab.tokenize("b" * 5) for slot in range(3))
    assert ask(engine, "b" * 100).wait().usage.n_reused == 0
    assert ask(engine, "a chat that is remembered, too").wait().usage.n_reused >= 25


def test_what_cannot_be_embedded_is_refused_and_what_is_cancelled_ends(engine: Engine) -> None:
    with pytest.raises(InvalidField, match="not empty"):
        engine.embed([], Receiver())
    with pytest.raises(ContextOverflow):
        embed(engine, "x" * (N_CTX + 1))
    receiver = Receiver()
    handle = engine.embed(engine.vocab.tokenize("x" * N_CTX), receiver)
    handle.cancel()
    assert receiver.end().reason == "cancelled"
    assert ask(engine, "x").wait().reason == "length"
    engine.scheduler.check_integrity()


def test_what_is_alike_is_near() -> None:
    """A chat model's embeddings are rough, but the same words in another order are nearer than other words."""
    engine = open_engine(DEMO, n_ctx=N_CTX, n_slots=2)
    engine.start()
    same, alike, other = (
        embed(engine, text).wait() for text in ("What is my name?", "My name is what?", "我叫什么名字？")
    )
    assert float(same @ alike) > float(same @ other)
    engine.close()
