"""How things stand in the engine, read by another thread while it works: each number is right, no two are of one
moment."""

from __future__ import annotations

from server.engine.scheduler import Scheduler
from server.engine.snapshots import Snapshots
from server.engine.stats import Counters, Stats


def overview(counters: Counters, scheduler: Scheduler, snapshots: Snapshots, n_ctx: int) -> Stats:
    """Some microseconds; nothing is locked that a step needs."""
    n_snapshots, n_bytes = snapshots.size
    return Stats(
        n_finished=dict(counters.n_finished),
        n_prompt=counters.n_prompt,
        n_completion=counters.n_completion,
        n_reused=counters.n_reused,
        n_waiting=len(scheduler.waiting),
        n_running=sum(not sequence.is_draft for sequence in list(scheduler.running)),
        steps=counters.steps(),
        slots=scheduler.slots.infos(),
        n_snapshots=n_snapshots,
        snapshot_bytes=n_bytes,
        snapshot_quota=snapshots.quota,
        n_ctx=n_ctx,
    )
