"""What other threads want of the engine's: commands that it runs when it comes to them."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("sparrow.engine")

GATHER_S = 0.003
"""An idle engine begins when nothing more has come for so long, and nobody is on the way whose prompt is being made:
people who come together are read together, and their streams stay in step. When the first of 8 began alone, the others'
prompts were read beside its stream: 1.2 s of 10 were lost."""

GATHER_MOST_S = 0.1


class Inbox:
    """put() is for any thread, expecting() for the event loop's, all else for the engine's."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._n_expected = 0

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Inside, a request is made ready that has arrived; at the end it has been put, or will never be."""
        self._n_expected += 1
        try:
            yield
        finally:
            self._n_expected -= 1

    def put(self, command: Callable[[], None]) -> None:
        self._commands.put(command)

    def run_all(self) -> None:
        """Those that are there now."""
        while not self._commands.empty():
            _run(self._commands.get())

    def run_next(self, timeout_s: float | None) -> bool:
        """Wait for one and run it. False: none came in time."""
        try:
            command = self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return False
        _run(command)
        return True

    def gather(self) -> None:
        """One has come after a silence: whoever comes a moment later is taken along."""
        end = time.monotonic() + GATHER_MOST_S
        while time.monotonic() < end and (self.run_next(GATHER_S) or self._n_expected):
            pass


def _run(command: Callable[[], None]) -> None:
    """A mistake of ours in one command must not end the thread that everybody waits for."""
    try:
        command()
    except Exception:
        log.exception("what was asked of the engine failed")
