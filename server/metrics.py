"""GET /metrics: what Prometheus asks. Every number is read when it asks; nothing is counted twice.

Labels are routes, methods, states and endings that the code knows: never a thing that a client sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.engine.engine import Engine
from server.engine.stats import Histogram, Stats
from server.observe import Meter
from server.state import AppState

TEXT = "text/plain; version=0.0.4"
"""OpenMetrics, the other form, would add nothing: there are no exemplars."""


class _Sparrow(Collector):
    def __init__(self, engine: Engine, meter: Meter) -> None:
        self._engine, self._meter = engine, meter

    def collect(self) -> Iterator[Metric]:
        yield _build(self._engine)
        yield _gauge("uptime_seconds", "Since the process began to serve.", time.monotonic() - self._meter.began)
        yield from _http(self._meter)
        yield _gauge(
            "model_in_memory", "1: the model is loaded; 0: asleep or waking.", self._engine.rest.state == "awake"
        )
        yield _counter("model_loads", "How often the model was loaded.", self._engine.rest.n_loads)
        yield from _answers(self._engine.stats())


def _http(meter: Meter) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "sparrow_http_requests", "Requests whose response has ended.", labels=["route", "method", "status"]
    )
    for (route, method, status), n in sorted(meter.requests.items()):
        requests.add_metric([route, method, str(status)], n)
    yield requests
    yield _gauge("http_open_requests", "Requests whose response has not ended, streams included.", len(meter.open))


def _answers(stats: Stats) -> Iterator[Metric]:
    answers = CounterMetricFamily("sparrow_answers", "Answers that have ended, by how.", labels=["reason"])
    for reason, n in stats.n_finished.items():
        answers.add_metric([reason], n)
    yield answers
    yield _counter("prompt_tokens", "Tokens of prompts, reused ones included.", stats.n_prompt)
    yield _counter("reused_prompt_tokens", "Tokens of prompts that did not have to be read again.", stats.n_reused)
    yield _counter("completion_tokens", "Tokens of answers.", stats.n_completion)
    yield _gauge("requests_waiting", "Requests that wait for a slot.", stats.n_waiting)
    yield _gauge("requests_running", "Requests that have a slot.", stats.n_running)
    yield _histogram("step_seconds", "One step of the engine: a batch through the model.", stats.steps)
    yield from _memory(stats)


def _memory(stats: Stats) -> Iterator[Metric]:
    slots = GaugeMetricFamily("sparrow_slots", "Slots of the KV cache, by state.", labels=["state"])
    counted = Counter(slot.state for slot in stats.slots)
    for state in ("empty", "idle", "busy"):
        slots.add_metric([state], counted[state])
    yield slots
    yield _gauge("kv_tokens", "Tokens that the KV cache holds.", sum(slot.n_tokens for slot in stats.slots))
    yield _gauge("kv_room_tokens", "Tokens that the KV cache has room for.", stats.n_ctx * len(stats.slots))
    yield _gauge("snapshots", "Idle conversations on disk.", stats.n_snapshots)
    yield _gauge("snapshot_bytes", "Bytes that they take.", stats.snapshot_bytes)
    yield _gauge("snapshot_quota_bytes", "Bytes that they may take (--snapshot-mb).", stats.snapshot_quota)


def _build(engine: Engine) -> Metric:
    about = {
        "llama_cpp_python": _version("llama_cpp_python"),
        "model": engine.model.name,
        "quant": engine.model.quant,
        "n_ctx": str(engine.model.n_ctx),
    }
    return InfoMetricFamily("sparrow_build", "What is served, and by what.", value=about)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(f"sparrow_{name}", help, value=value)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sparrow_{name}", help, value=value)


def _histogram(name: str, help: str, seen: Histogram) -> Metric:
    """Prometheus' buckets hold all that is up to their bound; the engine's hold what is between two."""
    buckets, total = list[tuple[str, float]](), 0
    for bound, n in zip((*map(str, seen.bounds), "+Inf"), seen.counts, strict=True):
        total += n
        buckets.append((bound, total))
    return HistogramMetricFamily(f"sparrow_{name}", help, buckets=buckets, sum_value=seen.total)


def registry_of(engine: Engine, meter: Meter) -> CollectorRegistry:
    """All that is told, read when it is asked for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sparrow(engine, meter))
    ProcessCollector(registry=registry)  # process_resident_memory_bytes, process_cpu_seconds_total, open files
    return registry


async def metrics(request: Request[AppState]) -> Response:
    """GET /metrics, in Prometheus' text form."""
    registry = registry_of(request.state["engine"], request.state["meter"])
    return Response(generate_latest(registry), media_type=TEXT, headers={"Cache-Control": "no-store"})


routes: list[BaseRoute] = [Route("/metrics", metrics, methods=["GET"])]
