"""The machine that figures were taken on, its limits, and what a process costs it, as far as the system tells."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from server.engine.loader import n_cores

N_BUFFER = 1 << 25
"""float32 values that each core reads for `bandwidth`: 128 MB, more than caches hold."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_S = 0.5
"""A process that took no CPU for so long has finished what it was at."""


def describe() -> dict[str, str | int]:
    """CPU, cores that count, memory in MB, system, bindings: without them a figure means nothing."""
    return {
        "cpu": _cpu(),
        "n_cores": n_cores(),
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "llama_cpp_python": version("llama-cpp-python"),
    }


def bandwidth(n_threads: int, repeats: int = 5) -> float:
    """Bytes per second that n_threads read together, as llama_decode reads the weights; the best of `repeats`.

    The maximum of float32 values is the fastest walk through memory that numpy has; it holds no lock meanwhile.
    """
    buffers = [np.ones(N_BUFFER, dtype=np.float32) for _ in range(n_threads)]
    best = 0.0
    for _ in range(repeats):
        readers = [threading.Thread(target=buffer.max) for buffer in buffers]
        began = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, sum(buffer.nbytes for buffer in buffers) / (time.perf_counter() - began))
    return best


def busy_share(seconds: float = 1.0) -> float | None:
    """How much of all cores others take while this process sleeps: 0.0 to 1.0; None where the system does not say."""
    before = _cpu_ticks()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_cpu_ticks(), before, strict=True))
    return round(1 - idle / total, 2) if total else None


class Others:
    """How much of all cores others took since this was made, while this process and its children computed too.

    A child counts as ours when it has been waited for.
    """

    def __init__(self) -> None:
        self._idle, self._total = _cpu_ticks()
        self._own_s = sum(os.times()[:4])

    def share(self) -> float | None:
        """0.0 to 1.0; None where the system does not say."""
        idle, total = _cpu_ticks()
        if total == self._total:
            return None
        busy = (total - self._total) - (idle - self._idle)
        own = (sum(os.times()[:4]) - self._own_s) * TICKS_PER_S
        return round(max(0.0, busy - own) / (total - self._total), 3)


def _cpu_ticks() -> tuple[int, int]:
    """Idle and all ticks since the start, of all cores; what a hypervisor steals counts as busy."""
    ticks = [int(field) for field in _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]]
    return sum(ticks[3:5]), sum(ticks)


def _cpu() -> str:
    """The name that its owner knows: the board's on a Raspberry Pi, else the processor's."""
    board = _read(Path("/proc/device-tree/model")).rstrip("\0")
    named = re.search(r"^model name\s*: (.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return board or (named[1] if named else platform.processor() or platform.machine())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def peak_bytes() -> int | None:
    """The most memory that this process held at a time; getrusage's figure on Linux may be its parent's."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return status_bytes(os.getpid(), "VmHWM")


def status_bytes(pid: int, field: str) -> int | None:
    """VmHWM (peak) or VmRSS (now) of a process; None where the system has no /proc."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _read(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def tree_bytes(pid: int, field: str) -> int | None:
    """status_bytes of a process and of all that it started, summed."""
    own = status_bytes(pid, field)
    return None if own is None else own + sum(tree_bytes(child, field) or 0 for child in _children(pid))


def cpu_s(pid: int) -> float | None:
    """Seconds of CPU that a process and all that it started have taken, to 10 ms; None without /proc."""
    # The name, in brackets, may hold spaces and brackets itself.
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if not fields:
        return None
    own = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return own + sum(cpu_s(child) or 0.0 for child in _children(pid))


def until_quiet(pid: int, limit_s: float) -> tuple[float, float] | None:
    """Wait until a process computes no more: (seconds of CPU that it took, seconds until the last of them).

    None without /proc; after limit_s of work what has come together by then.
    """
    began, first = time.monotonic(), cpu_s(pid)
    if first is None:
        return None
    taken, last_at = 0.0, began
    while (now := time.monotonic()) - last_at < QUIET_S and now - began < limit_s:
        used = (cpu_s(pid) or first) - first
        if used > taken:
            taken, last_at = used, now
        time.sleep(0.01)
    return taken, last_at - began


def listener(port: int) -> int | None:
    """The process of ours that listens on a TCP port of this machine; None when the system or its owner won't say."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in _read(Path(f"/proc/net/{table}")).splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(open_file) in sockets for open_file in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # not ours, or gone meanwhile
            continue
    return None


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in _read(task).split()]
