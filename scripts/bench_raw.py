"""What llama.cpp does by itself, without a server: a child process of bench.py, so that memory and threads do not mix.

It opens the model exactly as the server does and then calls llama_decode and nothing else: no sampling, always the same
token. The job comes as JSON on the command line; the answer is one line of JSON, the figures of bench_report.FIGURES.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import bench_machine
import llama_cpp

from server.engine.llama import Context, ContextParams, Model
from server.engine.loader import N_BATCH, n_cores


@dataclass(frozen=True, slots=True)
class Job:
    """n_prompt: tokens before the timed answer of n_tokens. n_long: tokens of the prompt whose reading is timed."""

    model: str
    n_ctx: int
    n_slots: int
    n_threads: int
    n_prompt: int
    n_long: int
    n_tokens: int


class Raw:
    """A context of the server's settings, and llama_decode on its first slot."""

    def __init__(self, job: Job) -> None:
        self._n_batch = max(N_BATCH, job.n_slots)
        self._model = Model(Path(job.model))
        params = ContextParams(job.n_ctx, job.n_slots, job.n_threads or n_cores(), n_batch=self._n_batch)
        self._context = Context(self._model, params)
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._token = self._model.vocab.tokenize("1")[0]  # any would do: what a step costs does not depend on it

    def read(self, n_prompt: int) -> float:
        """Forget everything, read a prompt in the server's chunks, and return the seconds that it took."""
        self._context.clear(0)
        began = time.perf_counter()
        for first in range(0, n_prompt, self._n_batch):
            last = min(first + self._n_batch, n_prompt)
            self._decode(first, last - first, wants_logits=last == n_prompt)
        return time.perf_counter() - began

    def answer(self, n_past: int, n_steps: int) -> float:
        """Decode n_steps tokens one by one after n_past others; seconds."""
        began = time.perf_counter()
        for position in range(n_past, n_past + n_steps):
            self._decode(position, 1, wants_logits=True)
        return time.perf_counter() - began

    def _decode(self, first: int, n: int, *, wants_logits: bool) -> None:
        for row in range(n):
            self._batch.token[row], self._batch.pos[row] = self._token, first + row
            self._batch.n_seq_id[row], self._batch.seq_id[row][0] = 1, 0
            self._batch.logits[row] = wants_logits and row == n - 1
        self._batch.n_tokens = n
        code = llama_cpp.llama_decode(self._context._ctx, self._batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        self._context.close()
        self._model.close()


def measure(job: Job) -> dict[str, float]:
    """The figures of one fresh process. A short prompt and answer go first: the first steps touch memory anew."""
    began = time.perf_counter()
    raw = Raw(job)
    load_s = time.perf_counter() - began
    raw.read(job.n_prompt)
    raw.answer(job.n_prompt, min(8, job.n_tokens))
    first_token_s = raw.read(job.n_prompt)
    # The first token of an answer comes out of the prompt's own step: n tokens are n - 1 steps, as over HTTP.
    decode_s = raw.answer(job.n_prompt, job.n_tokens - 1)
    long_s = raw.read(job.n_long)
    raw.close()
    figures = {
        "load_s": load_s,
        "first_token_ms": first_token_s * 1e3,
        "decode_tok_s": (job.n_tokens - 1) / decode_s,
        "prompt_tok_s": job.n_long / long_s,
    }
    peak = bench_machine.peak_bytes()
    return figures if peak is None else {**figures, "peak_mb": peak / 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
