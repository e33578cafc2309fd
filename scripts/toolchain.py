"""What this machine has, what it lacks, and the one command that mends it. Standard library only.

The sources of bootstrap.py and this file are also read by Pythons that are too old: no syntax newer than Python 3.6.
"""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

AMX_OFF = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
LLAMA_CMAKE_ARGS = ("-DLLAVA_BUILD=OFF", "-DMTMD_BUILD=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_CURL=OFF")
COMPILER_JOB_BYTES = 700 * 10**6
"""What one compiler process takes at most while llama.cpp is built: more of them at once than fit would swap or die."""

MENDS = {
    "python": {
        "debian": "sudo apt install python3 (Debian 12, Ubuntu 22.04, Raspberry Pi OS 12 or newer)",
        "fedora": "sudo dnf install python3",
        "macos": "brew install python",
    },
    "venv": {
        "debian": "sudo apt install python3-venv",
        "fedora": "sudo dnf install python3 python3-pip",
        "macos": "brew install python",
    },
    "compiler": {
        "debian": "sudo apt install build-essential",
        "fedora": "sudo dnf install gcc gcc-c++ make",
        "macos": "xcode-select --install",
    },
}
FAMILIES = {"debian": "Debian, Raspberry Pi OS", "fedora": "Fedora", "macos": "macOS"}


def family(os_release: Path = Path("/etc/os-release")) -> str:
    """ "debian", "fedora", "macos", or "" when this system is none of them."""
    if platform.system() == "Darwin":
        return "macos"
    try:
        text = os_release.read_text(encoding="utf-8")
    except OSError:
        return ""
    pairs = (line.partition("=") for line in text.splitlines())
    fields = {key: value.strip("\"'") for key, _, value in pairs}
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    aliases = {"ubuntu": "debian", "raspbian": "debian", "rhel": "fedora", "centos": "fedora"}
    known = [aliases.get(name, name) for name in names]
    return next((name for name in known if name in FAMILIES), "")


def mend(piece: str, system: str) -> str:
    """The command that brings `piece` ("python", "venv", "compiler"), for all systems when this one is unknown."""
    ways = MENDS[piece]
    if system in ways:
        return ways[system]
    return "; ".join(f"{FAMILIES[name]}: {command}" for name, command in ways.items())


def compilers(environ: "Mapping[str, str]") -> "tuple[str, str] | None":
    """The C and C++ compilers that really compile a program here, as commands; None when one of them is missing."""
    c = _first_that_compiles(environ.get("CC"), ("cc", "gcc", "clang"), "int main(void) { return 0; }", "c")
    cxx_source = "#include <vector>\nint main() { return (int) std::vector<int>().size(); }"
    cxx = _first_that_compiles(environ.get("CXX"), ("c++", "g++", "clang++"), cxx_source, "c++")
    return (c, cxx) if c and cxx else None


def _first_that_compiles(chosen: "str | None", usual: "tuple[str, ...]", source: str, language: str) -> "str | None":
    candidates = (chosen,) if chosen else usual
    return next((command for command in candidates if _compiles(command, source, language)), None)


def _compiles(command: str, source: str, language: str) -> bool:
    """Link too: a compiler without libc or libstdc++ headers is as good as none."""
    if shutil.which(command.split()[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*command.split(), "-x", language, "-", "-o", os.path.join(folder, "probe")]
        return subprocess.run(arguments, input=source.encode(), capture_output=True).returncode == 0


def amx_flags(compiler: str) -> "list[str]":
    """The flags that keep AMX out of the build, as far as this compiler knows them.

    Virtual machines advertise AMX and trap on its first use; all other instruction sets stay, and with them the
    repacked kernels that make Q4_0 and IQ4_NL fast.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    return [flag for flag in AMX_OFF if _macros(compiler, [flag]) is not None]


def has_amx(compiler: str, flags: "list[str]") -> bool:
    """Whether a native build with these flags would contain AMX code."""
    return "__AMX_" in (_macros(compiler, ["-march=native", *flags]) or "")


def _macros(compiler: str, flags: "list[str]") -> "str | None":
    """The macros that the compiler predefines; None when it refuses a flag."""
    arguments = [*compiler.split(), *flags, "-dM", "-E", "-x", "c", os.devnull]
    done = subprocess.run(arguments, capture_output=True)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


INSTRUCTIONS = re.compile(r"^(?:avx|amx|sse|ssse|fma|f16c|bmi|asimd|sve|sme(?!p)|i8mm|bf16|fphp|dotprod)")


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What llama.cpp's native build depends on: the machine and its vector instructions, without the kernel's notes."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine() + platform.processor()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    features = sorted(flag for flag in found.group(1).split() if INSTRUCTIONS.match(flag)) if found else []
    return " ".join([platform.machine(), *features])


def memory_bytes() -> int:
    """What is free for new processes, or all there is where the system doesn't tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_environment(environ: "dict[str, str]", c: str, cxx: str) -> "dict[str, str]":
    """The environment in which llama.cpp is compiled: the person's own CFLAGS and CMAKE_ARGS stay in front."""
    jobs = max(1, min(os.cpu_count() or 1, memory_bytes() // COMPILER_JOB_BYTES))
    made = {"CC": c, "CXX": cxx, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs), **environ}
    for name, flags in (("CFLAGS", amx_flags(c)), ("CXXFLAGS", amx_flags(cxx)), ("CMAKE_ARGS", LLAMA_CMAKE_ARGS)):
        made[name] = " ".join([*environ.get(name, "").split(), *flags])
    return made
