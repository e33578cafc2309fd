"""scripts/serve.py as a process on a free port of loopback, ended by its id."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent


class ServerProcess:
    """`with ServerProcess(["--demo"]) as server: server.url` — started, healthy, and stopped at the end."""

    def __init__(
        self,
        flags: Sequence[str],
        *,
        port: int = 0,
        environ: Mapping[str, str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        """inside: a command that becomes the server, like nsenter's."""
        self._inside = inside
        self._flags = [*flags, "--port", str(port), "--no-browser"]
        self._environ = {**os.environ, **(environ or {})}
        self._log = tempfile.NamedTemporaryFile(mode="w+", suffix=".log", prefix="sparrow-test-")
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, timeout_s: float = 60) -> None:
        """Returns when /health answers. A port that was once chosen is kept, so a restart has the same URL."""
        self.spawn()
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(r"ready:\s+(https?://[^/\s]+)/\S*\s", self.output)):
            assert self._process.poll() is None, f"serve.py ended:\n{self.output}"
            assert time.monotonic() < deadline, f"serve.py is not ready:\n{self.output}"
            time.sleep(0.05)
        self.url = found[1]
        self._flags[self._flags.index("--port") + 1] = self.url.rpartition(":")[2]

    def spawn(self) -> None:
        """Begin to start; returns at once."""
        self._log.truncate(0)
        command = [*self._inside, sys.executable, str(ROOT / "scripts" / "serve.py"), *self._flags]
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=self._environ, cwd=ROOT
        )

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float = 20) -> int:
        """The exit code of a process that is about to end."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = 20) -> int:
        """Ctrl-C's politer brother; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout_s)

    def json(self, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = 60) -> Any:
        """GET, or POST of `body`; the reply's JSON. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return json.loads(reply.read())

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self._log.close()


@contextlib.contextmanager
def slow_motion(server: ServerProcess, share: float = 0.1) -> Iterator[None]:
    """The server runs for this share of the time: the demo is as fast as a large model. It may be killed meanwhile.

    On a busy machine the brake comes late, and stays on for as much longer.
    """
    ended, pid = threading.Event(), server.pid

    def brake() -> None:
        with contextlib.suppress(ProcessLookupError):
            runs_since = time.monotonic()
            while not ended.wait(0.01):
                os.kill(pid, signal.SIGSTOP)
                ran_s = time.monotonic() - runs_since
                ended.wait(ran_s / share - ran_s)
                runs_since = time.monotonic()
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
