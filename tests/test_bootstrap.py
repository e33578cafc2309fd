"""The set-up, from a bare Python to a process inside .venv: in a checkout of its own, with a package index of its own.

In place of llama.cpp a source distribution of the same name is built there, which takes no minutes, prints the same
kind of progress, and fails or dawdles when it is told to. All else is real: venv, pip, hashes, locks, processes.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import bootstrap
import pytest
import toolchain

ROOT = Path(__file__).parent.parent
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)

BACKEND = """
import os, sys, time, zipfile
NAME = "llama_cpp_python-0.3.36"
META = "Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 0.3.36\\n"

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.mkdir(os.path.join(folder, NAME + ".dist-info"))
    with open(os.path.join(folder, NAME + ".dist-info", "METADATA"), "w") as out:
        out.write(META)
    return NAME + ".dist-info"

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with open(os.environ["BUILDS"], "a") as builds:
        builds.write("built with " + os.environ["CMAKE_ARGS"] + "\\n")
    print("[1/4] Building CXX object ggml.o", flush=True)
    if "FAIL" in os.environ:
        print(os.environ["FAIL"])
        sys.exit(1)
    time.sleep(float(os.environ.get("SLOW", "0")))
    name = NAME + "-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("llama_cpp.py", "")
        info = NAME + ".dist-info/"
        wheel.writestr(info + "METADATA", META)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "".join(n + ",,\\n" for n in wheel.namelist()) + info + "RECORD,,\\n")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
SCRIPT = """
import sys
import bootstrap

if __name__ == "__main__":
    bootstrap.enter()
    print("inside", sys.prefix, sys.argv[1:])
"""


@dataclass(frozen=True)
class Checkout:
    folder: Path
    environ: dict[str, str]

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        command = [BASE_PYTHON, str(self.folder / "scripts" / "hello.py"), *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environ, **environ},
            start_new_session=True,
        )

    def run(self, *arguments: str, **environ: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    @property
    def n_builds(self) -> int:
        builds = Path(self.environ["BUILDS"])
        return builds.read_text().count("built with") if builds.exists() else 0

    def wait_for_build(self) -> None:
        deadline = time.monotonic() + 60
        while self.n_builds == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _sdist(folder: Path) -> str:
    """Write the source distribution; returns its SHA-256."""
    path = folder / "llama_cpp_python-0.3.36.tar.gz"
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "PKG-INFO": "Metadata-Version: 2.1\nName: x\n"}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, index = tmp_path / "check out", tmp_path / "index"
    (folder / "scripts").mkdir(parents=True)
    index.mkdir()
    for name in ("bootstrap.py", "toolchain.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    (folder / "scripts" / "hello.py").write_text(SCRIPT)
    lock = f"llama-cpp-python==0.3.36 \\\n    --hash=sha256:{_sdist(index)}\n    # via sparrow\n"
    for name, text in {"requirements.lock": lock, "requirements-dev.lock": lock, "requirements-build.lock": ""}.items():
        (folder / name).write_text(text)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "VIRTUAL_ENV", "PYTEST"))}
    ours = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}
    return Checkout(folder, {**environ, **ours, "BUILDS": str(tmp_path / "builds")})


def test_from_nothing_to_inside_and_the_second_start_is_immediate(checkout: Checkout) -> None:
    code, out, err = checkout.run("--port", "8123", "a b", CMAKE_ARGS="-DMINE=ON")
    assert (code, err) == (0, "")
    assert "llama.cpp is compiled for this CPU" in out and "this takes minutes" in out
    assert f"log: {checkout.folder}/.venv/setup.log" in out
    assert out.endswith(f"inside {checkout.folder}/.venv ['--port', '8123', 'a b']\n")
    assert "built with -DMINE=ON -DLLAVA_BUILD=OFF" in Path(checkout.environ["BUILDS"]).read_text()
    began = time.monotonic()
    code, out, err = checkout.run("again")
    assert (code, out, err) == (0, f"inside {checkout.folder}/.venv ['again']\n", "")
    assert time.monotonic() - began < 3
    with (checkout.folder / "requirements.lock").open("a") as lock:
        lock.write("# another state of the lock\n")
    code, out, _ = checkout.run()
    assert code == 0 and "installing the pinned packages" in out
    assert checkout.n_builds == 1, "what is there already is not compiled again"
    (checkout.folder / ".venv" / ".sparrow-llama").write_text("another CPU")
    (checkout.folder / ".venv" / ".sparrow-run").unlink()
    assert checkout.run()[0] == 0
    assert checkout.n_builds == 2, "what was compiled for another CPU is"


