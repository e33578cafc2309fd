"""What this device is fastest with (threads, chunks, the KV cache's form): measured once in a few seconds, and kept.

Memory-bound decoding often wants fewer threads than there are cores (two of a Raspberry Pi's four), reading prompts
wants all: so they are chosen apart. A choice other than the usual one has to gain clearly: noise is no reason.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from server.engine.llama import Context, ContextParams, DecodeStatus, Model
from server.engine.scheduler import Batch, Span
from server.engine.sequence import Sequence

log = logging.getLogger("sparrow.tune")

BUDGET_S = 4.0
"""Seconds for all numbers of threads together."""

N_CHUNK = 32
"""Tokens of the prompt chunk that threads are timed with."""

N_BATCH = 64
"""The usual tokens of a step at most. 128 read a prompt 1 % faster, and take 40 MB more at 4,096 tokens."""

N_BATCHES = (N_BATCH, 128)

N_HELD = 256
"""Tokens in each slot when the forms of the KV cache are compared."""

GAIN = 0.95
"""Another choice must take at most this share of the usual one's time."""

BUSY = 0.5
"""Runnable processes per core at which a measurement says more about them than about this device."""


@dataclass(frozen=True)
class Choice:
    """n_decode, n_prefill: threads for decode steps and for prompt chunks. n_batch: tokens of a chunk at most."""

    n_decode: int
    n_prefill: int
    n_batch: int = N_BATCH
    kv_unified: bool = False
    """One cache for all slots instead of a part for each."""


def choose(model: Model, n_slots: int, n_cores: int, key: str, kept: Path | None) -> Choice:
    """The kept choice for `key` (model, slots and device), else a measured one, which is kept; `kept` is a JSON file.

    Raises UsageError when there is no memory even for a small context.
    """
    known = _read(kept, key)
    if known is not None:
        return known
    if os.getloadavg()[0] > BUSY * n_cores:
        return Choice(n_cores, n_cores)
    choice = _measure(model, n_slots, n_cores)
    _keep(kept, key, choice)
    return choice


def _measure(model: Model, n_slots: int, n_cores: int) -> Choice:
    with _trial(model, n_slots, n_cores, kv_unified=False) as context:
        n_decode, n_prefill = _threads(context, n_cores)
        context.set_threads(n_decode, n_prefill)
        n_batch = _chunk(context)
        partitioned_s = _together(context, n_slots)
    with _trial(model, n_slots, n_cores, kv_unified=True) as context:
        context.set_threads(n_decode, n_prefill)
        unified_s = _together(context, n_slots)
    log.info("a step of %d rows: %.4f s partitioned, %.4f s unified", n_slots, partitioned_s, unified_s)
    return Choice(n_decode, n_prefill, n_batch, unified_s < GAIN * partitioned_s)


@contextmanager
def _trial(model: Model, n_slots: int, n_threads: int, *, kv_unified: bool) -> Iterator[Context]:
    """A small context, gone before the real one takes its memory."""
    context = Context(
        model, ContextParams(2 * N_HELD, n_slots, n_threads, n_batch=max(N_BATCHES), kv_unified=kv_unified)
    )
    try:
        yield context
    finally:
        context.close()


def _threads(context: Context, n_cores: int) -> tuple[int, int]:
    candidates = sorted({n_cores, *range(1, min(n_cores, 4) + 1), n_cores // 2} - {0}, reverse=True)
    share_s = BUDGET_S / len(candidates) / 2
    decode, prefill = dict[int, float](), dict[int, float]()
    for n in candidates:
        context.set_threads(n, n)
        prefill[n] = _fastest(lambda: _compute(context, N_CHUNK), share_s)
        decode[n] = _fastest(lambda: _compute(context, 1), share_s)
    log.info("seconds by threads: decode %s, prompt chunk %s", decode, prefill)
    return _best(decode, n_cores), _best(prefill, n_cores)


def _chunk(context: Context) -> int:
    """On a Raspberry Pi a token takes 10 ms: each size is timed once, the first one after all have been touched."""
    _compute(context, max(N_BATCHES))
    token_s = {n: _seconds(lambda n=n: _compute(context, n)) / n for n in N_BATCHES}  # type: ignore[misc]
    log.info("seconds per prompt token by chunk: %s", token_s)
    return _best_chunk(token_s)


def _best_chunk(token_s: dict[int, float]) -> int:
    usual, large = N_BATCHES
    return large if token_s[large] < GAIN * token_s[usual] else usual


def _together(context: Context, n_slots: int) -> float:
    """Seconds of a step in which every slot decodes one token after N_HELD others."""
    tokens = [1 + at % 200 for at in range(N_HELD + 1)]
    first = Sequence(tokens[:-1], N_HELD + 1)
    first.place(0, 0)
    while first.n_pending:
        n = min(context.n_batch, first.n_pending)
        _decode(context, Batch([Span(first, n)]))
        first.advance(n)
    saved = context.save(0)
    sequences = [Sequence(tokens, N_HELD + 2) for _ in range(n_slots)]
    for slot, sequence in enumerate(sequences):
        if slot:
            context.load(slot, saved)
        sequence.place(slot, N_HELD)

    def step() -> None:
        _decode(context, Batch([Span(sequence, 1) for sequence in sequences]))
        for slot in range(n_slots):
            context.truncate(slot, N_HELD)

    return min(_seconds(step) for _ in range(4))


def _best(seconds: dict[int, float], n_cores: int) -> int:
    best = min(seconds, key=lambda n: seconds[n])
    return best if seconds[best] < GAIN * seconds[n_cores] else n_cores


def _fastest(compute: Callable[[], None], share_s: float) -> float:
    """The shortest of several runs: whatever else the machine does can only make one longer."""
    compute()
    times, began = list[float](), time.monotonic()
    while not times or (len(times) < 12 and time.monotonic() - began < share_s):
        times.append(_seconds(compute))
    return min(times)


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _compute(context: Context, n_tokens: int) -> None:
    sequence = Sequence([1 + at % 200 for at in range(n_tokens)], n_tokens + 1)
    sequence.place(0, 0)
    _decode(context, Batch([Span(sequence, n_tokens)]))
    context.clear(0)


def _decode(context: Context, batch: Batch) -> None:
    status = context.decode(batch)
    assert status is DecodeStatus.OK


def _read(kept: Path | None, key: str) -> Choice | None:
    """None as well for a file that can't be read or says nonsense: it is made anew."""
    try:
        found = Choice(**json.loads(kept.read_text())[key]) if kept else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found and min(found.n_decode, found.n_prefill) >= 1 and found.n_batch in N_BATCHES else None


def _keep(kept: Path | None, key: str, choice: Choice) -> None:
    if kept is None:
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps({key: asdict(choice)}))
        partial.replace(kept)
    except OSError as error:
        log.warning("%s: what was measured can't be kept (%s); the next start measures again", kept, error)
