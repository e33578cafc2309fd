"""The chat template of a model file, run where it can do no harm (see template_sandbox)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from server.errors import InvalidRequest, ModelFileError
from server.template_sandbox import CPU_S, MAX_TEMPLATE, PARSE_S, TooLong, environment, is_tame, names, rendered

ROOT = Path(__file__).resolve().parent.parent

PATIENCE = 10
"""How many times longer than its processor time a child may take on a busy machine."""
MIN_TEXT = 1_000_000
"""Characters that every rendering may write, and four times those of the messages more."""


class _Limit(Exception):
    """The template asked for more time, memory or room than it gets; the text says of what, for a person."""


class _Refused(Exception):
    """The template's own error, or Jinja's."""


class _Runner(Protocol):
    def render(self, values: Mapping[str, Any], as_json: str) -> str:
        """Raises _Limit and _Refused."""


class ChatTemplate:
    """Thread-safe. A tame template takes microseconds; any other waits for its child process, one at a time."""

    def __init__(self, template: str) -> None:
        """Raises ModelFileError when it is too long, can't be parsed, or takes too much to be parsed."""
        if len(template) > MAX_TEMPLATE:
            raise ModelFileError(
                f"The chat template inside the model file has {len(template):,} characters; "
                f"{MAX_TEMPLATE:,} are the most: serve another file."
            )
        self._names = names(template)
        try:
            self._runner: _Runner = _Here(template) if is_tame(template) else _Child(template)
        except (_Limit, _Refused) as error:
            raise ModelFileError(f"The chat template inside the model file can't be read: {error}") from None

    def asks_for(self, name: str) -> bool:
        """Whether a value of that name can make a difference."""
        return name in self._names

    def render(self, **values: Any) -> str:
        """`values` are what JSON can hold. Raises InvalidRequest: the template refuses them, or takes too much."""
        try:
            return self._runner.render(values, json.dumps(values))
        except RecursionError:
            raise InvalidRequest("These messages or tools are nested too deeply: send flatter ones.") from None
        except _Refused as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        except _Limit as error:
            raise InvalidRequest(
                f"The model's chat template {error} with these messages: send less, or serve another model file.",
                param="messages",
            ) from None


def _n_most(as_json: str) -> int:
    """Characters that may come of these values."""
    return MIN_TEXT + 4 * len(as_json)


class _Here:
    """In this process: for tame templates."""

    def __init__(self, template: str) -> None:
        self._template = environment().from_string(template)

    def render(self, values: Mapping[str, Any], as_json: str) -> str:
        try:
            return rendered(self._template, values, _n_most(as_json))
        except TooLong:
            raise _Limit("writes more text than a conversation has") from None
        except Exception as error:  # a program of a stranger: whatever it raises is about these messages
            raise _Refused(_line(error)) from None


class _Child:
    """In a process of its own, which is started again after it was ended for taking too much."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._lock = threading.Lock()
        self._end: weakref.finalize[Any, Any] | None = None
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "server.template_sandbox", str(CPU_S), str(PARSE_S)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
        self._end = weakref.finalize(self, _end, process)
        self._ask(process, json.dumps(self._template), PATIENCE * PARSE_S)
        return process

    def render(self, values: Mapping[str, Any], as_json: str) -> str:
        patience_s = PATIENCE * (CPU_S + len(as_json) // 1_000_000)
        with self._lock:
            if self._process.poll() is not None:
                self._process = self._started()
            return self._ask(self._process, f'{{"values": {as_json}, "n_most": {_n_most(as_json)}}}', patience_s)

    def _ask(self, process: subprocess.Popen[str], question: str, patience_s: float) -> str:
        alarm = threading.Timer(patience_s, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            said = _exchange(process, question + "\n")
        finally:
            alarm.cancel()
        if said is None:
            assert self._end
            self._end()
            raise _Limit("takes too long")
        if "limit" in said:
            raise _Limit(said["limit"])
        if "error" in said:
            raise _Refused(_line(said["error"]))
        return said["text"]


def _exchange(process: subprocess.Popen[str], line: str) -> dict[str, str] | None:
    """None: the child died over it."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        return None
    return json.loads(answer) if answer.endswith("\n") else None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        _close(pipe)


def _close(pipe: IO[str] | None) -> None:
    try:
        if pipe:
            pipe.close()
    except OSError:  # what was written and not read any more
        pass


def _line(error: object) -> str:
    """An error's text, as a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
