"""From a bare Python to the .venv of this checkout: the first lines of every script call `enter`.

Standard library only, and no syntax newer than Python 3.6, so that an old Python can still say that it is too old.
"""

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import toolchain

try:
    import fcntl
except ImportError:
    sys.exit("Sparrow runs on Linux and macOS; on Windows use it inside WSL.")

if sys.version_info < (3, 10):  # noqa: UP036 (this line is for the Pythons that pyproject.toml excludes)
    _way = toolchain.mend("python", toolchain.family())
    sys.exit(f"Sparrow needs Python 3.10 or newer and {sys.executable} is {platform.python_version()}: {_way}")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
BUSY = VENV / ".sparrow-busy"
"""There while packages are being installed: found by a later start, it means that a set-up was cut off."""
BUILT_FOR = VENV / ".sparrow-llama"
"""For which CPU and with which flags llama.cpp was compiled: an SD card may move to another board."""
BUILD_LOCK, RUN_LOCK, DEV_LOCK = (ROOT / f"requirements{kind}.lock" for kind in ("-build", "", "-dev"))
CPU_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl/cpu"
"""Where the bindings' README says that ready-made wheels for CPUs are."""
DISK_BYTES = {False: 700_000_000, True: 1_100_000_000}
"""Peak of a set-up from nothing, without and with the tools for tests: packages, llama.cpp's sources and objects."""
SILENT_S, TTY_S = 20.0, 0.5


class SetupError(Exception):
    """What is missing or went wrong, in one line, with the way out."""


def enter(dev: bool = False) -> None:
    """Return if this process runs in an up-to-date .venv of this checkout; else make it so and run the script again.

    dev: with the tools for tests too. Ends the process with one line and exit code 1 when the set-up is impossible.
    """
    inside = Path(sys.prefix).resolve() == VENV.resolve()
    if not _is_fresh(dev):
        try:
            _set_up(dev)
        except SetupError as error:
            sys.exit(f"Set-up failed: {error}")
        except KeyboardInterrupt:
            print("\nSet-up interrupted: the next start goes on.", file=sys.stderr)
            sys.exit(130)
    elif inside:
        sys.path.insert(1, str(ROOT))  # the scripts lie beside the package that they import
        return
    sys.stdout.flush()
    os.execv(_python(), [_python(), *sys.orig_argv[1:]])


def _python() -> str:
    return str(VENV / "bin" / "python")


def _version() -> str:
    return "{}.{}".format(*sys.version_info[:2])


def _digest(dev: bool) -> str:
    """Everything that decides what is in .venv, as one number."""
    parts = [path.read_bytes() for path in (BUILD_LOCK, RUN_LOCK, *([DEV_LOCK] if dev else []))]
    return hashlib.sha256(b"\0".join([*parts, _build_digest().encode()])).hexdigest()


def _build_digest() -> str:
    parts = (toolchain.cpu(), toolchain.AMX_OFF, toolchain.LLAMA_CMAKE_ARGS)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _stamp(dev: bool) -> Path:
    return VENV / (".sparrow-dev" if dev else ".sparrow-run")


def _is_fresh(dev: bool) -> bool:
    """True if the last set-up finished and nothing it came from has changed. What serves tests serves all."""
    return _stamp_holds(dev) or (not dev and _stamp_holds(True))


def _stamp_holds(dev: bool) -> bool:
    try:
        digest, version = _stamp(dev).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False
    return digest == _digest(dev) and version == _version_of_venv()


