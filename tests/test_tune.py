"""Choosing threads: measured once, kept, measured again when what was kept makes no sense or is of another device."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine import tune
from server.engine.llama import Context, ContextParams, Model
from server.engine.tune import Threads, choose


@pytest.fixture
def context(tiny_model: Model) -> Iterator[Context]:
    context = Context(tiny_model, ContextParams(n_ctx=256, n_slots=1, n_threads=1))
    yield context
    assert context.n_held(0) == 0
    context.close()


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(tune, "BUDGET_S", 0.2)


def test_a_choice_is_measured_once_and_kept(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "data" / "tuning.json"
    threads = choose(context, 2, "model on device", kept)
    assert threads.n_decode in (1, 2) and threads.n_prefill in (1, 2)
    monkeypatch.setattr(tune, "_measure", lambda *_: pytest.fail("measured again"))
    assert choose(context, 2, "model on device", kept) == threads


def test_fewer_threads_are_taken_only_where_they_are_clearly_faster() -> None:
    assert tune._best({4: 1.0, 2: 0.98, 1: 2.0}, 4) == 4
    assert tune._best({4: 1.0, 2: 0.8, 1: 2.0}, 4) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"k": {"n_decode": 0, "n_prefill": 1}}', '{"k": {"n": 1}}', '{"k": 5}']
)
def test_nonsense_in_the_file_is_measured_anew(context: Context, tmp_path: Path, text: str) -> None:
    kept = tmp_path / "tuning.json"
    kept.write_text(text)
    choose(context, 2, "k", kept)
    assert set(json.loads(kept.read_text())["k"]) == {"n_decode", "n_prefill"}


def test_a_busy_machine_is_not_measured(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    kept = tmp_path / "tuning.json"
    assert choose(context, 2, "k", kept) == Threads(2, 2) and not kept.exists()


def test_a_folder_that_can_not_be_written_only_costs_the_next_start_a_measurement(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    choose(context, 2, "k", Path("/proc/nothing/tuning.json"))
    assert "can't be kept" in caplog.text
