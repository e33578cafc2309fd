"""What llama.cpp does by itself, without a server: a child process of bench.py, so that memory and threads do not mix.

It opens the model exactly as the server does and then calls llama_decode and nothing else: no sampling, always the same
token. The job comes as JSON on the command line; the answer is one line of JSON, figures of bench_report.FIGURES.
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
from server.engine.loader import n_cores
from server.engine.tune import N_BATCH


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure. n_rows: streams at once. n_prompt: tokens of each one's prompt. n_tokens: of each one's answer.

    n_long: tokens of the prompt whose reading is timed.
    """

    model: str
    n_ctx: int
    n_slots: int
    n_threads: int
    n_prompt: int
    n_long: int
    n_tokens: int
    n_rows: int = 1


class Raw:
    """A context of the server's settings, and llama_decode on its slots."""

    def __init__(self, job: Job) -> None:
        n_slots = max(job.n_slots, job.n_rows)
        self._n_batch = max(N_BATCH, n_slots)
        self._model = Model(Path(job.model))
        params = ContextParams(job.n_ctx, n_slots, job.n_threads or n_cores(), n_batch=self._n_batch)
        self._context = Context(self._model, params)
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._token = self._model.vocab.tokenize("1")[0]  # any would do: what a step costs does not depend on it

    def read(self, n_prompt: int, slot: int = 0) -> float:
        """Forget what the slot holds, read a prompt in the server's chunks, and return the seconds that it took."""
        self._context.clear(slot)
        began = time.perf_counter()
        for first in range(0, n_prompt, self._n_batch):
            last = min(first + self._n_batch, n_prompt)
            self._decode([(position, slot) for position in range(first, last)], n_logits=int(last == n_prompt))
        return time.perf_counter() - began

    def answer(self, n_past: int, n_steps: int, n_rows: int = 1) -> float:
        """Decode n_steps tokens one by one after n_past others, in n_rows slots at once; seconds."""
        began = time.perf_counter()
        for position in range(n_past, n_past + n_steps):
            self._decode([(position, slot) for slot in range(n_rows)], n_logits=n_rows)
        return time.perf_counter() - began

    def _decode(self, rows: list[tuple[int, int]], n_logits: int) -> None:
        """rows: (position, slot); the last n_logits of them ask for logits."""
        batch = self._batch
        for row, (position, slot) in enumerate(rows):
            batch.token[row], batch.pos[row] = self._token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot
            batch.logits[row] = row >= len(rows) - n_logits
        batch.n_tokens = len(rows)
        code = llama_cpp.llama_decode(self._context._ctx, batch)
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
    figures = {"load_s": time.perf_counter() - began}
    raw.read(job.n_prompt)
    raw.answer(job.n_prompt, min(8, job.n_tokens))
    figures = {**figures, **_alone(raw, job)} if job.n_rows == 1 else _together(raw, job)
    raw.close()
    return figures


def _alone(raw: Raw, job: Job) -> dict[str, float]:
    first_token_s = raw.read(job.n_prompt)
    # The first token of an answer comes out of the prompt's own step: n tokens are n - 1 steps, as over HTTP.
    decode_s = raw.answer(job.n_prompt, job.n_tokens - 1)
    figures = {
        "first_token_ms": first_token_s * 1e3,
        "decode_tok_s": (job.n_tokens - 1) / decode_s,
        "prompt_tok_s": job.n_long / raw.read(job.n_long),
    }
    peak = bench_machine.peak_bytes()
    return figures if peak is None else {**figures, "peak_mb": peak / 1e6}


def _together(raw: Raw, job: Job) -> dict[str, float]:
    prompts_s = sum(raw.read(job.n_prompt, slot) for slot in range(job.n_rows))
    decode_s = raw.answer(job.n_prompt, job.n_tokens - 1, job.n_rows)
    return {
        "together_tok_s": job.n_rows * job.n_tokens / (prompts_s + decode_s),
        "together_decode_tok_s": job.n_rows * (job.n_tokens - 1) / decode_s,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
