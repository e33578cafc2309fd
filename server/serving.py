"""serve(): the port, the server around the app, and what a person at the terminal is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from server import logs
from server.access import open_access
from server.announce import announce
from server.app import create_app, routes
from server.connections import Connection, allow_files
from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.errors import SparrowError, UsageError
from server.guard import Guard
from server.loading import Loading
from server.logs import say
from server.observe import Meter, Observe
from server.settings import Settings
from server.stopping import CLOSE_S, Server
from server.store import Store
from server.unread import HearOut


def bind(settings: Settings) -> socket.socket:
    """The server's address, before minutes are spent on a model; it listens later. Raises UsageError."""
    try:
        with socket.create_server((settings.host, settings.port), family=_family(settings)):
            pass  # two sockets may be bound to one port as long as none listens, so this asks whether one can
        bound = socket.socket(_family(settings))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    except OSError as error:
        raise UsageError(_why_not(error, settings)) from None
    return bound


def _family(settings: Settings) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in settings.host else socket.AF_INET


def _why_not(error: OSError, settings: Settings) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {settings.port} is taken by another program: stop that one, or give --port {settings.port + 1}."
    if error.errno == errno.EACCES:
        return f"Port {settings.port} needs the administrator's rights: give a port of 1024 or more, like --port 8000."
    reason = str(error.strerror or error).partition(" (while")[0]
    return f"--host {settings.host} --port {settings.port}: can't listen there ({reason})."


def check_certificate(settings: Settings) -> None:
    """uvicorn would end in a traceback. Raises UsageError, in one line."""
    if settings.ssl_certfile is None or settings.ssl_keyfile is None:
        return
    for flag, path in (("--ssl-certfile", settings.ssl_certfile), ("--ssl-keyfile", settings.ssl_keyfile)):
        try:
            path.read_bytes()
        except OSError as error:
            raise UsageError(f"{flag} {path} can't be read: {error.strerror}.") from None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(_why_no_certificate(settings, error)) from None


def _no_password() -> str:
    raise ValueError("encrypted")


def _why_no_certificate(settings: Settings, error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if isinstance(error, ValueError) and str(error) == "encrypted":
        return f"--ssl-keyfile {settings.ssl_keyfile} has a password: decrypt it, with openssl pkey for example."
    if reason == "KEY_VALUES_MISMATCH":
        return f"--ssl-keyfile {settings.ssl_keyfile} is not the key of --ssl-certfile {settings.ssl_certfile}."
    return (
        f"--ssl-certfile {settings.ssl_certfile} and --ssl-keyfile {settings.ssl_keyfile} are no certificate and its "
        f"key, both as PEM text ({reason or error})."
    )


async def _try_store(settings: Settings) -> None:
    """A folder that can't be written is told now, in one line; inside uvicorn it would be a page of traceback."""
    await (await Store.open(settings.data_dir / "sparrow.db")).close()


def _keep_private(folder: Path) -> None:
    """What an earlier version, or a copy, left readable for others is its owner's alone again."""
    with contextlib.suppress(OSError):  # the database says it better if it can't be used
        if (folder / "sparrow.db").exists():
            folder.chmod(0o700)
        for path in [*folder.glob("sparrow.db*"), *folder.glob("*.json"), *folder.glob("kv/*")]:
            path.chmod(0o600)


def _show_progress(done: float) -> None:
    """From an SD card the weights take half a minute; a person wants to see that they come."""
    if sys.stdout.isatty() and not logs.is_json():
        print(f"{done:4.0%}\b\b\b\b", end="", flush=True)


def _load(settings: Settings, path: Path, is_demo: bool, on_progress: Callable[[float], bool]) -> Engine:
    def progress(done: float) -> bool:
        _show_progress(done)
        return on_progress(done)

    began = time.monotonic()
    say(f"Loading {path.name} … ", end="")
    engine = open_engine(
        path,
        n_ctx=settings.ctx,
        n_slots=settings.slots,
        n_threads=settings.threads,
        step_s=settings.step_ms / 1000,
        n_queue=settings.queue,
        answer_s=settings.answer_s,
        tuned=settings.data_dir / "tuning.json",
        is_demo=is_demo,
        snapshots=settings.data_dir / "kv",
        snapshot_bytes=settings.snapshot_mb * 10**6,
        idle_s=settings.idle_unload * 60,
        on_progress=progress,
    )
    seconds, quant = time.monotonic() - began, engine.model.quant
    conversations = "one conversation" if settings.slots == 1 else f"{settings.slots} conversations"
    say(f"{seconds:.1f} s: {quant}, {conversations} of {settings.ctx} tokens.", load_s=round(seconds, 3), quant=quant)
    return engine


def serve(settings: Settings, bound: socket.socket, model_path: Path, *, is_demo: bool) -> int:
    """Listen, load the model, serve until Ctrl-C, and return the exit code. Raises UsageError and ModelFileError."""
    with bound:
        settings = settings.with_port(bound.getsockname()[1])
        check_certificate(settings)
        access = open_access(settings, bound.getsockname()[0])
        _keep_private(settings.data_dir)
        asyncio.run(_try_store(settings))
        meter = Meter()
        loading = Loading(
            partial(_load, settings, model_path, is_demo),
            partial(create_app, settings, meter=meter),
            partial(announce, settings, access),
        )
        Connection.n_most = allow_files()
        config = uvicorn.Config(
            HearOut(Observe(Guard(loading, access), meter, routes())),
            http=Connection,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=CLOSE_S,
            server_header=False,
        )
        server = Server(config, loading, meter, settings.grace_s)
        loading.on_end = partial(setattr, server, "should_exit", True)
        server.run([bound])
        if loading.error is not None:
            say("")  # behind "Loading …"
            return _failed(loading.error)
        say("\nStopped.")
    return 0 if server.started else 1


def _failed(error: Exception) -> int:
    """The exit code after a mistake of our own, which is told in one line. Raises what is a person's to mend."""
    if isinstance(error, SparrowError):
        raise error
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    print(
        f"Sparrow can't go on, by a mistake in itself: {type(error).__name__} ({said}) in {place.name}, "
        f"{place.filename}:{place.lineno}. Please report it.",
        file=sys.stderr,
    )
    return 1
