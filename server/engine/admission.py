"""Who may come in: a bounded queue of which nobody may have it all. For any thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from server.errors import InvalidField, QueueFull, ShuttingDown

MAX_QUEUE = 32
"""Requests that may wait for a slot, if no other number is asked for."""

MOST_S = 60
"""The longest that anybody is told to stay away."""


class Admission:
    """Counts the requests that were accepted and have not ended, by client."""

    def __init__(self, n_slots: int, n_queue: int = MAX_QUEUE) -> None:
        """n_queue: requests that may wait beside the n_slots that run."""
        self.n_slots, self._n_queue = n_slots, n_queue
        self._lock = threading.Lock()
        self._open = Counter[str]()
        self._is_refusing = False
        self._mean_s = 5.0

    def enter(self, client: str, n: int = 1, then: Callable[[], None] = lambda: None) -> None:
        """n requests of a client come in together. Raises ShuttingDown, or QueueFull when there is no room for all, or
        InvalidField when there never will be.

        then: called before refuse() can return: what has come in is on its way before the end begins.

        A client that has a name may have half the queue while others are there, and three quarters of it while it is
        alone, so that whoever comes next finds room.
        """
        with self._lock:
            if self._is_refusing:
                raise ShuttingDown("The server is shutting down: send the message again when it is back.")
            n_open = self._open.total()
            others = n_open - self._open[client]
            alone = self.n_slots + self._n_queue - (self._n_queue // 4 if client else 0)
            most = self.n_slots + self._n_queue - self._n_queue // 2 if client and others else alone
            if n > alone:
                raise InvalidField("n", f"{n} answers at once never find room here; ask for at most {alone}.")
            is_full = n_open + n > self.n_slots + self._n_queue
            if is_full or self._open[client] + n > most:
                n_waiting = max(0, (n_open if is_full else self._open[client]) - self.n_slots)
                raise QueueFull(n_waiting, self._retry_after(n), is_own=not is_full)
            self._open[client] += n
            then()

    def leave(self, client: str, seconds: float | None) -> None:
        """One has ended. seconds: how long it had a slot; None: it says nothing of how long others will."""
        with self._lock:
            self._open[client] -= 1
            self._open += Counter()  # forgets clients that have none
            if seconds is not None:
                self._mean_s += 0.2 * (seconds - self._mean_s)

    def refuse(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._is_refusing = True

    @property
    def slot_s(self) -> float:
        """Seconds until one of the slots is free, on average."""
        return self._mean_s / self.n_slots

    def _retry_after(self, n: int) -> int:
        return max(1, min(MOST_S, round(n * self.slot_s)))
