"""A server as a process of its own: started as a person starts it, measured from outside, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apart
import bench_client
import bench_machine
from bench_client import Client

from server import vetting
from server.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
SERVE = [sys.executable, str(ROOT / "scripts" / "serve.py")]
START_S = 600.0  # a 1 GB board reads the file from an SD card
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. pid: None where it can't be known, of a server on another machine for example.

    load_s: seconds from the start of its process to its first 200 on /health; None for one that ran already.
    """

    client: Client
    pid: int | None = None
    load_s: float | None = None

    @property
    def peak_bytes(self) -> int | None:
        return None if self.pid is None else bench_machine.tree_bytes(self.pid, "VmHWM")

    @property
    def resident_bytes(self) -> int | None:
        return None if self.pid is None else bench_machine.tree_bytes(self.pid, "VmRSS")


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started. command: its port, and a folder that is its own -> the command line."""

    name: str
    command: Callable[[int, Path], list[str]]


def sparrow(model: Path, *, n_ctx: int, n_slots: int, n_threads: int) -> Program:
    """This checkout's server."""
    flags = ["--model", str(model.resolve()), "--ctx", str(n_ctx), "--slots", str(n_slots)]
    flags += ["--threads", str(n_threads), "--no-browser"]

    def command(port: int, folder: Path) -> list[str]:
        vetting.vouch(model, folder / "data")  # only a file's first start tries it out
        _copy_once(model, folder / "data" / apart.COPIES)
        return [*SERVE, *flags, "--port", str(port), "--data-dir", str(folder / "data")]

    return Program("serve.py", command)


def llama_server(binary: Path, model: Path, *, n_ctx: int, n_slots: int, n_threads: int) -> Program:
    """llama.cpp's own, with as many slots of the same length on the same threads, and else as it comes."""
    flags = ["-m", str(model.resolve()), "-t", str(n_threads), "-np", str(n_slots), "-c", str(n_ctx * n_slots)]
    flags += ["-fa", "on", "--no-webui", "--host", "127.0.0.1"]
    return Program("llama-server", lambda port, _folder: [str(binary), *flags, "--port", str(port)])


def _copy_once(model: Path, copies: Path) -> None:
    """And only its first start here copies it, for all that follow."""
    kept = model.resolve().parent / ".copies"
    if model.exists() and apart.prepared(model, kept) != model and not copies.exists():
        copies.symlink_to(kept)


@contextmanager
def running(program: Program, folder: Path) -> Iterator[Server]:
    """The program on a free port of loopback, its data in `folder`; it is gone after the block.

    Raises UsageError, with the program's last line when it ends instead of answering.
    """
    log = folder / "server.log"
    url = f"http://127.0.0.1:{(port := _free_port())}"
    began = time.perf_counter()
    with log.open("w") as output:
        process = _start(program, port, folder, output.fileno())
    try:
        _wait(program.name, process, url, log)
        yield Server(Client(url), process.pid, time.perf_counter() - began)
    finally:
        _end(process)


def _start(program: Program, port: int, folder: Path, output: int) -> subprocess.Popen[bytes]:
    command = program.command(port, folder)
    # As it would be started from a shell: this process has set this for its own llama.cpp (server.engine).
    plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    try:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=plain)
    except OSError as error:
        raise UsageError(f"{command[0]} can't be started: {error.strerror}.") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait(name: str, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if bench_client.is_healthy(url):
            return
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UsageError(f"{name} ended before it answered: {last or f'exit code {process.returncode}'}")
        time.sleep(POLL_S)
    raise UsageError(f"{name} did not answer within {START_S:.0f} s.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
