"""How soon a small request is answered while everything computes: 8 streams run, and a long prompt is read."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import bench_client
from bench_client import Client, Messages, Stream

from server.errors import UsageError

PATHS = {"health": "/health", "page": "/"}
PAUSE_S = 0.02


def small_requests(
    client: Client, streams: Sequence[Messages], n_running: int, reading: Sequence[Messages]
) -> dict[str, float]:
    """GET /health and GET / in turns beside answers of n_running tokens, until all that is to be read is read.

    The figures are milliseconds.
    """
    times: dict[str, list[float]] = {name: [] for name in PATHS}
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        running = [stack.enter_context(Stream(client, messages, n_running)) for messages in streams]
        for stream in running:
            stream.wait_for(2)
        all_read = pool.submit(lambda: [client.chat(messages, 4) for messages in reading])
        while not all_read.done():
            for name, path in PATHS.items():
                times[name].append(_seconds(client.url, path) * 1e3)
            time.sleep(PAUSE_S)
        all_read.result()
    return {f"{name}_{key}_ms": value for name in PATHS for key, value in _spread(times[name]).items()}


def longest_prompt(client: Client) -> int:
    """Tokens of a prompt that a slot of this server holds, and a word of answer."""
    return int(json.loads(bench_client.get(client.url, "/health")[1])["n_ctx"]) - 8


def _seconds(url: str, path: str) -> float:
    began = time.perf_counter()
    status, _ = bench_client.get(url, path)
    if status != 200:
        raise UsageError(f"{url}{path} answered {status} while others were served.")
    return time.perf_counter() - began


def _spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "median": statistics.median(values),
        "p99": values[math.ceil(0.99 * len(values)) - 1],
        "largest": values[-1],
    }
