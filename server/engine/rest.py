"""A model that nobody has asked for a while gives its memory back, and comes again with the next request.

    awake ──idle for after_s──> conversations to disk, KV cache and weights freed: asleep
    asleep ──a request, or what somebody types──> waking: loaded again, conversations restored as they are claimed

The vocabulary stays, so prompts are made and counted meanwhile. What is no method that loads, frees or waits is for any
thread; the rest is the engine's.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from server.engine.inbox import Inbox
from server.engine.llama import Context, Model
from server.engine.prefix import SlotTable
from server.engine.scheduler import Scheduler
from server.engine.sequence import Progress
from server.engine.snapshots import Snapshots
from server.errors import ModelAway, SparrowError
from server.logs import fields, say

log = logging.getLogger("sparrow.engine")

State = Literal["awake", "asleep", "waking"]


class Rest:
    """Unloads and reloads one model with its context."""

    def __init__(
        self,
        model: Model,
        context: Context,
        snapshots: Snapshots,
        after_s: float = 0.0,
        load_s: float = 0.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """after_s: idle seconds, 0 for never. load_s: how long loading took. check: raises what forbids to load now."""
        self.state: State = "awake"
        self.n_loads = 1
        self._model, self._context, self._snapshots = model, context, snapshots
        self._after_s, self._load_s, self._check = after_s, load_s, check
        self._began, self._done = 0.0, 0.0

    def progress(self, progress: Progress) -> Progress:
        """Of a request, with what is left of the loading."""
        left_s = self.left_s
        return replace(progress, loading_s=left_s) if left_s else progress

    @property
    def left_s(self) -> float:
        """Seconds until the model is there, as far as one can tell; 0: it is."""
        if self.state == "awake":
            return 0.0
        if self.state == "asleep":
            return max(self._load_s, 0.1)
        took_s = time.monotonic() - self._began
        by_share = took_s / self._done * (1 - self._done) if self._done > 0.1 else 0.0
        return max(by_share, self._load_s - took_s, 0.1)

    def sleep(self, scheduler: Scheduler, inbox: Inbox) -> None:
        """Idle: see that the books are right, save what should outlive us, and run the next command."""
        try:
            scheduler.check_integrity()
        except AssertionError:
            log.exception("the slots' books are wrong; all prefixes are forgotten")
            scheduler.slots.reset()
        for wait_s in self._idle(scheduler.slots):
            if inbox.run_next(wait_s):
                return inbox.gather()

    def _idle(self, slots: SlotTable) -> Iterator[float | None]:
        """What an idle engine does: seconds to wait before the next piece of it; None: nothing is left."""
        until = time.monotonic() + self._after_s
        for wait_s in self._snapshots.idle(slots) if self.state == "awake" else ():
            left_s = max(0.0, until - time.monotonic())
            if self._after_s and (wait_s is None or wait_s >= left_s):
                yield left_s
                yield from self._snapshots.save_all(slots)
                self._unload(slots)
                break
            yield wait_s
        yield None

    def _unload(self, slots: SlotTable) -> None:
        before = resident_bytes()
        slots.reset()
        try:
            self._model.unload(self._context.close)
        except SparrowError as error:
            log.warning("the model stays in memory: %s", error.message)
            self._after_s = 0.0
            return
        _trim()
        self.state = "asleep"
        after = resident_bytes()
        say(
            f"Nobody asked for {_minutes(self._after_s)}: the model's memory is free again "
            f"({before / 1e6:,.0f} MB, now {after / 1e6:,.0f} MB). The next message loads it.",
            resident_before=before,
            resident_after=after,
        )

    def wake(self, go_on: Callable[[], bool]) -> ModelAway | None:
        """Load what was freed; go_on is asked again and again, False stops it. Returns why it is not there."""
        self._began, self._done, self.state = time.monotonic(), 0.0, "waking"
        try:
            self._check()
            self._model.reload(lambda done: self._share(done) and go_on())
            self._open_context()
        except SparrowError as error:
            return self._stay_asleep(error.message.rstrip("."))
        except Exception:  # a mistake of ours must not end the thread that everybody waits for
            log.exception("the model could not be loaded again")
            return self._stay_asleep("by a mistake in the server; its log says where")
        self._load_s = time.monotonic() - self._began
        self.n_loads += 1
        self.state = "awake"
        log.info("the model is loaded again", extra=fields(load_s=round(self._load_s, 3)))
        return None

    def _stay_asleep(self, why: str) -> ModelAway:
        self.state = "asleep"
        return ModelAway(f"The model can't be loaded again ({why}): mend that, then send it once more.")

    def _open_context(self) -> None:
        try:
            self._context.open()
        except SparrowError:
            with contextlib.suppress(SparrowError):
                self._model.unload(self._context.close)
            raise

    def _share(self, done: float) -> bool:
        self._done = done
        return True


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _trim() -> None:
    """glibc keeps what was freed for the next malloc, unless it is told not to; other libraries have no such call."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Of this process; 0 where the system won't say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE
