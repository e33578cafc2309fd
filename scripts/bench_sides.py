"""Who is measured: servers that are started for every scenario anew, servers that run already, llama.cpp by itself."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import bench_client
import bench_machine
import bench_server
from bench_client import Client
from bench_raw import Job
from bench_server import Program, Server

from server.errors import UsageError

OURS, RAW, PEER = "Sparrow", "llama_decode alone", "llama-server"
USUAL, BOX = "usual", "box"


@dataclass(frozen=True)
class Side:
    """A server to measure: what starts it, or one that runs already."""

    name: str
    programs: Mapping[str, Program] = field(default_factory=dict)
    """USUAL serves the file that all serve, BOX the one that this server would serve out of the box."""
    server: Server | None = None
    has_our_page: bool = False

    @property
    def can_restart(self) -> bool:
        return self.server is None

    @contextmanager
    def running(self, folder: Path, program: str = USUAL) -> Iterator[Server]:
        """The server, answering; what it keeps lies in `folder`, where its next start finds it."""
        if self.server is not None:
            yield self.server
            return
        with bench_server.running(self.programs[program], folder) as server:
            yield server


def remote(url: str, name: str = "") -> Side:
    """A server that somebody else started. Raises UsageError, with what is wrong, unless it answers a chat."""
    address = urlsplit(url)
    try:
        port = address.port or 80
    except ValueError:
        port = 0
    if address.scheme != "http" or not address.hostname or not port:
        raise UsageError(
            f"{url!r} is no address of a server: give one like http://127.0.0.1:8080 (https is not spoken)."
        )
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    client = Client(base, _model(base))
    try:
        client.chat([{"role": "user", "content": "Hello"}], 2)
    except UsageError as error:
        raise UsageError(f"{error.message.rstrip('.')}, when asked for a chat of two tokens.") from None
    pid = bench_machine.listener(port) if address.hostname in ("127.0.0.1", "localhost", "::1") else None
    return Side(name or address.netloc, server=Server(client, pid))


def _model(url: str) -> str:
    """The first model that the server lists: some answer only to its name. Raises UsageError when nobody is there."""
    try:
        status, body = bench_client.get(url, "/v1/models")
    except OSError as error:
        raise UsageError(f"{url}: nobody answers there ({error.strerror or error}): start that server first.") from None
    except http.client.HTTPException:
        raise UsageError(f"{url}: what answers there speaks no HTTP.") from None
    try:
        return str(json.loads(body)["data"][0]["id"]) if status == 200 else "any"
    except (ValueError, LookupError, TypeError):
        return "any"


def raw_figures(job: Job) -> dict[str, float]:
    """One start of bench_raw.py, a process that computes the job with llama_decode and nothing else."""
    command = [sys.executable, str(bench_server.ROOT / "scripts" / "bench_raw.py"), json.dumps(asdict(job))]
    # llama.cpp as it comes: with libgomp's own spinning, which server.engine shortens for ours.
    plain = {**os.environ, "GOMP_SPINCOUNT": "300000"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench_server.ROOT, env=plain)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise UsageError(f"llama.cpp can't compute {job.model}: {last or f'it ended with {done.returncode}'}")
    return dict(json.loads(done.stdout))
