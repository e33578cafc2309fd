"""scripts/serve.py from an empty folder of models to an answer, and what it says when there is no way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serve as start

from server import gguf_file
from server.errors import UsageError
from server.settings import load
from tests.hub import Faults, Hub
from tests.server_process import ServerProcess
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
FP16, MADE = "qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct-iq4_nl.gguf"
OFFICIAL = "qwen2.5-0.5b-instruct-q4_0.gguf"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("content") / "model.gguf"
    return write_tiny_model(path, dtype="F32", output="equal").read_bytes()


@pytest.fixture
def hub(content: bytes) -> Iterator[Hub]:
    with Hub({FP16: content, OFFICIAL: content}) as running:
        yield running


def serve(*flags: str) -> tuple[int, str]:
    """Runs to its end: for starts that can't become a server."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--no-browser", "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done
    return done.returncode, done.stderr


def flags(hub: Hub, models: Path) -> list[str]:
    data = models.parent / "data"
    return ["--endpoint", hub.url, "--models-dir", str(models), "--data-dir", str(data), "--ctx", "256", "--slots", "1"]


def test_from_nothing_to_a_server_and_again_without_a_hub(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with ServerProcess(flags(hub, models)) as server:
        assert server.json("/health")["quant"].startswith("IQ4_NL")
        assert "output.weight is token_embd.weight once more" in server.output
        assert f"Kept {models / FP16}" in server.output or f"Deleted {FP16}" in server.output
    assert (models / MADE).exists()
    n_requests = len(hub.requests)
    with ServerProcess(flags(hub, models)) as server:
        assert server.json("/health")["quant"].startswith("IQ4_NL")
        assert "Quantizing" not in server.output
    assert len(hub.requests) == n_requests


def test_the_official_file_of_a_level_loses_its_duplicate(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with ServerProcess([*flags(hub, models), "--prequantized"]) as server:
        assert server.json("/health")["status"] == "ok"
    assert gguf_file.read(models / OFFICIAL).tensor(gguf_file.OUTPUT) is None
    assert os.listdir(models) == [OFFICIAL]


def test_killed_while_it_fetches_it_goes_on_and_never_serves_a_half_file(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    hub.faults = Faults(pause_s=0.05)
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *flags(hub, models), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while hub.sent < 2_500_000:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (models / FP16).exists()
    hub.faults = Faults()
    with ServerProcess(flags(hub, models)) as server:
        assert "going on after" in server.output
        assert server.json("/health")["status"] == "ok"


def test_a_half_copied_model_is_named_and_not_served(tmp_path: Path, content: bytes) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / MADE).write_bytes(content[:-1000])
    code, said = serve("--models-dir", str(models))
    assert code == 2 and said.count("\n") == 1
    assert f"{models / MADE} is cut off" in said


def test_without_a_hub_the_other_ways_are_named(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(hub_status=503)
    code, said = serve(*flags(hub, tmp_path / "models"))
    assert code == 2
    assert "can't be fetched" in said and "it answers with 503" in said
    for way in ("--demo", "--endpoint", "HF_ENDPOINT", "--model PATH"):
        assert way in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--quant", "Q9"], "llama.cpp has no such type"),
        (["--demo", "--quant", "Q9"], "llama.cpp has no such type"),
        (["--prequantized", "--quant", "IQ4_NL"], "there is no official file of that level"),
        (["--model", "missing.gguf"], "missing.gguf: no such file"),
        (["--model", str(ROOT / "README.md")], "is no GGUF"),
        (["--demo", "--model", "a.gguf"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        start.choose(load(arguments))
    assert said in caught.value.message and "\n" not in caught.value.message


def test_the_script_prints_that_line_and_ends_with_2() -> None:
    assert serve("--prot", "1") == (2, "unrecognized arguments: --prot 1 (see serve.py --help)\n")


def test_a_model_that_would_take_llama_cpp_down_is_refused(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tall.gguf")
    content, key = bytearray(path.read_bytes()), b"qwen2.block_count"
    place = content.index(key) + len(key) + 4
    content[place : place + 4] = (600).to_bytes(4, "little")
    path.write_bytes(content)
    code, error = serve("--model", str(path))
    assert code == 2 and "GGML_ASSERT" in error and error.count("\n") == 1


def test_the_help_needs_no_setting_up(tmp_path: Path) -> None:
    """Straight from a Python that has none of the packages."""
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, str(ROOT / "scripts" / "serve.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--prequantized" in done.stdout