def _version_of_venv() -> str:
    """An upgrade of the system's Python leaves a .venv whose packages the new one does not see."""
    if not os.path.exists(_python()):
        return ""
    if os.path.realpath(_python()) == os.path.realpath(sys.executable):
        return _version()
    code = "import sys; print('{}.{}'.format(*sys.version_info[:2]))"
    return subprocess.run([_python(), "-c", code], capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def _alone() -> "Iterator[int]":
    """Hold the set-up's lock. pip inherits it: after a start that was killed, its pip still holds it to the end."""
    descriptor = os.open(str(RUN_LOCK), os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another start is setting up .venv: waiting for it.", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _set_up(dev: bool) -> None:
    with _alone() as lock:
        if _is_fresh(dev):
            return
        print(f"Setting up {VENV} (once; its log: {LOG})", flush=True)
        _check_pieces(dev)
        _make_venv()
        BUSY.touch()
        if not _has_llama():
            _install_llama(lock)
        BUILT_FOR.write_text(_build_digest(), encoding="ascii")
        _run(lock, "installing the pinned packages", _pip("install", "-r", str(DEV_LOCK if dev else RUN_LOCK)))
        BUSY.unlink()
        made = _stamp(dev).with_suffix(".new")
        made.write_text(f"{_digest(dev)} {_version_of_venv()}\n", encoding="ascii")
        made.replace(_stamp(dev))


def _check_pieces(dev: bool) -> None:
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            way = toolchain.mend("venv", toolchain.family()).replace("python3-venv", f"python{_version()}-venv")
            raise SetupError(f"{sys.executable} has no module {module}: {way}")
    free, needed = shutil.disk_usage(ROOT).free, 0 if _has_llama() else DISK_BYTES[dev]
    if free < needed:
        have, need = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB"
        raise SetupError(f"the disk of {ROOT} has {have} free and the set-up needs {need}: free some space.")


def _make_venv() -> None:
    """Keep a .venv that works; one from a cut-off set-up or of another Python is made anew."""
    works = _version_of_venv() == _version() and not BUSY.exists()
    if works and subprocess.run([_python(), "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(f"{base} -m venv: {(done.stdout + done.stderr).strip().splitlines()[-1]}")


def _llama_requirement() -> str:
    """The lines of the lock that pin llama-cpp-python and the hash of its sources."""
    found = re.search(r"^llama-cpp-python==\S+(?: \\\n +--hash=\S+)*", RUN_LOCK.read_text("utf-8"), re.MULTILINE)
    assert found, "requirements.lock pins no llama-cpp-python"
    return found.group()


def _has_llama() -> bool:
    release = _llama_requirement().split()[0].replace("-", "_").replace("==", "-")
    there = bool(list(VENV.glob(f"lib/python{_version()}/site-packages/{release}.dist-info/RECORD")))
    return there and (not BUILT_FOR.exists() or BUILT_FOR.read_text(encoding="ascii") == _build_digest())


def _install_llama(lock: int) -> None:
    """Compile llama.cpp for exactly this CPU; without a compiler take the published wheel."""
    found = toolchain.compilers(os.environ)
    if found is None:
        return _install_llama_wheel(lock)
    wanted = VENV / "llama.txt"
    wanted.write_text(_llama_requirement() + "\n", encoding="utf-8")
    environment = toolchain.build_environment(dict(os.environ), *found)
    # Two names of one thing: older releases of pip read the first for a build's own packages, newer ones the second.
    # As a URL, because pip takes a blank in such a variable for the end of a path.
    environment.update(PIP_CONSTRAINT=BUILD_LOCK.as_uri(), PIP_BUILD_CONSTRAINT=BUILD_LOCK.as_uri())
    # Of its own: pip's usual cache may hold a build with other flags, or one for another machine with the same home.
    environment["PIP_CACHE_DIR"] = str(_cache() / _build_digest())
    jobs = environment["CMAKE_BUILD_PARALLEL_LEVEL"]
    print(f"llama.cpp is compiled for this CPU with {jobs} job(s) at a time: this takes minutes, once.", flush=True)
    command = _pip("install", "-v", "--no-deps", "--force-reinstall", "-r", str(wanted))
    _run(lock, "compiling llama.cpp", command, environment)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparrow"


def _install_llama_wheel(lock: int) -> None:
    print("No C and C++ compiler here: trying the bindings' published wheel for CPUs (slower kernels).", flush=True)
    way = toolchain.mend("compiler", toolchain.family())
    source = ["--only-binary", ":all:", "--extra-index-url", CPU_WHEELS, "--retries", "1", "--timeout", "15"]
    try:
        _run(lock, "fetching the wheel", _pip("install", "--no-deps", *source, _llama_requirement().split()[0]))
    except SetupError:
        raise SetupError(f"no C and C++ compiler, and no published wheel fits or can be reached: {way}") from None


def _pip(*arguments: str) -> "list[str]":
    return [_python(), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def _run(lock: int, title: str, command: "list[str]", environment: "dict[str, str] | None" = None) -> None:
    """Run a step of the set-up with its output in the log, and show that it is alive."""
    temporary = VENV / "tmp"  # not /tmp: on small boards that is memory
    temporary.mkdir(exist_ok=True)
    environment = {**(environment or os.environ), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with open(LOG, "a", encoding="utf-8") as log:
        start = log.tell()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock])
        try:
            _watch(process, title, start)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            shutil.rmtree(temporary, ignore_errors=True)
    if process.returncode != 0:
        raise SetupError(f"{title}: {_reason(_log_since(start))} (the log: {LOG})")


def _watch(process: "subprocess.Popen[bytes]", title: str, start: int) -> None:
    began, tty = time.monotonic(), sys.stdout.isatty()
    while True:
        seconds = int(time.monotonic() - began)
        line = f"  {title}{_percent(_log_since(start))}  {seconds // 60}:{seconds % 60:02}"
        print(f"\r{line}\x1b[K" if tty else line, end="" if tty else "\n", flush=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TTY_S if tty else SILENT_S)
            break
    print(f"\r{line}\x1b[K" if tty else f"{line} done" if process.returncode == 0 else line, flush=True)


def _log_since(start: int) -> str:
    with open(LOG, "rb") as log:
        log.seek(start)
        return log.read().decode("utf-8", "replace")


def _percent(log: str) -> str:
    """Ninja counts its steps, make prints percents."""
    steps, percents = re.findall(r"\[(\d+)/(\d+)\]", log), re.findall(r"\[ *(\d+)%\]", log)
    if steps:
        return f" {100 * int(steps[-1][0]) // int(steps[-1][1])} %"
    return f" {percents[-1]} %" if percents else ""


REASONS = {
    "No space left on device": "the disk is full: free some space and start again",
    "Killed signal terminated program": "the compiler ran out of memory: close other programs, "
    "or start again with CMAKE_BUILD_PARALLEL_LEVEL=1",
    r"NameResolutionError|NewConnectionError|(?:Connect|Read)TimeoutError|ProxyError|SSLError|from versions: none": (
        "the Python package index can't be reached: connect to a network that has it, or set PIP_INDEX_URL to a mirror"
    ),
}


def _reason(log: str) -> str:
    """The line of the log that says why, in a person's words where the cause is a usual one."""
    for pattern, text in REASONS.items():
        if re.search(pattern, log):
            return text
    found = re.search(r"\b(?:fatal )?error: (?!subprocess-exited).*|CMake Error.*|ERROR: .*", log)
    return found.group().strip() if found else (log.strip().splitlines() or ["it ended without a word"])[-1].strip()
