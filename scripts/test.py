"""Run every check and every test: python3 scripts/test.py [arguments for pytest]."""

import subprocess
import sys
from pathlib import Path

import bootstrap

ROOT = Path(__file__).resolve().parent.parent
CHECKS = {
    "lint": ["ruff", "check"],
    "format": ["ruff", "format", "--check"],
    "types": ["mypy"],
}
PARALLEL = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
"""A process per core, a file in one of them, and the browser's files last: most tests wait for a server or a page."""


def main(arguments: "list[str]") -> int:
    """The checks first, then pytest, whose closing lines stay the last ones; 1 when anything failed. With arguments the
    tests run in one process, where -s and --pdb can be used."""
    failed = [name for name, command in CHECKS.items() if _run(name, command) != 0]
    if failed:
        print(f"\nFAILED before the tests: {', '.join(failed)}", flush=True)
    tests = _run("tests", ["pytest", *(arguments or PARALLEL)])
    return tests or int(bool(failed))


def _run(name: str, command: "list[str]") -> int:
    print(f"== {name}: {' '.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT).returncode


if __name__ == "__main__":
    bootstrap.enter(dev=True)
    sys.exit(main(sys.argv[1:]))
