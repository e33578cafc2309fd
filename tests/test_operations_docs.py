"""What docs/ tells those who run a server: flags, variables, paths and metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from server.engine.loader import open_engine
from server.metrics import registry_of
from server.observe import Meter
from server.settings import ENV_PREFIX, Settings, flag_of

ROOT = Path(__file__).parent.parent
UNIT, IMAGE, GUIDE = (ROOT / "docs" / name for name in ("sparrow.service", "Dockerfile", "operations.md"))
FLAGS = {flag_of(row) for row in fields(Settings)}
VARIABLES = {ENV_PREFIX + row.name.upper() for row in fields(Settings)}


@pytest.mark.parametrize("path", [UNIT, IMAGE, GUIDE], ids=lambda path: path.name)
def test_flags_and_variables_exist(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"\bSPARROW_[A-Z_]+\b", text)) <= VARIABLES
    ours = {line for line in text.splitlines() if "docker " not in line and "systemctl" not in line}
    named = set(re.findall(r"`(--[a-z-]+)", "\n".join(ours)))
    assert named <= FLAGS and (named or path is not GUIDE)


def test_what_the_unit_and_the_image_name_is_there() -> None:
    for found in re.findall(r"/opt/sparrow/(scripts/\S+\.py)", UNIT.read_text() + GUIDE.read_text()):
        assert (ROOT / found).exists(), found
    copied = [line.split()[1:-1] for line in IMAGE.read_text().splitlines() if line.startswith("COPY ")]
    for source in (source for sources in copied for source in sources if not source.startswith("--from")):
        assert source == "/opt/sparrow/.venv" or (ROOT / source).exists(), source
    assert re.search(r'ENTRYPOINT \[".venv/bin/python", "(.*)"\]', IMAGE.read_text())[1] == "scripts/serve.py"  # type: ignore[index]


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    unit = tmp_path / "sparrow.service"
    unit.write_text(UNIT.read_text().replace("/opt/sparrow/.venv/bin/python", sys.executable))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_guide_names_every_metric(tiny_path: Path) -> None:
    engine = open_engine(tiny_path, n_ctx=256, n_slots=1, n_threads=1)
    try:
        registry: CollectorRegistry = registry_of(engine, Meter())
        told = set(re.findall(r"^# TYPE (sparrow_\w+)", generate_latest(registry).decode(), re.MULTILINE))
    finally:
        engine.close()
    named = set(re.findall(r"`(sparrow_\w+)", GUIDE.read_text()))
    assert told == named
