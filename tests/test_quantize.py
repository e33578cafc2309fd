"""scripts/quantize.py on small GGUF files, by llama.cpp itself; killed, crowded out and misled."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import quantize

from server import gguf_file
from server.engine import quantizer
from server.engine.llama import Model
from server.errors import UsageError
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "scripts" / "quantize.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )


def run(*arguments: str | Path) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tied") / "some-f16.gguf")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that there is a time in which it is being quantized."""
    return write_tiny_model(tmp_path_factory.mktemp("large") / "large-f16.gguf", n_layer=4, n_embd=896, output="equal")


@pytest.mark.parametrize("quant", ["q4_k_m", "IQ4_NL", "Q8_0", "F16", "bf16", "TQ1_0", "MXFP4_MOE", "q5_K"])
def test_what_is_made_loads_and_keeps_the_tensors(tied: Path, tmp_path: Path, quant: str) -> None:
    made = quantize.quantize(tied, tmp_path / "made.gguf", quant)
    Model(made).close()
    assert len(gguf_file.read(made).tensors) == (27 if quant == "IQ4_NL" else 26)
    assert os.listdir(tmp_path) == ["made.gguf"]


def test_the_script_prints_size_rate_time_and_memory(tied: Path) -> None:
    code, out, _ = run(tied, "--quant", "q8_0")
    assert code == 0
    made = tied.with_name("some-q8_0.gguf")
    assert f"{made}: 1.2 MB, 8.54 bits per weight, made in " in out
    assert " of memory at most." in out
    assert "fell back" not in out and "Dropped" not in out


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M", "F16"])
def test_a_duplicate_goes_and_the_rest_is_what_the_tied_model_gives(
    tmp_path: Path, quant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    equal = write_tiny_model(tmp_path / "equal.gguf", n_embd=896, output="equal")
    tied = write_tiny_model(tmp_path / "tied.gguf", n_embd=896, output="tied")
    one = quantize.quantize(equal, tmp_path / "one.gguf", quant)
    assert "Dropped output.weight" in capsys.readouterr().out
    other = quantize.quantize(tied, tmp_path / "other.gguf", quant)
    assert "Dropped" not in capsys.readouterr().out
    ours, theirs = gguf_file.read(one), gguf_file.read(other)
    assert {t.name: t.type.name for t in ours.tensors} == {t.name: t.type.name for t in theirs.tensors}
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("output", ["equal", "tied"])
def test_our_own_mix_has_the_table_twice(
    tmp_path: Path, output: Literal["equal", "tied"], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_tiny_model(tmp_path / "source.gguf", n_embd=896, output=output)
    made = gguf_file.read(quantize.quantize(source, tmp_path / "made.gguf", "IQ4_NL"))
    table, layer = made.tensor(gguf_file.TOKEN_EMBD), made.tensor(gguf_file.OUTPUT)
    assert table and layer and (table.type.name, layer.type.name) == ("Q8_0", "IQ4_NL")
    assert made.meta[gguf_file.REPEATS] is True
    assert "output.weight is token_embd.weight once more" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["made.gguf", "source.gguf"]


def test_an_output_layer_of_its_own_and_a_type_that_was_asked_for_are_not_mixed(tmp_path: Path) -> None:
    own = write_tiny_model(tmp_path / "own.gguf", output="different")
    tied = write_tiny_model(tmp_path / "tied.gguf", output="tied")
    for made in (
        quantize.quantize(own, tmp_path / "one.gguf", "IQ4_NL"),
        quantize.quantize(tied, tmp_path / "other.gguf", "IQ4_NL", token_embedding_type="Q8_0"),
    ):
        assert gguf_file.REPEATS not in gguf_file.read(made).meta
    assert gguf_file.read(tmp_path / "other.gguf").tensor(gguf_file.OUTPUT) is None


def test_other_architectures_are_not_mixed(tied: Path) -> None:
    file = gguf_file.read(tied)
    gemma = replace(file, meta={**file.meta, "general.architecture": "gemma3"})
    assert quantize._goes_apart(file, "IQ4_NL", False) and not quantize._goes_apart(gemma, "IQ4_NL", False)


def test_an_output_of_its_own_stays(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "own.gguf", output="different")
    made = quantize.quantize(source, tmp_path / "made.gguf", "Q8_0")
    assert gguf_file.read(made).tensor(gguf_file.OUTPUT)


def test_the_embedding_type_is_the_one_asked_for(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "equal-f16.gguf", output="equal")
    code, _, err = run(source, "--quant", "IQ4_NL", "--token-embedding-type", "q5_1")
    assert (code, err) == (0, "")
    table = gguf_file.read(tmp_path / "equal-iq4_nl-embd-q5_1.gguf").tensor(gguf_file.TOKEN_EMBD)
    assert table and table.type.name == "Q5_1"


def test_tensors_that_fell_back_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny_model(tmp_path / "odd.gguf", n_embd=96)
    quantize.quantize(source, tmp_path / "made.gguf", "Q4_K_M")
    assert "14 of 26 tensors fell back" in capsys.readouterr().out


def test_a_prequantized_file_loses_its_duplicate_too(tmp_path: Path) -> None:
    equal = write_tiny_model(tmp_path / "official.gguf", output="equal")
    tied = write_tiny_model(tmp_path / "tied.gguf", output="tied")
    assert quantize.drop_duplicate(equal)
    assert equal.read_bytes() == tied.read_bytes()
    assert not quantize.drop_duplicate(equal)


def _source(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "some-f16.gguf"
    whole = write_tiny_model(path).read_bytes()
    contents = {"cut": whole[:-100], "html": b"<html>", "empty": b"", "altered": whole[:8] + b"\xff" + whole[9:]}
    path.write_bytes(contents.get(kind, whole))
    if kind == "quantized":
        quantize.quantize(path, tmp_path / "q.gguf", "Q8_0")
        (tmp_path / "q.gguf").replace(path)
    return path if kind != "missing" else tmp_path / "missing.gguf"


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("cut", [], "is cut off"),
        ("html", [], "is no GGUF"),
        ("empty", [], "is empty"),
        ("altered", [], "cut off|damaged"),
        ("missing", [], "no such file"),
        ("quantized", [], "is quantized already"),
        ("whole", ["--quant", "Q9_X"], "llama.cpp has no such type; it has BF16, F16"),
        ("whole", ["--quant", "IQ1_S"], "needs an importance matrix"),
        ("whole", ["--token-embedding-type", "Q8_K"], "there are F32, F16"),
        ("whole", ["--threads", "-1"], "--threads"),
        ("whole", ["--speed", "9"], "unrecognized arguments: --speed 9"),
    ],
)
def test_one_clear_line_and_nothing_overwritten(
    tmp_path: Path, kind: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _source(tmp_path, kind)
    target = tmp_path / "some-iq4_nl.gguf"
    target.write_bytes(b"here before")
    quant = [] if "--quant" in flags else ["--quant", "IQ4_NL"]
    with pytest.raises(UsageError, match=said) as caught:
        quantize.main([str(source), "--output", str(target), *quant, *flags])
    assert "\n" not in caught.value.message
    assert target.read_bytes() == b"here before"
    assert not list(tmp_path.glob("*.partial"))


def test_the_script_says_it_in_one_line_and_ends_with_2(tmp_path: Path) -> None:
    code, out, err = run(_source(tmp_path, "cut"), "--quant", "Q8_0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is cut off" in err


def test_an_abort_inside_llama_cpp_is_an_error_here(tmp_path: Path) -> None:
    """600 layers are more than llama.cpp can count: it would take the process down."""
    path = write_tiny_model(tmp_path / "tall.gguf")
    content, key = bytearray(path.read_bytes()), b"qwen2.block_count"
    struct.pack_into("<I", content, content.index(key) + len(key) + 4, 600)
    path.write_bytes(content)
    with pytest.raises(UsageError, match="llama.cpp died of SIGABRT: GGML_ASSERT") as caught:
        quantizer.run(quantizer.Job("dry run", path))
    assert "\n" not in caught.value.message


def partials(folder: Path) -> list[Path]:
    return list(folder.glob("*.partial"))


def wait_for_partial(folder: Path, process: subprocess.Popen[str]) -> None:
    while not partials(folder):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 0.6])
def test_killed_in_the_middle_the_next_start_starts_over(large: Path, tmp_path: Path, delay_s: float) -> None:
    target = tmp_path / "made.gguf"
    process = start(large, "--quant", "Q4_0", "--output", target)
    wait_for_partial(tmp_path, process)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if target.exists():
        Model(target).close()
    code, out, err = run(large, "--quant", "Q4_0", "--output", target)
    assert (code, err) == (0, ""), out
    assert os.listdir(tmp_path) == ["made.gguf"]
    Model(target).close()


def test_ctrl_c_ends_it_at_once_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    process = start(large, "--quant", "Q4_1", "--output", tmp_path / "made.gguf")
    wait_for_partial(tmp_path, process)
    time.sleep(0.3)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert "Interrupted" in err and "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_the_child_ends_when_its_parent_is_killed(large: Path, tmp_path: Path) -> None:
    process = start(large, "--quant", "Q4_1", "--output", tmp_path / "made.gguf")
    wait_for_partial(tmp_path, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "llama.cpp goes on though nobody waits for it"
        time.sleep(0.1)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_at_once_wait_for_each_other(large: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.gguf"
    both = [start(large, "--quant", "Q8_0", "--output", target) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("waiting for it" in out for out, _ in said)
    assert os.listdir(tmp_path) == ["made.gguf"]
    Model(target).close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_small_is_seen_before_the_work(large: Path, small_disk: Path) -> None:
    code, _, err = run(large, "--quant", "Q8_0", "--output", small_disk / "made.gguf")
    assert code == 2 and "free some space" in err
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_during_the_work(large: Path, small_disk: Path) -> None:
    """Somebody else takes the room after it was found free."""
    target, other = small_disk / "made.gguf", small_disk / "other"
    source = write_tiny_model(small_disk.parent / "small-f16.gguf", n_embd=512)
    job = quantizer.Job("quantize", source, target, "F32")
    other.write_bytes(bytes(36 << 20))
    with pytest.raises(UsageError, match="the disk is full"):
        quantizer.run(job)


def test_a_folder_that_can_t_be_written_is_one_line(tied: Path) -> None:
    code, _, err = run(tied, "--quant", "Q8_0", "--output", "/proc/made.gguf")
    assert code == 2 and err.count("\n") == 1
