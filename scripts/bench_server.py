"""This checkout's server as a process of its own: started as a person starts it, measured from outside, ended."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bench_client
import bench_machine

from server.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
SERVE = [sys.executable, str(ROOT / "scripts" / "serve.py")]
START_S = 600.0  # a 1 GB board reads the file from an SD card
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. load_s: seconds from the start of its process to its first 200 on /health."""

    url: str
    pid: int
    load_s: float

    @property
    def peak_bytes(self) -> int | None:
        return bench_machine.tree_bytes(self.pid, "VmHWM")

    @property
    def resident_bytes(self) -> int | None:
        return bench_machine.tree_bytes(self.pid, "VmRSS")


@contextmanager
def running(flags: Sequence[str]) -> Iterator[Server]:
    """scripts/serve.py with these flags, on a free port and with an empty data folder; it is gone after the block.

    Raises UsageError with the server's last line when it ends instead of answering.
    """
    with tempfile.TemporaryDirectory(prefix="sparrow-bench-") as folder:
        log = Path(folder, "serve.log")
        command = [*SERVE, *flags, "--port", "0", "--no-browser", "--data-dir", str(Path(folder, "data"))]
        began = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            url = _wait(process, log)
            yield Server(url, process.pid, time.perf_counter() - began)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = re.search(r"ready:\s+(http://\S+?)/?\n", log.read_text(errors="replace"))
        if found and bench_client.is_healthy(found[1]):
            return found[1]
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise UsageError(f"serve.py ended before it answered: {last or f'exit code {process.returncode}'}")
        time.sleep(POLL_S)
    raise UsageError(f"serve.py did not answer within {START_S:.0f} s.")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
