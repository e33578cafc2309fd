"""One place for all that is said: to people at the terminal, or, with --log-json, one JSON object a line for programs.

    terminal   say() on stdout; warnings and errors on stderr, one line each, with the time
    JSON       all of it on stdout: {"time", "level", "logger", "message", "request"?, and the record's own fields}

Ids and counts only. What somebody wrote, what the model answered and any key never get here: so an exception's own
words are left out, too, unless they are the system's (a KeyError names the key, which may be a piece of a question).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being served, "" outside of one; tasks that it starts inherit it."""

_SYSTEMS_WORDS = (OSError, MemoryError, AssertionError)
_CHATTY = ("uvicorn.access", "uvicorn.asgi", "asyncio", "httpcore", "httpx", "multipart")

log = logging.getLogger("sparrow")


def fields(**values: Any) -> dict[str, Any]:
    """For `extra`: log.info("answered", extra=fields(n_prompt=12))."""
    return {"fields": values}


def configure(*, as_json: bool) -> None:
    """Once, when the process begins; a second call replaces what the first one set up."""
    handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    handler.setFormatter(_Json() if as_json else _Plain())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another alphabet shows "?" for what it has not
            stream.reconfigure(errors="replace")
    root.setLevel(logging.INFO if as_json else logging.WARNING)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def is_json() -> bool:
    """What is said is read by programs, and kept: nothing that opens a door may be in it."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.getLogger().handlers)


def say(text: str, *, end: str = "\n", **values: Any) -> None:
    """Something that a person at the terminal should know; `values` are a JSON record's fields. Never raises: the
    server goes on when its terminal was closed."""
    if is_json():
        if text.strip():
            log.info(" ".join(text.split()), extra=fields(**values))
        return
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):  # for ever: else what is unwritten fails again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """What is printed inside is said like everything else: for what speaks to a terminal while it sets things up."""
    if not is_json():
        yield
        return
    lines = _Lines()
    try:
        with contextlib.redirect_stdout(lines):
            yield
    finally:
        lines.end()


class _Lines(io.TextIOBase):
    """A text file whose lines become records."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            say(line)
        return len(text)

    def end(self) -> None:
        self.write("\n")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": _time(record, datetime.timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": " ".join(record.getMessage().split()),
        }
        if request_id.get():
            said["request"] = request_id.get()
        said |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            said["exception"] = _trace(record.exc_info[1])
        return json.dumps(said, ensure_ascii=False, default=str)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record):%H:%M:%S} {record.levelname.lower()}: {' '.join(record.getMessage().split())}"
        if record.exc_info and record.exc_info[1]:
            line += "\n  " + "\n  ".join(_trace(record.exc_info[1]))
        return line


def _time(record: logging.LogRecord, zone: datetime.timezone | None = None) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, zone)


def _trace(error: BaseException) -> list[str]:
    """Where it happened, innermost last, and what kind of error it was; its words only if they are the system's."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    words = f": {error}" if isinstance(error, _SYSTEMS_WORDS) else ""
    return [*frames, f"{type(error).__name__}{words}"]
