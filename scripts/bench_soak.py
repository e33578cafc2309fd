"""Mixed traffic at more than the server can do, for minutes, and whether anything is left of it that should not be.

    python3 scripts/bench_soak.py --demo --minutes 30          the whole soak
    python3 scripts/bench_soak.py --model PATH.gguf            with a file of yours

People at the page and programs at the API ask, hang up, stop, come back, read slowly, type drafts, import, delete,
search and send nonsense, all drawn from --seed. Then it is quiet, and these must hold: every accepted answer ended
once; nothing was refused that should not be, and nothing broke; the database is sound and nobody waits in it; slots,
files, threads and memory are what they were after a while of the same. Exit code 1 when one does not.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import bootstrap

if __name__ == "__main__":
    bootstrap.enter()

import bench_client
import bench_machine
import bench_server
import console
from bench_server import Program, Server
from bench_soak_people import Person, Record

from server.errors import UsageError

N_PEOPLE, N_SLOTS, N_QUEUE, N_CTX = 24, 2, 6, 1024
WARM_SHARE = 0.35
"""Of the time, after which caches are as full as they get."""
QUIET_S = 60.0
SETTLE_S = 3.0
"""What is idle saves its chats and closes connections that are kept open."""
MAX_GROWTH_MB = 24.0
"""Of memory that is the process's own, from warm to the end: the last answers' logs, and holes between them."""
MAX_FILES = 8
"""More files than before at the end: a thread of the database that had nothing to do yet opens three."""
MAX_THREADS, MAX_THREADS_SHORT = 2, 10
"""More threads than before at the end; in less than a minute the pools of asyncio and the store still fill up."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds while nobody asks for anything."""

    anon_mb: float
    n_files: int
    n_threads: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = Path(f"/proc/{pid}/status").read_text()
        found = {name: int(value) for name, value in re.findall(r"^(RssAnon|Threads):\s+(\d+)", status, re.MULTILINE)}
        n_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(found["RssAnon"] / 1000, n_files, found["Threads"])


def main(argv: list[str]) -> int:
    given = _parse(argv)
    record = Record()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sparrow-soak-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with bench_server.running(_program(given), folder) as server:
            prints = _soak(server, record, given.minutes * 60, given.people, given.seed)
        record.statuses.update(_kept(folder / "data" / "sparrow.db"))
        record.problems.update(left_in_database(folder / "data" / "sparrow.db"))
        record.problems.update(left_in_log((folder / "server.log").read_text(errors="replace")))
    return _report(record, prints, time.monotonic() - began, given)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = console.Parser(prog="bench_soak.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--demo", action="store_true", help="the tiny model of the repository")
    parser.add_argument("--model", type=Path, metavar="PATH", help="this GGUF file")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="how long (default: 30)")
    parser.add_argument("--people", type=int, default=N_PEOPLE, metavar="N", help=f"at once (default: {N_PEOPLE})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of all that they do (default: 1)")
    given = parser.parse_args(argv)
    if given.demo == (given.model is not None):
        raise UsageError("Give --demo, or --model PATH for a GGUF file of yours: one of them.")
    if not Path("/proc/self/status").exists():
        raise UsageError("The soak looks at the server through /proc, which only Linux has.")
    if given.minutes <= 0 or given.people < 1:
        raise UsageError("--minutes takes more than 0, --people 1 or more.")
    return given


def _program(given: argparse.Namespace) -> Program:
    which = ["--demo"] if given.demo else ["--model", str(given.model.resolve())]
    flags = [*which, "--ctx", str(N_CTX), "--slots", str(N_SLOTS), "--queue", str(N_QUEUE), "--no-browser"]

    def command(port: int, folder: Path) -> list[str]:
        return [*bench_server.SERVE, *flags, "--port", str(port), "--data-dir", str(folder / "data")]

    return Program("serve.py", command)


def _soak(server: Server, record: Record, seconds: float, n_people: int, seed: int) -> list[Footprint]:
    """Everybody at work until the time is up, with a pause in which the process is looked at, and one at the end."""
    port = urlsplit(server.client.url).port or 0
    people = [Person(port, record, f"{seed}.{n}") for n in range(n_people)]
    prints = []
    for share in (WARM_SHARE, 1 - WARM_SHARE):
        _all_act(people, time.monotonic() + seconds * share)
        prints.append(_quiet(server, record))
    return prints


