"""How far a request is from its first token: its place, and how long that will take. Pure."""

from __future__ import annotations

from server.engine.pace import Pace
from server.engine.scheduler import Scheduler
from server.engine.sequence import Progress, Sequence


class Forecast:
    """For any thread."""

    def __init__(self, scheduler: Scheduler, n_slots: int, pace: Pace) -> None:
        self._scheduler, self._n_slots, self._pace = scheduler, n_slots, pace
        self.coming: dict[int, Sequence] = {}
        """Accepted, and not in the scheduler yet, by a number of their own."""

    def progress(self, sequence: Sequence, slot_s: float) -> Progress:
        """slot_s: seconds until a slot becomes free, on average. Looks at each thing once: a step may be going on."""
        place = self._place(sequence)
        n_done = min(sequence.n_past, sequence.n_prompt)
        left_s = None if sequence.n_completion else self._reading_s(sequence)
        if left_s is not None and place:
            left_s += place * slot_s
        return Progress(place, n_done, sequence.n_prompt, None if left_s is None else round(left_s, 1))

    def _place(self, sequence: Sequence) -> int:
        coming = [one for one in list(self.coming.values()) if not one.is_draft]
        if sequence not in coming:
            return self._scheduler.place(sequence)
        n_running = sum(not one.is_draft for one in list(self._scheduler.running))  # drafts give way
        n_waiting = len(self._scheduler.waiting)
        return max(0, n_running + n_waiting + coming.index(sequence) + 1 - self._n_slots)

    def _reading_s(self, sequence: Sequence) -> float | None:
        """Prompts that came earlier are read before or beside it; answers that are written take turns with them."""
        running = list(self._scheduler.running)
        earlier = [one for one in running if one.arrival < sequence.arrival and not one.n_completion]
        n_unread = sum(max(0, one.n_prompt - one.n_past) for one in [*earlier, sequence])
        return self._pace.reading_s(n_unread, any(one.n_completion for one in running))
