"""What a device is fastest with: measured once and kept, measured again when what was kept makes no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.engine import tune
from server.engine.llama import Model
from server.engine.tune import Choice, choose


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(tune, "BUDGET_S", 0.2)


def test_a_choice_is_measured_once_and_kept(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "data" / "tuning.json"
    choice = choose(tiny_model, 3, 2, "model on device", kept)
    assert {choice.n_decode, choice.n_prefill} <= {1, 2} and choice.n_batch in tune.N_BATCHES
    monkeypatch.setattr(tune, "_measure", lambda *_: pytest.fail("measured again"))
    assert choose(tiny_model, 3, 2, "model on device", kept) == choice


def test_the_form_of_the_cache_that_is_clearly_faster_is_taken(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "_together", lambda context, _: 0.9 if context.kv_unified else 1.0)
    assert tune._measure(tiny_model, 3, 1).kv_unified
    monkeypatch.setattr(tune, "_together", lambda context, _: 0.97 if context.kv_unified else 1.0)
    assert not tune._measure(tiny_model, 3, 1).kv_unified


def test_a_larger_chunk_is_taken_only_where_it_is_clearly_faster() -> None:
    assert tune._best_chunk({64: 1.0, 128: 0.9}) == 128
    assert tune._best_chunk({64: 1.0, 128: 0.97}) == 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"k": {"n_decode": 0, "n_prefill": 1}}',
        '{"k": {"n": 1}}',
        '{"k": 5}',
        '{"k": {"n_decode": 1, "n_prefill": 1, "n_batch": 7}}',
    ],
)
def test_nonsense_in_the_file_is_measured_anew(tiny_model: Model, tmp_path: Path, text: str) -> None:
    kept = tmp_path / "tuning.json"
    kept.write_text(text)
    choose(tiny_model, 1, 2, "k", kept)
    assert set(json.loads(kept.read_text())["k"]) == {"n_decode", "n_prefill", "n_batch", "kv_unified"}


def test_a_busy_machine_is_not_measured(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    kept = tmp_path / "tuning.json"
    assert choose(tiny_model, 1, 2, "k", kept) == Choice(2, 2) and not kept.exists()


def test_a_folder_that_can_not_be_written_only_costs_the_next_start_a_measurement(
    tiny_model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    choose(tiny_model, 1, 2, "k", Path("/proc/nothing/tuning.json"))
    assert "can't be kept" in caplog.text
