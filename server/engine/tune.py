"""How many threads this device is fastest with: measured once in a few seconds, and kept.

Memory-bound decoding often wants fewer threads than there are cores (two of a Raspberry Pi's four), reading prompts
wants all: so they are chosen apart.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from server.engine.llama import Context, DecodeStatus
from server.engine.scheduler import Batch, Span
from server.engine.sequence import Sequence

log = logging.getLogger("sparrow.tune")

BUDGET_S = 4.0
"""Seconds for all candidates together."""

N_CHUNK = 32
"""Tokens of the prompt chunk that is timed."""

GAIN = 0.95
"""Another number of threads must take at most this share of the time that all cores take: noise is no reason."""

BUSY = 0.5
"""Runnable processes per core at which a measurement says more about them than about this device."""


@dataclass(frozen=True)
class Threads:
    """For decode steps and for prompt chunks."""

    n_decode: int
    n_prefill: int


def choose(context: Context, n_cores: int, key: str, kept: Path | None) -> Threads:
    """The kept choice for `key` (model and device), else a measured one, which is kept; `kept` is a JSON file.

    The context must be empty, and is empty afterwards.
    """
    known = _read(kept, key)
    if known is not None:
        return known
    if n_cores == 1 or os.getloadavg()[0] > BUSY * n_cores:
        return Threads(n_cores, n_cores)
    threads = _measure(context, n_cores)
    _keep(kept, key, threads)
    return threads


def _measure(context: Context, n_cores: int) -> Threads:
    candidates = sorted({n_cores, *range(1, min(n_cores, 4) + 1), n_cores // 2} - {0}, reverse=True)
    share_s = BUDGET_S / len(candidates) / 2
    decode, prefill = dict[int, float](), dict[int, float]()
    for n in candidates:
        context.set_threads(n, n)
        prefill[n] = _fastest(lambda: _compute(context, N_CHUNK), share_s)
        decode[n] = _fastest(lambda: _compute(context, 1), share_s)
    log.info("seconds by threads: decode %s, prompt chunk %s", decode, prefill)
    return Threads(_best(decode, n_cores), _best(prefill, n_cores))


def _best(seconds: dict[int, float], n_cores: int) -> int:
    best = min(seconds, key=lambda n: seconds[n])
    return best if seconds[best] < GAIN * seconds[n_cores] else n_cores


def _fastest(compute: Callable[[], None], share_s: float) -> float:
    """The shortest of several runs: whatever else the machine does can only make one longer."""
    compute()
    times, began = list[float](), time.monotonic()
    while not times or (len(times) < 12 and time.monotonic() - began < share_s):
        at = time.monotonic()
        compute()
        times.append(time.monotonic() - at)
    return min(times)


def _compute(context: Context, n_tokens: int) -> None:
    sequence = Sequence(range(1, n_tokens + 1), n_tokens + 1)
    sequence.place(0, 0)
    status = context.decode(Batch([Span(sequence, n_tokens)]))
    context.clear(0)
    assert status is DecodeStatus.OK


def _read(kept: Path | None, key: str) -> Threads | None:
    """None as well for a file that can't be read or says nonsense: it is made anew."""
    try:
        found = Threads(**json.loads(kept.read_text())[key]) if kept else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found and min(found.n_decode, found.n_prefill) >= 1 else None


def _keep(kept: Path | None, key: str, threads: Threads) -> None:
    if kept is None:
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps({key: asdict(threads)}))
        partial.replace(kept)
    except OSError as error:
        log.warning("%s: the measured threads can't be kept (%s); the next start measures again", kept, error)
