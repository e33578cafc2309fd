"""Starting and stopping the real process: one clear line for what can't be, and no waiting for open streams."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.server_process import ROOT, ServerProcess


def start_and_fail(*flags: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--no-browser", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.fixture
def flags(tiny_path: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(tiny_path), "--ctx", "1024", "--data-dir", str(tmp_path / "data")]


def test_a_port_in_use_is_one_clear_line(flags: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = start_and_fail(*flags, "--port", str(port))
    assert code == 2 and said.endswith(
        f"Port {port} is taken by another program: stop that one, or give --port {port + 1}."
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ctx", "999999"], "trained for 2048"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--slots", "1000"], "--slots"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--model", "nowhere.gguf"], "nowhere.gguf"),
        (["--data-dir", "/proc/nothing"], "/proc/nothing"),
    ],
)
def test_what_can_not_be_is_one_clear_line(flags: list[str], more: list[str], said: str) -> None:
    code, line = start_and_fail(*flags, "--port", "0", *more)
    assert code == 2 and said in line


def test_an_open_stream_does_not_hold_up_the_end(flags: list[str]) -> None:
    """SIGTERM in the middle of an answer: the stream gets its terminal event and the process ends at once."""
    with ServerProcess(flags) as server:
        body = b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true, "ignore_eos": true}'
        request = urllib.request.Request(
            server.url + "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            lines: list[bytes] = []
            reader = threading.Thread(target=lambda: lines.extend(reply))
            reader.start()
            deadline = time.monotonic() + 10
            while len(lines) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 8
            reader.join(10)
    assert len(lines) >= 5 and not reader.is_alive()


def test_an_impatient_ctrl_c_ends_without_a_traceback(flags: list[str]) -> None:
    with ServerProcess(flags) as server:
        os.kill(server.pid, signal.SIGINT)
        time.sleep(0.02)
        os.kill(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert "Stopped." in server.output and "Traceback" not in server.output


def test_it_starts_again_on_the_same_port_with_the_same_data(flags: list[str]) -> None:
    with ServerProcess(flags) as server:
        url = server.url
        server.kill()
        server.start()
        assert server.url == url and server.json("/health")["status"] == "ok"


def test_silent_connections_do_not_keep_others_out(flags: list[str]) -> None:
    with ServerProcess(flags) as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(100)]
        assert server.json("/health")["status"] == "ok"
        for connection in silent:
            connection.close()
