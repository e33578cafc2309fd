"""serve(): the port, the server around the app, and what a person at the terminal is told."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from server.app import create_app
from server.engine.engine import Engine
from server.engine.loader import open_engine
from server.errors import UsageError
from server.loading import Loading
from server.settings import Settings
from server.store import Store

SHUTDOWN_S = 2
"""Seconds that open responses have to end; uvicorn's default is to wait for ever."""


class _Server(uvicorn.Server):
    """Ends the streams before uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, loading: Loading) -> None:
        super().__init__(config)
        self._loading = loading

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self._loading.app
        if app is not None:
            app.state.streams.close()
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C: uvicorn leaves at once, but what was written has to be saved
            await self.lifespan.shutdown()


def _announce(settings: Settings) -> None:
    print(f"\nSparrow is ready:  {settings.url}\nCtrl-C stops it.", flush=True)
    # Without a screen a terminal browser would take the terminal over.
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if settings.browser and has_screen:
        threading.Thread(target=webbrowser.open, args=(settings.url,), daemon=True).start()


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


async def _try_store(settings: Settings) -> None:
    """A folder that can't be written is told now, in one line; inside uvicorn it would be a page of traceback."""
    await (await Store.open(settings.data_dir / "sparrow.db")).close()


def _show_progress(done: float) -> bool:
    """From an SD card the weights take half a minute; a person wants to see that they come."""
    if sys.stdout.isatty():
        print(f"{done:4.0%}\b\b\b\b", end="", flush=True)
    return True


def _load(settings: Settings, path: Path, is_demo: bool, on_progress: Callable[[float], bool]) -> Engine:
    began = time.monotonic()
    print(f"Loading {path.name} … ", end="", flush=True)
    engine = open_engine(
        path,
        n_ctx=settings.ctx,
        n_slots=settings.slots,
        n_threads=settings.threads,
        step_s=settings.step_ms / 1000,
        tuned=settings.data_dir / "tuning.json",
        is_demo=is_demo,
        snapshots=settings.data_dir / "kv",
        snapshot_bytes=settings.snapshot_mb * 10**6,
        on_progress=lambda done: _show_progress(done) and on_progress(done),
    )
    seconds, quant = time.monotonic() - began, engine.model.quant
    print(f"{seconds:.1f} s: {quant}, {settings.slots} conversations of {settings.ctx} tokens.", flush=True)
    return engine


def serve(settings: Settings, bound: socket.socket, model_path: Path, *, is_demo: bool) -> int:
    """Listen, load the model, serve until Ctrl-C, and return the exit code. Raises UsageError and ModelFileError."""
    with bound:
        settings = settings.with_port(bound.getsockname()[1])
        asyncio.run(_try_store(settings))
        loading = Loading(
            partial(_load, settings, model_path, is_demo), partial(create_app, settings), lambda: _announce(settings)
        )
        config = uvicorn.Config(
            loading, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_S, server_header=False
        )
        server = _Server(config, loading)
        loading.on_end = partial(setattr, server, "should_exit", True)
        try:
            server.run([bound])
        except KeyboardInterrupt:  # uvicorn raises it again once everything has ended
            print("\nStopped.")
        if loading.error is not None:
            print(flush=True)  # behind "Loading …"
            raise loading.error
    return 0 if server.started else 1
