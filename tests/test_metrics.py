"""GET /metrics: read by Prometheus' own parser, and compared with what was asked. On the real process."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine.stats import STEP_BOUNDS_S, Histogram
from server.metrics import _histogram
from tests.server_process import ServerProcess

SECRET = "xyzzy-plugh-42"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(["--demo", "--data-dir", str(tmp_path_factory.mktemp("data")), "--slots", "3"]) as running:
        yield running


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(server: ServerProcess) -> Samples:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as reply:
        assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = reply.read().decode()
    assert SECRET not in text
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families if family.name.startswith("sparrow_"))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for f in families for sample in f.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


def complete(server: ServerProcess, text: str) -> dict[str, int]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 5, "ignore_eos": True}
    usage: dict[str, int] = server.json("/v1/chat/completions", asked)["usage"]
    return usage


def test_it_counts_what_was_asked(server: ServerProcess) -> None:
    before = samples(server)
    used = [complete(server, "Repeat: " + "one two " * 20) for _ in range(2)]
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.json(f"/{SECRET}/{SECRET}")
    refused.value.close()
    after = samples(server)

    def gained(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    route = "/v1/chat/completions"
    assert gained("sparrow_http_requests_total", route=route, method="POST", status="200") == 2
    assert gained("sparrow_http_requests_total", route="other", method="GET", status="404") == 1
    assert gained("sparrow_http_requests_total", route="/metrics", method="GET", status="200") == 1
    assert gained("sparrow_answers_total", reason="length") == 2
    assert gained("sparrow_completion_tokens_total") == sum(usage["completion_tokens"] for usage in used) == 10
    assert gained("sparrow_prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in used)
    assert gained("sparrow_reused_prompt_tokens_total") >= used[1]["prompt_tokens"] - 1
    assert gained("sparrow_step_seconds_count") >= 5 and gained("sparrow_step_seconds_sum") > 0
    assert gained("sparrow_step_seconds_bucket", le="+Inf") == gained("sparrow_step_seconds_count")


def test_it_tells_how_things_stand(server: ServerProcess) -> None:
    complete(server, "Hello!")
    deadline = time.monotonic() + 20
    while value(found := samples(server), "sparrow_slots", state="busy"):  # how the answer closes is read
        assert time.monotonic() < deadline
    states = [value(found, "sparrow_slots", state=state) for state in ("empty", "idle")]
    assert sum(states) == 3 and states[1] >= 1
    assert 0 < value(found, "sparrow_kv_tokens") <= value(found, "sparrow_kv_room_tokens") == 3 * 4096
    assert value(found, "sparrow_requests_waiting") == value(found, "sparrow_requests_running") == 0
    assert value(found, "sparrow_http_open_requests") == 1, "the one that asks"
    assert value(found, "sparrow_snapshot_quota_bytes") == 512e6
    assert value(found, "sparrow_model_in_memory") == value(found, "sparrow_model_loads_total") == 1
    assert value(found, "sparrow_uptime_seconds") > 0
    assert value(found, "process_resident_memory_bytes") > 50e6
    (build,) = [dict(labels) for name, labels in found if name == "sparrow_build_info"]
    assert build["quant"].startswith("Q8_0") and build["n_ctx"] == "4096"


def test_a_saved_conversation_is_counted(server: ServerProcess) -> None:
    complete(server, "Repeat: " + "red green blue " * 30)
    deadline = time.monotonic() + 30
    while value(found := samples(server), "sparrow_snapshots") == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert value(found, "sparrow_snapshot_bytes") > 1000


def test_buckets_hold_all_below_them() -> None:
    counts = tuple(range(1, len(STEP_BOUNDS_S) + 2))
    family = _histogram("x", "help", Histogram(STEP_BOUNDS_S, counts, 1.5))
    buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
    assert buckets == [sum(counts[: n + 1]) for n in range(len(counts))]


def test_names_are_as_prometheus_wants_them(server: ServerProcess) -> None:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    for family in families:
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), family.name
        assert not any(unit in family.name for unit in ("_ms", "_mb", "_minutes"))
