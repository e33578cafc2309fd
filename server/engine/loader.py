"""From a GGUF file and a few numbers to an engine; refuses what this machine can't hold, before it is tried."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from server.engine import tune
from server.engine.admission import MAX_QUEUE
from server.engine.engine import Engine
from server.engine.info import ModelInfo
from server.engine.llama import Context, ContextParams, Model
from server.engine.lookup import N_MOST
from server.engine.rest import Rest
from server.engine.sampling import SamplingParams
from server.engine.snapshots import Snapshots
from server.engine.table import n_loaded_bytes
from server.errors import SparrowError, UsageError

TINY_BYTES = 64_000_000
"""Weights below this are computed by one thread: it reads 64 tokens of the demo in 8 ms, two take 14."""

_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
}


def open_engine(
    path: Path,
    *,
    n_ctx: int,
    n_slots: int,
    n_threads: int = 0,
    step_s: float = 0.15,
    n_queue: int = MAX_QUEUE,
    answer_s: float = 0.0,
    tuned: Path | None = None,
    is_demo: bool = False,
    snapshots: Path | None = None,
    snapshot_bytes: int = 0,
    idle_s: float = 0.0,
    on_progress: Callable[[float], bool] = lambda _: True,
) -> Engine:
    """Load the model and allocate its KV cache (n_slots × n_ctx tokens). Not started yet.

    n_threads: 0 takes what is fastest here, chunks and KV cache too; it is measured once and kept in the file `tuned`.
    idle_s: after so many seconds without a request the memory is freed until the next one; 0 keeps it.
    n_queue: requests that may wait for a slot. answer_s: seconds that one may have it; 0: any.
    snapshots: the folder where idle conversations are kept, snapshot_bytes of them at most; None keeps none.

    Raises ModelFileError for the file, UsageError when n_ctx or the memory does not fit.
    """
    began = time.monotonic()
    _check_weights(path)
    model = Model(path, on_progress)
    try:
        _check_fits(model, n_ctx, n_slots)
        choice = _choice(model, path, n_slots, n_threads, tuned)
        params = ContextParams(
            n_ctx,
            n_slots,
            choice.n_prefill,
            n_batch=max(choice.n_batch, n_slots),
            n_guesses=n_guesses(model),
            kv_unified=choice.kv_unified,
        )
        context = Context(model, params)
        context.set_threads(choice.n_decode, choice.n_prefill)
    except SparrowError:
        model.close()
        raise
    info = ModelInfo(path.stem, model.quant, n_ctx, is_demo)
    kept = Snapshots(context, snapshots, path, params.kv_format, n_ctx, snapshot_bytes)
    n_kv = n_ctx * n_slots * model.kv_bytes_per_token
    rest = Rest(model, context, kept, idle_s, time.monotonic() - began, lambda: _check_weights(path, n_kv))
    return Engine(model, context, info, n_slots, kept, sampling_defaults(model), step_s, rest, n_queue, answer_s)


def _choice(model: Model, path: Path, n_slots: int, n_threads: int, tuned: Path | None) -> tune.Choice:
    """What --threads asks for; for a tiny model one thread; else what is measured."""
    if n_threads or model.n_bytes < TINY_BYTES:
        n = n_threads or 1
        return tune.Choice(n, n)
    return tune.choose(model, n_slots, n_cores(), f"{path.name} {model.n_bytes} {n_slots} {device()}", tuned)


def n_guesses(model: Model) -> int:
    """Rows for guessed tokens; none for an architecture that can't forget a guess that was wrong."""
    return N_MOST if model.can_forget else 0


def sampling_defaults(model: Model) -> SamplingParams:
    """Qwen2.5's official values, except where the file states its own (general.sampling.*)."""
    given = {field: model.meta(key) for field, key in _SAMPLING_KEYS.items()}
    numbers = {field: float(text) for field, text in given.items() if text is not None}
    if "top_k" in numbers:
        numbers["top_k"] = int(numbers["top_k"])
    return replace(SamplingParams(), **numbers)  # type: ignore[arg-type]


def _check_weights(path: Path, n_more: int = 0) -> None:
    """Loading more than there is would end in the kernel's hands, without a word. n_more: bytes for conversations."""
    free, needed = available_bytes(), n_loaded_bytes(path) + n_more
    if free is not None and needed > free:
        raise UsageError(
            f"{path.name} takes {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB of memory are free: "
            "close other programs, or serve a smaller --quant."
        )


def _check_fits(model: Model, n_ctx: int, n_slots: int) -> None:
    if n_ctx > model.n_ctx_train:
        raise UsageError(f"--ctx {n_ctx}: this model was trained for {model.n_ctx_train} tokens; give that or less.")
    needed = n_ctx * n_slots * model.kv_bytes_per_token
    free = available_bytes()
    if free is not None and needed > free:
        fits = max(256, free // (n_slots * model.kv_bytes_per_token) // 256 * 256)
        raise UsageError(
            f"--ctx {n_ctx} --slots {n_slots}: the conversations would take {needed / 1e6:,.0f} MB and "
            f"{free / 1e6:,.0f} MB are free; give --ctx {fits}, or fewer --slots."
        )


def available_bytes() -> int | None:
    """Memory that can be taken without swapping, in bytes, a container's limit included; None: the system won't say."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    frees = [int(found[1]) * 1024] if found else []
    if limit.isdigit() and used.isdigit():
        frees.append(max(0, int(limit) - int(used)))
    return min(frees, default=None)


def device() -> str:
    """What makes a measurement one of another machine: its processor and how many cores may be used."""
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return f"{model[1] if model else platform.machine()} × {n_cores()}"


def n_cores() -> int:
    """Physical cores that this process may use: a second thread on one core slows decoding down."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(cpu) for cpu in usable}
    return max(1, len(siblings))


def _siblings(cpu: int) -> str:
    """The CPUs that share a core with this one, as Linux lists them; elsewhere each is its own."""
    return _text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _text(path: str) -> str:
    """A small file of the kernel's; "" where there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
