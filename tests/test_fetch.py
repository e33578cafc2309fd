"""scripts/fetch.py against a hub of our own: cut, altered, blocked, killed; the file is whole or not there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import manifest
import pytest

from server.errors import UsageError
from tests.hub import Faults, Hub
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
FP16 = "qwen2.5-0.5b-instruct-fp16.gguf"
Q4_0 = "qwen2.5-0.5b-instruct-q4_0.gguf"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """11 MB: eleven of the pieces in which it is written."""
    path = tmp_path_factory.mktemp("content") / "model.gguf"
    return write_tiny_model(path, n_embd=512, n_layer=2, dtype="F32").read_bytes()


@pytest.fixture
def hub(content: bytes) -> Iterator[Hub]:
    with Hub({FP16: content, Q4_0: content}) as running:
        yield running


@pytest.fixture
def second(content: bytes) -> Iterator[Hub]:
    with Hub({FP16: content}) as running:
        yield running


def start(models: Path, hubs: list[str], *flags: str, **environ: str) -> subprocess.Popen[str]:
    endpoints = [part for url in hubs for part in ("--endpoint", url)]
    command = [sys.executable, str(ROOT / "scripts" / "fetch.py"), "--dir", str(models), *endpoints, *flags]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    home = {"HF_HOME": str(models.parent / "hf"), "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**clean, **home, **environ}
    )


def fetch(models: Path, hubs: list[str], *flags: str, **environ: str) -> tuple[int, str, str]:
    process = start(models, hubs, *flags, **environ)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def names(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir())


def test_a_file_arrives_verified_and_a_second_call_asks_nobody(hub: Hub, tmp_path: Path, content: bytes) -> None:
    models = tmp_path / "models"
    code, out, err = fetch(models, [hub.url])
    assert (code, err) == (0, "")
    assert "verified" in out
    assert (models / FP16).read_bytes() == content
    assert names(models) == [FP16]
    n_requests = len(hub.requests)
    code, out, _ = fetch(models, [hub.url])
    assert code == 0 and "is there already" in out
    assert len(hub.requests) == n_requests


def test_a_cut_in_the_stream_goes_on_by_range(hub: Hub, tmp_path: Path, content: bytes) -> None:
    hub.faults = Faults(cut_at=5_000_000)
    code, _, err = fetch(tmp_path / "models", [hub.url])
    assert (code, err) == (0, "")
    assert (tmp_path / "models" / FP16).read_bytes() == content
    ranges = [request.headers["Range"] for request in hub.asked("cdn", "GET")]
    assert ranges == [None, "bytes=4194304-"]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_killed_at_a_byte_the_next_start_goes_on(hub: Hub, tmp_path: Path, content: bytes, share: float) -> None:
    models = tmp_path / "models"
    hub.faults = Faults(pause_s=0.005)
    process = start(models, [hub.url])
    while hub.sent < share * len(content):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not (models / FP16).exists()
    have = sum(path.stat().st_size for path in models.glob("*.partial"))
    assert have >= share * len(content) - 3 * (1 << 20)
    hub.requests.clear()
    hub.faults = Faults()
    code, out, err = fetch(models, [hub.url])
    assert (code, err) == (0, "")
    assert (models / FP16).read_bytes() == content
    asked = [request.headers["Range"] for request in hub.asked("cdn", "GET")]
    assert asked == [f"bytes={have}-" if have else None]
    assert ("going on after" in out) == (have > 0)
    assert names(models) == [FP16]


def test_ctrl_c_is_one_line_and_what_arrived_stays(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(pause_s=0.01)
    process = start(tmp_path / "models", [hub.url])
    while hub.sent < 4_000_000:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the next start goes on" in err and "Traceback" not in err
    assert [name.endswith(".partial") for name in names(tmp_path / "models")] == [True]


def test_a_server_without_range_starts_over_and_is_right(hub: Hub, tmp_path: Path, content: bytes) -> None:
    hub.faults = Faults(cut_at=5_000_000, no_range=True)
    code, _, _ = fetch(tmp_path / "models", [hub.url])
    assert code == 0
    assert (tmp_path / "models" / FP16).read_bytes() == content


def test_wrong_bytes_are_deleted_and_named(hub: Hub, tmp_path: Path) -> None:
    hub.faults = Faults(wrong_bytes=True)
    code, _, err = fetch(tmp_path / "models", [hub.url])
    assert code == 2 and err.count("\n") == 1
    assert "wrong SHA-256 and was deleted" in err
    assert names(tmp_path / "models") == []


def test_the_manifest_is_believed_more_than_the_hub(tmp_path: Path, content: bytes) -> None:
    with Hub({"qwen2.5-0.5b-instruct-q8_0.gguf": content}) as hub:
        code, _, err = fetch(tmp_path / "models", [hub.url], "--quant", "q8_0")
    assert code == 2 and "states another SHA-256" in err
    assert hub.sent == 0


def _closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("fault", ["refused", "no name", "503", "502 of the CDN", "silent", "login page"])
def test_an_endpoint_that_is_not_reachable_is_followed_by_the_next(
    hub: Hub, second: Hub, tmp_path: Path, content: bytes, fault: str
) -> None:
    hub.faults = Faults(
        hub_status=503 if fault == "503" else None,
        cdn_status=502 if fault == "502 of the CDN" else None,
        hang_s=3 if fault == "silent" else 0,
        login_page=fault == "login page",
    )
    first = {"refused": _closed_port(), "no name": "http://nowhere.invalid"}.get(fault, hub.url)
    code, out, err = fetch(tmp_path / "models", [first, second.url])
    assert (code, err) == (0, "")
    assert f"{first} can't be used: " in out
    assert (tmp_path / "models" / FP16).read_bytes() == content


def test_what_one_endpoint_began_another_ends(hub: Hub, second: Hub, tmp_path: Path, content: bytes) -> None:
    hub.faults = Faults(cut_at=6_000_000, cuts=100)
    code, out, _ = fetch(tmp_path / "models", [hub.url, second.url])
    assert code == 0 and f"{second.url}: going on after 5.2 MB of" in out
    assert (tmp_path / "models" / FP16).read_bytes() == content
    assert [request.headers["Range"] for request in second.asked("cdn", "GET")] == ["bytes=5242880-"]


@pytest.mark.parametrize(
    ("error_code", "said"),
    [
        ("EntryNotFound", f"has no file {FP16}"),
        ("RevisionNotFound", "has no revision"),
        ("RepoNotFound", "check the name, or set HF_TOKEN"),
    ],
)
def test_what_is_missing_is_not_looked_for_elsewhere(
    hub: Hub, second: Hub, tmp_path: Path, error_code: str, said: str
) -> None:
    hub.faults = Faults(error_code=error_code)
    code, _, err = fetch(tmp_path / "models", [hub.url, second.url])
    assert code == 2 and said in err and err.count("\n") == 1
    assert second.requests == []


def test_nobody_reachable_is_one_line_with_each_reason(tmp_path: Path) -> None:
    one, other = _closed_port(), _closed_port()
    code, _, err = fetch(tmp_path / "models", [one, other])
    assert code == 2 and err.count("\n") == 1
    assert one in err and other in err and "refused" in err


def test_the_token_goes_to_the_endpoint_of_the_person_and_to_no_mirror(hub: Hub, second: Hub, tmp_path: Path) -> None:
    secret = {"HF_TOKEN": "hf_secret"}
    assert fetch(tmp_path / "mirror", [second.url], **secret)[0] == 0
    assert all("Authorization" not in request.headers for request in second.requests)
    assert fetch(tmp_path / "own", [], HF_ENDPOINT=hub.url, **secret)[0] == 0
    told = [request.headers["Authorization"] for request in hub.asked("hub", "HEAD") + hub.asked("hub", "GET")]
    assert told == ["Bearer hf_secret"] * 2
    assert all("Authorization" not in request.headers for request in hub.asked("cdn", "GET"))


def test_offline_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    code, _, err = fetch(tmp_path / "models", [hub.url], HF_HUB_OFFLINE="1")
    assert code == 2 and "HF_HUB_OFFLINE is set" in err and err.count("\n") == 1
    assert hub.requests == []


def test_another_repository_by_its_names(tmp_path: Path, content: bytes) -> None:
    with Hub({"small-model-f16.gguf": content}, repo="some/Small-Model-GGUF", faults=Faults(no_sha256=True)) as hub:
        flags = ["--repo", "some/Small-Model-GGUF", "--quant", "f16"]
        code, out, _ = fetch(tmp_path / "models", [hub.url], *flags)
    assert code == 0 and "states no SHA-256" in out
    assert (tmp_path / "models" / "small-model-f16.gguf").read_bytes() == content


def test_a_file_that_is_no_gguf_is_not_kept(tmp_path: Path) -> None:
    with Hub({FP16: b"<html>not here</html>" * 1000}) as hub:
        code, _, err = fetch(tmp_path / "models", [hub.url])
    assert code == 2 and "is no GGUF" in err
    assert names(tmp_path / "models") == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quant", "iq4_nl"], "no official file of that level; there are fp16, q2_k"),
        (["--endpoint", "example.org"], "begins with https://"),
        (["--qant", "x"], "unrecognized arguments"),
        (["--repo", "one/two/three", "--quant", "f16"], "--repo one/two/three"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, flags: list[str], said: str) -> None:
    hubs = [] if "--endpoint" in flags else ["http://127.0.0.1:9"]
    code, _, err = fetch(tmp_path / "models", hubs, *flags)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_disk_too_small_is_seen_before_the_download(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(models)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        code, _, err = fetch(models, [hub.url])
        assert code == 2 and "free some space" in err
        assert hub.sent == 0 and names(models) == []
    finally:
        subprocess.run(["umount", str(models)], check=True)


def test_every_official_level_is_in_the_manifest() -> None:
    for level in ("fp16", "q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0"):
        remote = manifest.official(level)
        assert remote.name == f"qwen2.5-0.5b-instruct-{level}.gguf"
        assert len(remote.revision) == 40 and len(remote.sha256 or "0" * 64) == 64
    assert manifest.official("F16") == manifest.official("fp16")
    with pytest.raises(UsageError):
        manifest.official("IQ4_NL")
