"""The benchmark: its statistics, its client, and whole runs against the real server."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import bench
import bench_client
import bench_machine
import bench_report
import bench_server
import pytest
import standin
from bench_report import Promise, Spread

from server.errors import UsageError
from tests.test_standin import TINY


@pytest.fixture(scope="module")
def tiny_standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("standin") / "standin-f16.gguf"
    standin.write(path, TINY)
    return path


class TestReport:
    SAMPLES = {
        "alone": {"decode_tok_s": [40.0, 38.0, 50.0], "peak_mb": [640.0]},
        "over HTTP": {"decode_tok_s": [36.0, 38.0, 30.0], "peak_mb": [690.0], "idle_mb": [680.0], "other": [1.0]},
    }

    def test_the_middle_counts_and_the_ends_are_kept(self) -> None:
        assert Spread.of([3.0, 1.0, 9.0]) == Spread(median=3.0, low=1.0, high=9.0)
        assert Spread.of([3.0, 1.0, 9.0]).show(1) == "3.0 (1.0–9.0)"
        assert Spread.of([1234.5]).show(0) == "1,234"

    def test_json_has_four_digits(self) -> None:
        results = {"a": {"decode_tok_s": Spread(31.4159, 2.0, 1234.56)}}
        assert bench_report.as_json(results) == {"a": {"decode_tok_s": {"median": 31.42, "low": 2.0, "high": 1235.0}}}

    def test_a_ratio_is_of_medians(self) -> None:
        results = bench_report.spreads(self.SAMPLES)
        assert bench_report.ratio(results, "over HTTP", "alone", "decode_tok_s") == 36.0 / 40.0
        assert bench_report.ratio(results, "over HTTP", "alone", "idle_mb") is None

    def test_the_table_has_a_line_for_each_figure_that_was_measured(self) -> None:
        head, rule, *lines = bench_report.table(self.SAMPLES).splitlines()
        assert re.split(r"  +", head.strip()) == ["alone", "over HTTP", "ratio"]
        assert set(rule) == {"─"}
        assert [re.split(r"  +", line) for line in lines] == [
            ["one stream, tokens/s", "40.0 (38.0–50.0)", "36.0 (30.0–38.0)", "0.90 ×"],
            ["peak resident memory, MB", "640", "690", "1.08 ×"],
            ["resident memory when idle, MB", "–", "680", "–"],
        ]

    def test_three_sides_are_each_compared_with_the_first(self) -> None:
        text = bench_report.table(
            {side: {"decode_tok_s": [rate]} for side, rate in (("a", 10.0), ("b", 5.0), ("c", 20.0))}
        )
        assert re.split(r"  +", text.splitlines()[-1]) == [
            "one stream, tokens/s",
            "10.0",
            "5.0",
            "0.50 ×",
            "20.0",
            "2.00 ×",
        ]

    @pytest.mark.parametrize(
        "promise, is_kept",
        [
            (Promise("rate", 0.90, 0.90, "least"), True),
            (Promise("rate", 0.8999, 0.90, "least"), False),
            (Promise("memory", 749.9, 750, "most"), True),
            (Promise("memory", 750.0, 750, "most"), False),
        ],
    )
    def test_a_promise_is_held_against_its_limit(self, promise: Promise, is_kept: bool) -> None:
        assert promise.is_kept is is_kept
        assert str(promise).startswith("OK" if is_kept else "SHORT")


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
    def test_somebody_who_computes_is_noticed(self) -> None:
        worker = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            busy = bench_machine.busy_share(0.5)
        finally:
            worker.kill()
            worker.wait()
        assert busy is not None and 0.5 / (os.cpu_count() or 1) < busy <= 1.0


def frames(*contents: str, usage: bool = True) -> list[bytes]:
    """An answer as OpenAI's API streams it."""
    made = [{"choices": [{"delta": {"content": content}}]} for content in contents]
    tail: list[dict[str, Any]] = (
        [{"choices": [], "usage": {"prompt_tokens": 60, "completion_tokens": 4}}] if usage else []
    )
    return [b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in [*made, *tail]] + [b"data: [DONE]\n\n"]