def test_a_failed_build_is_one_line_with_the_reason_and_the_log(checkout: Checkout) -> None:
    fail = "ggml.c:1:10: fatal error: 'stdio.h' file not found"
    code, _, err = checkout.run(FAIL=fail)
    assert code == 1 and err.count("\n") == 1
    assert "fatal error: 'stdio.h' file not found" in err and str(checkout.folder / ".venv" / "setup.log") in err
    assert fail in (checkout.folder / ".venv" / "setup.log").read_text()


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("as: ggml.o: No space left on device", "the disk is full"),
        ("error: subprocess-exited-with-error\nCMake Error at x:1", "CMake Error at x:1"),
        ("WARNING: Retrying after NameResolutionError(...)\nERROR: No matching distribution", "PIP_INDEX_URL"),
        ("only words\nand a last line\n", "and a last line"),
        ("", "without a word"),
    ],
)
def test_the_reason_is_found_in_the_log(log: str, said: str) -> None:
    assert said in bootstrap._reason(log) and "\n" not in bootstrap._reason(log)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_cut_off_while_compiling_the_next_start_goes_on(checkout: Checkout, how: signal.Signals) -> None:
    process = checkout.start(SLOW="60")
    checkout.wait_for_build()
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130 and "the next start goes on" in err and "Traceback" not in err
    code, out, err = checkout.run()
    assert (code, err) == (0, "") and "inside" in out


def test_of_two_starts_one_sets_up_and_the_other_waits(checkout: Checkout) -> None:
    first = checkout.start(SLOW="3")
    checkout.wait_for_build()
    code, out, _ = checkout.run()
    assert code == 0 and out.startswith("Another start is setting up .venv") and "inside" in out
    assert "inside" in first.communicate(timeout=60)[0]
    assert checkout.n_builds == 1


def test_a_start_waits_for_the_pip_of_one_that_was_killed(checkout: Checkout) -> None:
    first = checkout.start(SLOW="3")
    checkout.wait_for_build()
    first.kill()
    first.communicate()
    code, out, err = checkout.run()
    assert (code, err) == (0, "")
    assert "Another start is setting up" in out and "inside" in out


def test_without_a_compiler_the_published_wheel_is_tried_and_the_way_out_named(checkout: Checkout) -> None:
    code, out, err = checkout.run(CC="no-such-compiler", CXX="no-such-compiler")
    assert code == 1 and err.count("\n") == 1
    assert "No C and C++ compiler here: trying the bindings' published wheel" in out
    assert toolchain.mend("compiler", toolchain.family()) in err
    assert checkout.n_builds == 0


