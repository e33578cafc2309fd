"""The benchmark: what it asks of the machine, and whole runs against the real server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import bench
import bench_client
import bench_machine
import bench_report
import bench_server
import bench_sides
import pytest
import standin
from bench_raw import Job
from bench_scenarios import SCENARIOS, Sizes
from bench_sides import OURS, PEER, RAW

from server.errors import UsageError
from tests.test_standin import TINY

FEW = Sizes(n_tokens=24, n_long=200, n_history=300, n_newcomer=300, n_running=400, n_cancelled=400, n_streams=4)
SMALL = replace(FEW, n_reading=500, cancel_s=0.05, pause_s=0.1, idle_s=0.1, kill_s=0.3)
"""A tiny model computes in milliseconds; what is measured of it means nothing, but all of it is measured."""


@pytest.fixture(scope="module")
def tiny_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("standin") / "standin-f16.gguf"
    standin.write(path, TINY)
    return path


class TestMachine:
    def test_the_machine_is_named(self) -> None:
        machine = bench_machine.describe()
        assert machine["cpu"] and int(machine["n_cores"]) >= 1 and int(machine["memory_mb"]) > 100
        assert machine["llama_cpp_python"] == "0.3.36"

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
    def test_memory_of_a_process_counts_what_it_started(self) -> None:
        hoard = "import sys; held = bytes(range(256)) * 400_000; print('ready', flush=True); sys.stdin.read()"
        starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hoard!r}])"
        child = subprocess.Popen([sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin and child.stdout and child.stdout.readline() == b"ready\n"
        try:
            own, tree = (read(child.pid, "VmHWM") for read in (bench_machine.status_bytes, bench_machine.tree_bytes))
            assert own and tree and tree - own > 102_400_000
        finally:
            child.stdin.close()
            child.wait()
            child.stdout.close()
        assert bench_machine.tree_bytes(child.pid, "VmHWM") is None

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
    def test_the_cpu_that_a_process_burns_is_seen_to_its_end(self) -> None:
        work = "import sys, time; sys.stdin.readline()\nwhile time.process_time() < 0.3: pass\nsys.stdin.readline()"
        child = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
        assert child.stdin
        try:
            time.sleep(0.3)  # it has started, and waits
            child.stdin.write(b"\n")
            child.stdin.flush()
            burnt = bench_machine.until_quiet(child.pid, 30.0)
        finally:
            child.stdin.close()
            child.wait()
        assert burnt is not None and 0.1 < burnt[0] < 0.4 and burnt[1] >= burnt[0] - 0.05
        assert bench_machine.cpu_s(child.pid) is None and bench_machine.until_quiet(child.pid, 1.0) is None

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
    def test_the_process_behind_a_port_is_found(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            assert bench_machine.listener(port) == os.getpid()
        assert bench_machine.listener(port) is None

    def test_memory_can_not_be_read_faster_than_light(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_machine, "N_BUFFER", 1 << 20)
        assert 1e8 < bench_machine.bandwidth(1) < 1e12

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
    def test_somebody_who_computes_is_noticed(self) -> None:
        worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            others = bench_machine.Others()
            busy, while_we_wait = bench_machine.busy_share(0.5), others.share()
        finally:
            worker.kill()
            worker.wait()
        assert busy is not None and 0.5 / (os.cpu_count() or 1) < busy <= 1.0
        # It was a stranger while it ran; now that it is waited for, what it took was ours.
        assert while_we_wait is not None and 0.5 / (os.cpu_count() or 1) < while_we_wait <= 1.0
        assert (others.share() or 0.0) < while_we_wait


class TestBench:
    def test_all_scenarios_against_the_real_server_and_one_that_runs_already(
        self, tiny_standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, chart = tmp_path / "mine-f16.gguf", tmp_path / "chart.svg"
        shutil.copy(tiny_standin, source)
        program = bench_server.sparrow(source, n_ctx=1024, n_slots=4, n_threads=1)
        flags = ["--model", str(source), "--quant", "q8_0", "--runs", "1", "--ctx", "1024", "--slots", "4"]
        with bench_server.running(program, tmp_path) as other:
            url = other.client.url
            flags += ["--threads", "1", "--plot", str(chart), "--against", f"{url}/v1/"]
            assert bench.main(flags, SMALL) == 0
        out, progress = capsys.readouterr()
        report = json.loads(out.splitlines()[-1])
        assert report["model"] == "mine-q8_0.gguf" and (tmp_path / "mine-q8_0.gguf").exists()
        assert report["run"]["n_short"] == 60 and report["run"]["n_threads"] == 1
        ours, raw, against = (report["results"][side] for side in (OURS, RAW, url.partition("//")[2]))
        keys = {figure.key for figure in bench_report.FIGURES if not figure.key.startswith("box_")}
        assert keys - set(ours) <= {"gap_median_ms", "gap_p99_ms", "gap_largest_ms", "together_decode_tok_s"}
        of_our_page = {key for key in keys if key.startswith(("health_", "page_"))} | {"lost_s", "goes_on"}
        assert keys - {"load_s", "restart_s"} - of_our_page - set(against) <= keys - set(ours) | {
            "gap_median_ms",
            "gap_p99_ms",
            "gap_largest_ms",
            "together_decode_tok_s",
        }
        assert set(raw) == {"load_s", "first_token_ms", "prompt_tok_s", "decode_tok_s", "peak_mb"} | {
            "together_tok_s",
            "together_decode_tok_s",
        }
        assert ours["load_s"]["median"] > raw["load_s"]["median"], "the server's start has the model's load in it"
        assert ours["goes_on"]["median"] in (0.0, 1.0) and ours["lost_s"]["median"] < SMALL.kill_s + 0.1
        assert all(f"{name}, {OURS}" in progress for name in SCENARIOS if name != "box")
        assert ElementTree.fromstring(chart.read_text()).tag.endswith("svg")
        assert all(figure.label in out for figure in bench_report.FIGURES if figure.key in ours)

    def test_each_with_its_usual_file(
        self, tiny_standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A llama-server that is Sparrow inside: what is tested is who gets which file."""
        theirs, binary = tmp_path / "theirs-f16.gguf", tmp_path / "llama-server"
        shutil.copy(tiny_standin, theirs)
        binary.write_text(
            f'#!/bin/sh\necho "$2" >> {tmp_path}/served\n'
            'while [ "$1" != --port ]; do [ "$1" = -m ] && model=$2; shift; done\n'
            f'exec {" ".join(bench_server.SERVE)} --model "$model" --no-browser --port "$2" --ctx 1024 --threads 1 '
            f"--data-dir {tmp_path}/data\n"
        )
        binary.chmod(0o755)
        flags = ["--model", str(tiny_standin), "--llama-server", str(binary), "--box", str(tiny_standin), str(theirs)]
        assert bench.main([*flags, "--runs", "1", "--ctx", "1024", "--scenario", "one", "box"], SMALL) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (
            report["results"][PEER].keys() == report["results"][OURS].keys() > {"box_decode_tok_s", "box_prompt_tok_s"}
        )
        assert (tmp_path / "served").read_text().split() == [str(tiny_standin), str(theirs)]
        assert len([text for text in report["promises"] if "usual file" in text]) == 2

    def test_a_server_that_runs_is_measured_as_it_is(
        self, tiny_standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = bench_server.sparrow(tiny_standin, n_ctx=1024, n_slots=2, n_threads=1)
        with bench_server.running(program, tmp_path) as server:
            flags = ["--url", server.client.url, "--runs", "2", "--scenario", "one", "memory", "restart", "kill"]
            assert bench.main(flags, SMALL) == 0
            assert server.peak_bytes and server.resident_bytes and server.peak_bytes >= server.resident_bytes > 30e6
        assert not bench_client.is_healthy(server.client.url)
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(report["results"]) == {OURS} and report["model"] == flags[1]
        found = report["results"][OURS]
        assert "restart_s" not in found and "lost_s" not in found, "it can't be ended: somebody else started it"
        assert 30 < found["idle_mb"]["median"] <= found["peak_mb"]["median"]
        assert all(spread["low"] <= spread["median"] <= spread["high"] for spread in found.values())

    def test_the_short_prompt_has_its_length_and_reuses_nothing(self, tiny_standin: Path, tmp_path: Path) -> None:
        program = bench_server.sparrow(tiny_standin, n_ctx=1024, n_slots=2, n_threads=1)
        with bench_server.running(program, tmp_path) as server:
            client = server.client
            template = client.chat(bench_client.unique_chat(20), 2).n_prompt - 20
            answers = [client.chat(bench_client.unique_chat(60 - template), 40) for _ in range(2)]
        assert [(answer.n_prompt, answer.n_tokens) for answer in answers] == [(60, 40), (60, 40)]
        assert all(answer.n_reused < 20 for answer in answers), "the template's first words are all that they share"

    def test_check_turns_a_broken_promise_into_an_exit_code(
        self, tiny_standin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        samples = {OURS: {"decode_tok_s": [20.0]}, RAW: {"decode_tok_s": [40.0]}}
        monkeypatch.setattr(bench.Bench, "measure", lambda *_: (samples, [0.0]))
        monkeypatch.setattr(bench_machine, "N_BUFFER", 1 << 20)
        assert bench.main(["--model", str(tiny_standin)], SMALL) == 0
        assert bench.main(["--model", str(tiny_standin), "--check"], SMALL) == 1
        assert (
            capsys.readouterr().out.count("SHORT  one stream, tokens/s: at least 0.97 × llama_decode alone: 0.50") == 2
        )

    @pytest.mark.parametrize(
        "flags, message",
        [
            ([], "Give --standin, --model PATH"),
            (["--standin", "--model", "x.gguf"], "one of them"),
            (["--model", "nowhere.gguf"], "nowhere.gguf: no such file"),
            (["--standin", "--runs", "0"], "--runs and --slots take 1 or more"),
            (["--standin", "--n-tokens", "1"], "--n-tokens 2 or more"),
            (
                ["--standin", "--ctx", "512"],
                "--ctx 512: the conversations that are measured need more than 1508 tokens",
            ),
            (["--standin", "--fast"], "unrecognized arguments: --fast"),
            (
                ["--standin", "--scenario", "two"],
                "--scenario two: there is none of that name; give some of one, together",
            ),
            (["--standin", "--scenario", "box"], "--scenario box needs two files"),
            (["--standin", "--box", "a.gguf", "b.gguf"], "--box compares with a llama-server"),
            (["--standin", "--llama-server", "nowhere"], "--llama-server nowhere: there is no program"),
            (["--url", "http://127.0.0.1:9", "--quant", "q4_0"], "leave --quant and --llama-server out"),
            (["--standin", "--plot", "chart.png"], "--plot chart.png: the chart is an SVG"),
            (["--standin", "--plot", "nowhere/chart.svg"], "there is no folder nowhere"),
        ],
    )
    def test_what_can_not_work_is_said_in_one_line(self, flags: list[str], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            bench.main(flags)
        assert message in caught.value.message and "\n" not in caught.value.message

    def test_a_file_that_is_no_model_is_named_before_anything_starts(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(b"GGUF" + bytes(100))
        with pytest.raises(UsageError, match="broken.gguf"):
            bench.main(["--model", str(broken)])

    def test_a_server_that_does_not_start_says_why(self, tmp_path: Path) -> None:
        program = bench_server.sparrow(tmp_path / "gone.gguf", n_ctx=1024, n_slots=1, n_threads=1)
        with pytest.raises(UsageError, match="serve.py ended before it answered: .*gone.gguf"):
            with bench_server.running(program, tmp_path):
                pass

    def test_a_program_that_can_not_be_started_is_one_line(self, tmp_path: Path) -> None:
        program = bench_server.llama_server(tmp_path, tmp_path / "m.gguf", n_ctx=1024, n_slots=1, n_threads=1)
        with pytest.raises(UsageError, match="can't be started: Permission denied"):
            with bench_server.running(program, tmp_path):
                pass

    def test_a_model_that_can_not_be_computed_is_one_line_too(self, tiny_standin: Path) -> None:
        job = Job(str(tiny_standin), n_ctx=1024, n_slots=1, n_threads=1, n_prompt=1500, n_long=1500, n_tokens=4)
        with pytest.raises(UsageError, match=r"can't compute .*: RuntimeError: llama_decode returned 1$"):
            bench_sides.raw_figures(job)
