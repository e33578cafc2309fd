"""A model file is tried out in a child process: llama.cpp ends the process in which it meets what it did not expect.

The child loads it, reads its whole vocabulary and computes some tokens, all as the server does. It is this module run
with the file's path; it answers with one JSON object: what is wrong with the file, if it lives to say it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished
from server.errors import ModelFileError, SparrowError

ROOT = Path(__file__).resolve().parent.parent.parent

N_CTX, N_TOKENS = 64, 4
TEXT = "Hello, 你好! <|im_start|> \x00 1234567890 \ud800"
MIN_BYTES_PER_S = 2_000_000
"""Slower is no disk: a file that takes longer does so on purpose."""
LEAST_S = 120

_TELLING = re.compile(r"GGML_ASSERT\(.*|terminate called.*|what\(\):.*|std::\w+")


def try_out(path: Path) -> None:
    """Takes as long as loading it. Raises ModelFileError, in one line, when it can't be served, whatever it did."""
    command = [sys.executable, "-m", __name__, os.path.abspath(path)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    limit_s = LEAST_S + path.stat().st_size / MIN_BYTES_PER_S
    try:
        child = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{path}: llama.cpp was not done with it after {limit_s:.0f} s: take another.") from None
    with contextlib.suppress(ValueError, KeyError, IndexError):
        said = json.loads(child.stdout.splitlines()[-1])["error"]
        if not said:
            return
        raise ModelFileError(said)
    raise ModelFileError(f"{path}: {_how_it_died(child)}: it is damaged, or made to do harm; take another.")


def _how_it_died(child: subprocess.CompletedProcess[bytes]) -> str:
    lines = child.stderr.decode("utf-8", "replace").splitlines()
    reasons = [found[0] for line in lines if (found := _TELLING.search(line))] or [line for line in lines if line][-1:]
    how = f"llama.cpp died of {_signal(-child.returncode)} over it" if child.returncode < 0 else "it can't be loaded"
    return " ".join([how, *(f"({reason.strip()[:200]})" for reason in reasons[-1:])])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _run(path: Path) -> str:
    """What is wrong with it; "" for nothing."""
    try:
        engine = open_engine(path, n_ctx=N_CTX, n_slots=1, n_threads=1)
    except SparrowError as error:
        return error.message
    except (ValueError, ArithmeticError) as error:
        return f"{path} states what can't be ({error}): it is damaged; fetch or copy it again."
    try:
        return _answer(engine.vocab.tokenize(TEXT)[: N_CTX // 2], engine)
    finally:
        engine.close()


def _answer(tokens: list[int], engine: Engine) -> str:
    """Has some tokens computed as for a request."""
    ended, ends = threading.Event(), list[Finished]()

    def sink(event: Event) -> None:
        if isinstance(event, Finished):
            ends.append(event)
            ended.set()

    engine.start()
    engine.submit(tokens, SamplingParams(max_tokens=N_TOKENS, ignore_eos=True), sink)
    ended.wait()
    return ends[0].error.message if ends[0].error else ""


def main(path: Path) -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would wait until llama.cpp returns
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps({"error": _run(path)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