def _all_act(people: list[Person], until: float) -> None:
    def work(person: Person) -> None:
        while time.monotonic() < until:
            person.act()

    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _quiet(server: Server, record: Record) -> Footprint:
    """Once nothing is left to do; a slot that is never given back would keep it from that."""
    assert server.pid is not None
    took = bench_machine.until_quiet(server.pid, QUIET_S)
    if took is None or took[1] >= QUIET_S - bench_machine.QUIET_S:
        record.complain(f"the server still computes {QUIET_S:.0f} s after the last request")
    time.sleep(SETTLE_S)
    if not bench_client.is_healthy(server.client.url):
        record.complain("the server does not answer /health")
    told = bench_client.get(server.client.url, "/metrics")[1].decode()
    for name in ('slots{state="busy"}', "requests_waiting", "requests_running"):
        found = re.search(rf"^sparrow_{re.escape(name)} (\S+)$", told, re.MULTILINE)
        if found is None or float(found[1]):
            record.complain(f"nobody asks, and /metrics says {found[0] if found else f'nothing of {name}'}")
    return Footprint.of(server.pid)


# --- what is left ------------------------------------------------------------------------------------------------

ORPHANS = {
    "an answer that is still being written": "SELECT id FROM messages WHERE status = 'streaming'",
    "a message of no conversation": (
        "SELECT id FROM messages WHERE conversation_id NOT IN (SELECT id FROM conversations)"
    ),
    "an answer to no question": (
        "SELECT id FROM messages WHERE role = 'assistant' AND (parent_id IS NULL"
        " OR parent_id NOT IN (SELECT id FROM messages))"
    ),
    "a question without an answer": (
        "SELECT id FROM messages AS m WHERE role = 'user' AND key IS NOT NULL"
        " AND NOT EXISTS (SELECT 1 FROM messages WHERE parent_id = m.id)"
    ),
    "an entry of the search for no message": (
        "SELECT rowid FROM message_index WHERE rowid NOT IN (SELECT id FROM messages)"
    ),
}


def _kept(path: Path) -> Counter[tuple[str, str]]:
    """How the page's answers ended, as the store has it."""
    query = (
        "SELECT status || coalesce(' ' || error_code, ''), count(*) FROM messages"
        " WHERE role = 'assistant' AND (n_prompt IS NOT NULL OR error_code IS NOT NULL) GROUP BY 1"
    )
    with closing(sqlite3.connect(path)) as db:
        return Counter({("answers kept", how): n for how, n in db.execute(query)})


def left_in_database(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        problems = [f"the database is damaged: {row[0]}" for row in db.execute("PRAGMA integrity_check")]
        problems = [problem for problem in problems if not problem.endswith(": ok")]
        problems += [f"the database: {row} points nowhere" for row in db.execute("PRAGMA foreign_key_check")]
        for what, query in ORPHANS.items():
            found = [row[0] for row in db.execute(query)]
            problems += [f"the database has {what}: {found[:5]} of {len(found)}"] if found else []
    return problems


def left_in_log(log: str) -> list[str]:
    """A step that failed, books of the slots that are wrong, an exception of ours: all of them are logged."""
    signs = ("Traceback", "books are wrong", "a step failed", "Exception in", "ERROR")
    return [f"the log says: {line[:300]}" for line in log.splitlines() if any(sign in line for sign in signs)][:20]


def grown(warm: Footprint, end: Footprint, minutes: float = 30.0) -> list[str]:
    limits: list[tuple[str, Callable[[Footprint], float], float]] = [
        ("MB of memory", lambda each: each.anon_mb, MAX_GROWTH_MB),
        ("open files", lambda each: each.n_files, MAX_FILES),
        ("threads", lambda each: each.n_threads, MAX_THREADS if minutes >= 1 else MAX_THREADS_SHORT),
    ]
    return [
        f"{what} grew from {of(warm):.0f} to {of(end):.0f}" for what, of, most in limits if of(end) - of(warm) > most
    ]


def _report(record: Record, prints: list[Footprint], seconds: float, given: argparse.Namespace) -> int:
    problems = record.problems + Counter(grown(prints[0], prints[1], given.minutes))
    for kind in sorted({kind for kind, _ in record.statuses}):
        counts = {status: n for (of, status), n in sorted(record.statuses.items()) if of == kind}
        print(f"{kind:28}", "  ".join(f"{status}: {n}" for status, n in counts.items()))
    n_all = sum(n for (kind, _), n in record.statuses.items() if kind != "answers kept")
    print(f"\n{n_all} requests in {seconds:.0f} s; {record.n_ends} answers were read to their end, which came once.")
    for name, footprint in zip(("warm", "end"), prints, strict=True):
        print(f"{name:5} {footprint.anon_mb:6.1f} MB  {footprint.n_files} open files  {footprint.n_threads} threads")
    for problem, n in problems.most_common(50):
        print(f"PROBLEM{f', {n} times' if n > 1 else ''}: {problem}")
    said = {"seconds": round(seconds), "requests": n_all, "ends": record.n_ends, "seed": given.seed}
    print(json.dumps({**said, "problems": problems.total()}))
    return int(bool(problems))


if __name__ == "__main__":
    console.run(main)
