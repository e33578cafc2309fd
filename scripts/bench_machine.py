"""The machine that figures were taken on, and the memory of a process, as far as the system tells."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from server.engine.loader import n_cores


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


def busy_share(seconds: float = 1.0) -> float | None:
    """How much of all cores others take while this process sleeps: 0.0 to 1.0; None where the system does not say."""
    before = _cpu_ticks()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_cpu_ticks(), before, strict=True))
    return round(1 - idle / total, 2) if total else None


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


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in _read(task).split()]