def test_without_a_network_the_index_is_named(checkout: Checkout) -> None:
    index = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    code, _, err = checkout.run(**index)
    assert code == 1 and err.count("\n") == 1
    assert "PIP_INDEX_URL" in err


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_without_the_venv_module_the_package_is_named(checkout: Checkout, tmp_path: Path, module: str) -> None:
    """As on Debian, whose Python comes without it."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    code, _, err = checkout.run(PYTHONPATH=str(tmp_path))
    assert code == 1 and err.count("\n") == 1 and f"has no module {module}" in err


def test_a_full_disk_is_seen_before_anything_is_done(checkout: Checkout) -> None:
    small = checkout.folder / "scripts"  # any path on the small disk will do: the checkout is moved onto it
    disk = checkout.folder.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        shutil.copytree(small.parent, disk / "sparrow")
        code, _, err = Checkout(disk / "sparrow", checkout.environ).run()
        assert code == 1 and "has 0.0 GB free and the set-up needs 0.7 GB" in err
        assert not (disk / "sparrow" / ".venv").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def pins(name: str) -> dict[str, str]:
    return {
        line.split("==")[0]: line for line in (ROOT / name).read_text().splitlines() if re.match(r"[\w.-]+==", line)
    }


def test_the_locks_pin_everything_with_hashes_and_name_no_index() -> None:
    run, dev = (ROOT / "requirements.lock").read_text(), (ROOT / "requirements-dev.lock").read_text()
    for text in (run, dev):
        assert "://" not in text
        blocks = re.findall(r"^[\w.-]+==[^\n]*\n(?:    --hash[^\n]*\n)*", text, re.MULTILINE)
        assert len(blocks) > 20 and all("--hash=sha256:" in block for block in blocks)
    assert set(re.findall(r"^\S+==\S+", run, re.M)) <= set(re.findall(r"^\S+==\S+", dev, re.M))


def test_the_locks_are_of_the_project_s_dependencies() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[(.*?)\]", project, re.DOTALL)
    assert listed
    names = set(re.findall(r'"([\w-]+)', listed[1]))
    assert names <= set(pins("requirements.lock")), "renew the locks: their first lines say how"
    assert "llama-cpp-python==0.3.36" in project
    assert bootstrap._llama_requirement().startswith("llama-cpp-python==0.3.36 \\\n    --hash=sha256:")


DOORS = [path for path in (ROOT / "scripts").glob("*.py") if "bootstrap.enter" in path.read_text()]
OF_THE_README = ["serve.py", "test.py", "fetch.py", "quantize.py", "bootstrap.py", "toolchain.py"]


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.name))
def test_an_old_python_can_read_it_far_enough_to_say_that_it_is_old(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("name", OF_THE_README)
def test_even_python_3_6_can_read_the_readme_s_commands(name: str) -> None:
    text = (ROOT / "scripts" / name).read_text()
    ast.parse(text, feature_version=(3, 6))
    assert "\nfrom __future__ import annotations" not in text


@pytest.mark.parametrize(
    ("text", "family", "compiler"),
    [
        ('ID=debian\nNAME="Debian"', "debian", "sudo apt install build-essential"),
        ("ID=raspbian\nID_LIKE=debian", "debian", "sudo apt install build-essential"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "debian", "sudo apt install build-essential"),
        ("ID=fedora", "fedora", "sudo dnf install gcc gcc-c++ make"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "fedora", "sudo dnf install gcc gcc-c++ make"),
        ("ID=arch", "", "Debian, Raspberry Pi OS: sudo apt install build-essential; Fedora: sudo dnf"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS is known without its files")
def test_the_system_is_known_by_its_own_word(tmp_path: Path, text: str, family: str, compiler: str) -> None:
    release = tmp_path / "os-release"
    release.write_text(text)
    assert toolchain.family(release) == family
    assert toolchain.mend("compiler", family).startswith(compiler)
    assert toolchain.family(tmp_path / "missing") == ""


def test_the_build_has_no_amx_and_keeps_the_person_s_flags() -> None:
    found = toolchain.compilers(os.environ)
    if found is None:
        pytest.skip("no compiler here")
    c, cxx = found
    assert not toolchain.has_amx(c, toolchain.amx_flags(c))
    made = toolchain.build_environment({"CFLAGS": "-O3", "CMAKE_BUILD_PARALLEL_LEVEL": "7"}, c, cxx)
    assert made["CFLAGS"].split() == ["-O3", *toolchain.amx_flags(c)]
    assert made["CMAKE_BUILD_PARALLEL_LEVEL"] == "7"
    assert "GGML_NATIVE" not in made["CMAKE_ARGS"]
    assert int(toolchain.build_environment({}, c, cxx)["CMAKE_BUILD_PARALLEL_LEVEL"]) >= 1


def test_a_small_board_compiles_one_file_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "memory_bytes", lambda: 900 * 10**6)
    assert toolchain.build_environment({}, "cc", "c++")["CMAKE_BUILD_PARALLEL_LEVEL"] == "1"


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "processor : 0\nflags\t\t: fpu avx2 amx_tile sse4_2 ibpb_exit_to_user\n\nprocessor : 1\n",
            "amx_tile avx2 sse4_2",
        ),
        ("processor : 0\nFeatures\t: fp asimd evtstrm asimddp fphp\n", "asimd asimddp fphp"),
        ("nothing known\n", ""),
    ],
)
def test_a_cpu_is_its_instructions_not_the_kernel_s_notes(tmp_path: Path, text: str, features: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert toolchain.cpu(tmp_path / "cpuinfo").split()[1:] == features.split()


@pytest.mark.parametrize(
    ("log", "percent"),
    [("", ""), ("[12/140] Building\n[35/140] Building", " 25 %"), ("[  7%] Built\n[ 61%] Linking", " 61 %")],
)
def test_the_progress_of_a_build_is_read_from_its_log(log: str, percent: str) -> None:
    assert bootstrap._percent(log) == percent
