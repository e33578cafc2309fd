"""Who runs the server: request ids, the log, and an end that lets requests finish. On the real process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ROOT, ServerProcess, slow_motion

SECRET = "xyzzy-plugh-42"


class Stream:
    """A streamed answer of /v1, read by a thread. `said`: the data of its events."""

    def __init__(self, server: ServerProcess, **more: Any) -> None:
        asked = {"messages": [{"role": "user", "content": SECRET}], "stream": True, "ignore_eos": True, **more}
        request = urllib.request.Request(
            server.url + "/v1/chat/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        self._reply = urllib.request.urlopen(request, timeout=60)
        self.said: list[Any] = []
        self.is_whole = False
        """The body ended as HTTP wants it, and not in the middle."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._reply, contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            for line in self._reply:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    self.said.append("[DONE]" if data == b"[DONE]" else json.loads(data))
            self.is_whole = True

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def refusal(server: ServerProcess, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    try:
        server.json(path, body)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())
    return 200, None


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        content: bytes = reply.read()
    return content


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    return ["--demo", "--data-dir", str(tmp_path / "data")]


@pytest.fixture
def server(flags: list[str]) -> Iterator[ServerProcess]:
    with ServerProcess(flags) as running:
        yield running


@pytest.mark.parametrize(
    ("given", "kept"), [("a-1.B_2", True), ("", False), ("x" * 65, False), ("a b", False), ('"}', False)]
)
def test_a_request_has_an_id_and_keeps_one_that_it_brought(demo_server: ServerProcess, given: str, kept: bool) -> None:
    request = urllib.request.Request(demo_server.url + "/health", headers={"X-Request-Id": given})
    with urllib.request.urlopen(request, timeout=30) as reply:
        id = reply.headers["x-request-id"]
    assert id == given if kept else re.fullmatch(r"[0-9a-f]{16}", id)


def test_a_refusal_has_an_id_too(demo_server: ServerProcess) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(demo_server.url + "/nothing-here", timeout=30)
    with refused.value as reply:
        assert reply.headers["x-request-id"]


def test_the_json_log_is_json_and_holds_no_text(tiny_path: Path, tmp_path: Path) -> None:
    flags = ["--model", str(tiny_path), "--ctx", "512", "--data-dir", str(tmp_path / "data"), "--log-json"]
    with ServerProcess(flags) as server:
        Stream(server, max_tokens=5).wait()
        refusal(server, f"/{SECRET}")
        refusal(server, "/v1/chat/completions", {"messages": SECRET})
        assert server.stop() == 0
        output = server.output
    assert SECRET not in output
    lines = [json.loads(line) for line in output.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    requests = [line for line in lines if line["message"] == "request"]
    assert {(line["route"], line["method"], line["status"]) for line in requests} >= {
        ("/v1/chat/completions", "POST", 200),
        ("other", "GET", 404),
        ("/v1/chat/completions", "POST", 400),
    }
    assert all(line["ms"] >= 0 for line in requests)
    (answer,) = [line for line in lines if line["message"] == "answer"]
    asked = next(line for line in requests if line["status"] == 200 and line["method"] == "POST")
    assert answer["request"] == asked["request"]
    assert answer["reason"] == "length" and answer["n_completion"] == 5 and answer["n_prompt"] > 0
    assert lines[-1]["message"] == "Stopped."


def test_a_stop_lets_a_program_s_answer_end_and_refuses_new_ones(server: ServerProcess) -> None:
    with slow_motion(server):
        stream = Stream(server, max_tokens=400)
        wait_for(lambda: len(stream.said) > 3)
        os.kill(server.pid, signal.SIGTERM)
        wait_for(lambda: refusal(server, "/health") == (503, {"status": "stopping"}))
        code, said = refusal(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]})
        assert (code, said["error"]["code"]) == (503, "shutting_down")
    stream.wait()
    assert stream.is_whole and stream.said[-1] == "[DONE]"
    assert stream.said[-2]["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0
    assert "Stopping: one request has up to 10 s to end." in server.output and "Stopped." in server.output


@pytest.mark.parametrize("impatient", [False, True])
def test_what_can_not_end_in_time_gets_a_last_event(flags: list[str], impatient: bool) -> None:
    with ServerProcess([*flags, "--grace-s", "50" if impatient else "0"]) as server:
        with slow_motion(server):
            stream = Stream(server)
            wait_for(lambda: len(stream.said) > 3)
            os.kill(server.pid, signal.SIGINT)
            if impatient:
                wait_for(lambda: "Stopping" in server.output)
                os.kill(server.pid, signal.SIGINT)
        stream.wait()
        assert server.wait() == 0
        assert stream.is_whole and stream.said[-1]["error"]["code"] == "shutting_down"
        assert "Traceback" not in server.output and "Stopped." in server.output


def test_nobody_waits_for_the_readers_of_a_page_s_answer(flags: list[str]) -> None:
    with ServerProcess([*flags, "--single-user"]) as server:
        with slow_motion(server):
            begun = server.json("/messages", {"text": "Tell me a story.", "key": "k" * 16})
            with urllib.request.urlopen(f"{server.url}/answers/{begun['answer']}/events", timeout=30) as reply:
                reply.readline()
                assert server.stop() == 0
        assert "Stopping" not in server.output and "Stopped." in server.output


def test_the_server_outlives_its_terminal_and_needs_none_for_all_letters(flags: list[str]) -> None:
    """`serve.py | head`: the engine's thread says when it frees the model, and everybody waits for that thread."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *flags, "--port", "0", "--no-browser"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen([*command, "--idle-unload", "0.005"], stdout=subprocess.PIPE, env=environ) as process:
        try:
            assert process.stdout
            said = b""
            while b"Ctrl-C stops it.\n" not in said:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, said
                said += piece
            process.stdout.close()
            found = re.search(rb"ready:  (\S+)/", said)
            assert found and b"Loading sparrow-demo-q8_0.gguf ? " in said
            url = found[1].decode()
            wait_for(lambda: b"asleep" in fetched(url + "/health"))
            assert fetched(url + "/stream?message=Hi").startswith(b"data: ")
        finally:
            process.terminate()
        assert process.wait(20) == 0
