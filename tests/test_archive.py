"""Snapshot files: found by tokens, within the quota, and worth nothing once a single bit of them is wrong."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from server.engine.archive import Archive
from server.engine.prefix import Ids
from tests.server_process import ROOT

KEY = bytes(range(32))
QUOTA = 10**6
N_CTX = 512


def ids(*parts: range) -> Ids:
    return np.array([token for part in parts for token in part], dtype=np.int32)


def archive(folder: Path, key: bytes = KEY, quota: int = QUOTA) -> Archive:
    return Archive(folder, key, quota, N_CTX)


def payload(seed: int, n_bytes: int = 1000) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def read(store: Archive, tokens: Ids) -> bytes | None:
    snapshot, _ = store.match(tokens)
    data = store.read(snapshot) if snapshot else None
    return None if data is None else bytes(data)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".kv", ".tmp"))


def test_what_was_written_is_found_by_its_prefix_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kv"
    archive(folder).write(ids(range(100)), memoryview(payload(1)))
    store = archive(folder)
    snapshot, n = store.match(ids(range(80), range(500, 520)))
    assert snapshot and n == 80 and list(snapshot.tokens) == list(range(100))
    assert read(store, ids(range(100))) == payload(1)
    assert store.match(ids(range(5, 9))) == (None, 0)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in files(folder)] == [0o600]


def test_the_smallest_of_equally_good_ones_is_taken(tmp_path: Path) -> None:
    store = archive(tmp_path)
    store.write(ids(range(100), range(900, 1200)), memoryview(payload(1)))
    store.write(ids(range(100), range(2000, 2100)), memoryview(payload(2)))
    assert read(store, ids(range(100), range(50))) == payload(2)


def test_the_next_turn_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    store = archive(tmp_path)
    store.write(ids(range(100)), memoryview(payload(1)))
    store.write(ids(range(90), range(3000, 3100)), memoryview(payload(2)))
    assert len(files(tmp_path)) == 1, "what a few tokens of it were worth is not kept"
    store.write(ids(range(20), range(3000, 3100)), memoryview(payload(3)))
    assert len(files(tmp_path)) == 2, "another conversation with the same system prompt"
    assert read(store, ids(range(90), range(3000, 3100))) == payload(2)


def test_the_least_recently_used_go_first_and_that_outlives_the_process(tmp_path: Path) -> None:
    quota = 3 * (1000 + 4 * 100 + 80)
    chats = [ids(range(1000 * n, 1000 * n + 100)) for n in range(5)]
    store = archive(tmp_path, quota=quota)
    for n in range(3):
        store.write(chats[n], memoryview(payload(n)))
    assert read(store, chats[0]) == payload(0)
    store = archive(tmp_path, quota=quota)
    store.write(chats[3], memoryview(payload(3)))
    assert [read(store, chat) is not None for chat in chats] == [True, False, True, True, False]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= quota
    store.write(chats[4], memoryview(payload(4, quota)))
    assert read(store, chats[4]) is None and len(files(tmp_path)) == 3, "one that is too large throws nobody out"
    archive(tmp_path, quota=quota // 3)
    assert len(files(tmp_path)) == 1, "a smaller quota holds from the start"


def test_one_bit_anywhere_is_enough(tmp_path: Path) -> None:
    """Head, tokens or payload, before or after the start: never a wrong byte, never an exception, and the file goes."""
    rng = random.Random(7)
    tokens = ids(range(100))
    for n in range(150):
        archive(tmp_path).write(tokens, memoryview(payload(n)))
        (path,) = files(tmp_path)
        raw, before = bytearray(path.read_bytes()), archive(tmp_path)
        place = n if n < 64 else rng.randrange(len(raw))
        raw[place] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        assert read(before if n % 2 else archive(tmp_path), tokens) is None, f"byte {place}"
        assert not files(tmp_path)


def test_a_file_cut_anywhere_or_grown_is_none(tmp_path: Path) -> None:
    tokens = ids(range(64))
    archive(tmp_path).write(tokens, memoryview(payload(0, 100)))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    before = archive(tmp_path)
    for n in [*range(0, len(whole), 3), len(whole) - 1]:
        path.write_bytes(whole[:n])
        assert read(archive(tmp_path), tokens) is None and not path.exists(), n
    path.write_bytes(whole + b"\0")
    assert read(before, tokens) is None and not path.exists()


def test_another_key_or_version_is_ignored_and_deleted(tmp_path: Path) -> None:
    archive(tmp_path).write(ids(range(100)), memoryview(payload(1)))
    assert read(archive(tmp_path, key=bytes(32)), ids(range(100))) is None and not files(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "rubbish.kv").write_bytes(b"SPRW" + bytes(200))
    (tmp_path / "folder.kv").mkdir()
    assert archive(tmp_path).match(ids(range(9))) == (None, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.kv", "note.txt"]


def test_a_disk_that_can_not_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = archive(tmp_path / "kv")
    (tmp_path / "kv").rmdir()
    for n in range(3):
        store.write(ids(range(100)), memoryview(payload(n)))
    assert len(caplog.records) == 1 and "could not be saved" in caplog.text
    (tmp_path / "kv").mkdir()
    store.write(ids(range(100)), memoryview(payload(1)))
    assert read(store, ids(range(100))) == payload(1)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk, in a process of its own."""
    code = WRITER + (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "store.write(np.arange(100, dtype=np.int32), memoryview(bytes(10**6 // 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "could not be saved" in done.stderr, done.stderr
    assert not files(tmp_path)


WRITER = (
    "import sys, random\nfrom pathlib import Path\nimport numpy as np\nfrom server.engine.archive import Archive\n"
    f"store = Archive(Path(sys.argv[1]), bytes(range(32)), {QUOTA}, {N_CTX})\n"
)


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    """Both write the same conversations with other bytes: whatever is read is one of the two, whole."""
    code = WRITER + (
        "rng = random.Random(int(sys.argv[2]))\n"
        "for n in range(120):\n"
        "    chat = rng.randrange(12)\n"
        "    tokens = np.arange(1000 * chat, 1000 * chat + 70, dtype=np.int32)\n"
        "    if rng.random() < 0.4: store.write(tokens, memoryview(bytes([rng.randrange(256)]) * 150_000))\n"
        "    snapshot, _ = store.match(tokens)\n"
        "    data = bytes((snapshot and store.read(snapshot)) or b'')\n"
        "    assert not data or (len(data), len(set(data))) == (150_000, 1)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    both = [subprocess.Popen([*command, seed], cwd=ROOT, stderr=subprocess.PIPE, text=True) for seed in ("1", "2")]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Traceback" not in "".join(said)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= QUOTA + 151_000, "one may be over by its last write"
    store = archive(tmp_path)
    assert any(read(store, ids(range(1000 * n, 1000 * n + 70))) for n in range(12))


def test_a_file_that_is_being_written_is_not_swept_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, swept = archive(tmp_path), list[bool]()

    def while_another_starts(_descriptor: int) -> None:
        archive(tmp_path)
        swept.append(not list(tmp_path.glob("*.tmp")))

    monkeypatch.setattr(os, "fsync", while_another_starts)
    store.write(ids(range(100)), memoryview(payload(1)))
    assert swept == [False] and read(store, ids(range(100))) == payload(1)


def test_kill_9_during_a_write_leaves_no_half_file(tmp_path: Path) -> None:
    code = WRITER + "while True: store.write(np.arange(100, dtype=np.int32), memoryview(bytes(900_000)))"
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as process:
            deadline = time.monotonic() + 20
            while not list(tmp_path.glob("*.tmp")) and time.monotonic() < deadline:
                time.sleep(0.0005)
            process.send_signal(signal.SIGKILL)
    (tmp_path / "old.1.1.tmp").write_bytes(b"left by a power cut")
    with (tmp_path / "live.2.2.tmp").open("wb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        store = archive(tmp_path)
        assert [path.name for path in tmp_path.glob("*.tmp")] == ["live.2.2.tmp"], "somebody is writing this one"
    assert read(store, ids(range(100))) in (None, bytes(900_000))


def test_a_clock_that_was_set_back_does_not_make_the_newest_the_oldest(tmp_path: Path) -> None:
    store = archive(tmp_path, quota=2500)
    store.write(ids(range(100)), memoryview(payload(1)))
    for path in files(tmp_path):
        os.utime(path, (time.time() + 1e8,) * 2)
    store.write(ids(range(1000, 1100)), memoryview(payload(2)))
    assert read(store, ids(range(1000, 1100))) == payload(2), "what was written last is what goes last"