@contextmanager
def answering(status: int, body: list[bytes]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback that gives every request this reply; (its URL, the requests it got)."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            for part in body:
                self.wfile.write(part)
                time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


class TestClient:
    def test_only_text_counts_as_the_first_token(self) -> None:
        with answering(200, [b": ping\n\n", *frames("", "a", "", "b", "c", "d")]) as (url, requests):
            answer = bench_client.chat(url, bench_client.unique_chat(5), 4)
        assert (answer.n_prompt, answer.n_tokens, answer.n_reused, len(answer.times)) == (60, 4, 0, 4)
        assert answer.first_token_s >= 0.04, "the ping and the empty delta came 0.02 s apart"
        assert answer.times == sorted(answer.times)
        assert requests[0]["max_tokens"] == 4 and requests[0]["ignore_eos"] is True

    def test_the_speed_is_that_between_the_first_token_and_the_last(self) -> None:
        answer = bench_client.Answer([2.0, 2.5, 4.0], n_prompt=60, n_tokens=5, n_reused=0, client_s=0.0)
        assert answer.tokens_per_s == 4 / 2.0

    def test_no_two_prompts_begin_alike(self) -> None:
        first, second = (bench_client.unique_chat(30)[0]["content"] for _ in range(2))
        assert re.fullmatch(r"\d{30}", first) and first != second

    @pytest.mark.parametrize(
        "status, body, message",
        [
            (400, [b'{"error": {"message": "ignore_eos: unknown."}}'], "answered 400: ignore_eos: unknown."),
            (502, [b"Bad Gateway"], "answered 502: Bad Gateway"),
            (200, [b'data: {"error": {"message": "no memory"}}\n\n'], "broke an answer off: no memory"),
            (200, frames("a", "b", usage=False), "streams no text, or no usage"),
            (200, [], "streams no text, or no usage"),
        ],
    )
    def test_what_can_not_be_measured_is_said(self, status: int, body: list[bytes], message: str) -> None:
        with answering(status, body) as (url, _), pytest.raises(UsageError, match=re.escape(message)):
            bench_client.chat(url, bench_client.unique_chat(5), 4)

    def test_nobody_there(self) -> None:
        with pytest.raises(UsageError, match="stopped answering: .*refused"):
            bench_client.chat("http://127.0.0.1:9", bench_client.unique_chat(5), 4)
        assert not bench_client.is_healthy("http://127.0.0.1:9")

    def test_an_answer_in_one_piece_has_no_speed(self) -> None:
        with answering(200, frames("abcd")) as (url, _):
            answer = bench_client.chat(url, bench_client.unique_chat(5), 4)
        with pytest.raises(UsageError, match="4 tokens came in one piece"):
            _ = answer.tokens_per_s


class TestBench:
    def test_a_whole_run_against_the_real_server(
        self, tiny_standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "mine-f16.gguf"
        shutil.copy(tiny_standin, source)
        flags = ["--model", str(source), "--quant", "q8_0", "--runs", "2", "--n-tokens", "40"]
        assert bench.main([*flags, "--ctx", "1024", "--slots", "2", "--threads", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        report = json.loads(lines[-1])
        assert report["model"] == "mine-q8_0.gguf" and (tmp_path / "mine-q8_0.gguf").exists()
        assert report["run"]["n_short"] == 60 and report["run"]["n_threads"] == 1
        raw, ours = report["results"][bench.RAW], report["results"][bench.OURS]
        keys = {figure.key for figure in bench_report.FIGURES}
        assert keys <= set(ours) and keys - {"idle_mb"} <= set(raw)
        assert all(spread["low"] <= spread["median"] <= spread["high"] for spread in [*raw.values(), *ours.values()])
        assert ours["decode_tok_s"]["low"] > 0 and raw["decode_tok_s"]["low"] > 0
        assert ours["load_s"]["median"] > raw["load_s"]["median"], "the server's start has the model's load in it"
        assert len(report["promises"]) == 1, "the memory is promised for the stand-in only"
        shown = [
            figure.label for figure in bench_report.FIGURES if any(line.startswith(figure.label) for line in lines)
        ]
        assert shown == [figure.label for figure in bench_report.FIGURES]

    def test_the_short_prompt_has_its_length_and_reuses_nothing(self, tiny_standin: Path) -> None:
        flags = ["--model", str(tiny_standin), "--ctx", "1024", "--slots", "2", "--threads", "1"]
        with bench_server.running(flags) as server:
            template = bench_client.chat(server.url, bench_client.unique_chat(20), 2).n_prompt - 20
            answers = [bench_client.chat(server.url, bench_client.unique_chat(60 - template), 40) for _ in range(2)]
            assert server.peak_bytes and server.resident_bytes and server.peak_bytes >= server.resident_bytes > 30e6
        assert [(answer.n_prompt, answer.n_tokens) for answer in answers] == [(60, 40), (60, 40)]
        assert all(answer.n_reused < 20 for answer in answers), "the template's first words are all that they share"
        assert not bench_client.is_healthy(server.url)

    def test_check_turns_a_broken_promise_into_an_exit_code(
        self, tiny_standin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        samples = {
            bench.RAW: {"decode_tok_s": [40.0]},
            bench.OURS: {"decode_tok_s": [20.0], "n_prompt": [60.0]},
        }
        monkeypatch.setattr(bench, "_measure", lambda *_: samples)
        assert bench.main(["--model", str(tiny_standin)]) == 0
        assert bench.main(["--model", str(tiny_standin), "--check"]) == 1
        assert (
            capsys.readouterr().out.count("SHORT  one stream over HTTP is at least 0.90 × llama_decode alone: 0.50")
            == 2
        )

    @pytest.mark.parametrize(
        "flags, message",
        [
            ([], "Give --standin, or --model PATH"),
            (["--standin", "--model", "x.gguf"], "one of the two"),
            (["--model", "nowhere.gguf"], "nowhere.gguf: no such file"),
            (["--standin", "--runs", "0"], "--runs takes 1 or more"),
            (["--standin", "--n-tokens", "1"], "--n-tokens 2 or more"),
            (["--standin", "--ctx", "512"], "--ctx 512: the prompts and the answer need more than 512 tokens"),
            (["--standin", "--fast"], "unrecognized arguments: --fast"),
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
        with pytest.raises(UsageError, match="serve.py ended before it answered: .*gone.gguf"):
            with bench_server.running(["--model", str(tmp_path / "gone.gguf")]):
                pass

    def test_a_model_that_can_not_be_computed_is_one_line_too(self, tiny_standin: Path) -> None:
        given = argparse.Namespace(ctx=1024, slots=1, threads=1, n_tokens=4)
        with pytest.raises(UsageError, match=r"can't compute .*: RuntimeError: llama_decode returned 1$"):
            bench._raw_figures(given, tiny_standin, n_prompt=1500)
