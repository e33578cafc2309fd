"""The soak, for as long as a test may take: CI runs two minutes of it, a release half an hour."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import bench_soak
import pytest
from bench_soak import Footprint

from server.errors import UsageError


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the server through /proc")
@pytest.mark.timeout(180)
def test_some_seconds_of_everything_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    code = bench_soak.main(["--demo", "--minutes", "0.12", "--seed", "7"])
    out = capsys.readouterr().out
    assert code == 0, out
    said = json.loads(out.splitlines()[-1])
    assert said["problems"] == 0 and said["ends"] > 50 and "429: " in out, "more was asked than it can do"


def test_what_is_left_is_found(tmp_path: Path) -> None:
    """A soak that sees nothing would be worth nothing."""
    path = tmp_path / "sparrow.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE conversations (id)")
        db.execute("CREATE TABLE messages (id, conversation_id, parent_id, role, status, key)")
        db.execute("CREATE VIRTUAL TABLE message_index USING fts5 (content)")
        db.execute("INSERT INTO conversations VALUES ('c')")
        db.execute(
            "INSERT INTO messages VALUES (1, 'c', NULL, 'user', 'done', 'k'), (2, 'c', 1, 'assistant', 'done', NULL)"
        )
    db.close()
    assert bench_soak.left_in_database(path) == []
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO messages VALUES (3, 'c', NULL, 'user', 'done', 'l'), (4, 'd', 9, 'assistant', 'streaming', '')"
        )
        db.execute("INSERT INTO message_index (rowid, content) VALUES (5, 'gone')")
    db.close()
    assert len(bench_soak.left_in_database(path)) == len(bench_soak.ORPHANS)
    assert bench_soak.left_in_log("all is well\nTraceback (most recent call last):\n") == [
        "the log says: Traceback (most recent call last):"
    ]
    warm = Footprint(80.0, 20, 10)
    assert bench_soak.grown(warm, warm) == []
    assert len(bench_soak.grown(warm, Footprint(160.0, 90, 30))) == 3
    assert len(bench_soak.grown(warm, Footprint(80.0, 20, 13))) == 1, "a soak of minutes has filled the pools"
    assert bench_soak.grown(warm, Footprint(80.0, 20, 20), minutes=0.1) == []
    assert len(bench_soak.grown(warm, Footprint(80.0, 20, 21), minutes=0.1)) == 1


@pytest.mark.parametrize(
    "flags", [[], ["--demo", "--minutes", "0"], ["--demo", "--people", "0"], ["--demo", "--model", "x"]]
)
def test_flags_that_make_no_sense_are_one_line(flags: list[str]) -> None:
    with pytest.raises(UsageError):
        bench_soak.main(flags)
