"""The one thread that owns llama.cpp: drain the inbox, make a step, sleep only when idle.

Everybody else calls submit() and Handle.cancel(), which put a command into the inbox and return at once.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from server.engine.llama import Context, DecodeStatus, Model
from server.engine.pace import Pace
from server.engine.request import Handle, Request, Sink
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch, Scheduler
from server.engine.sequence import Event, Finished, FinishReason
from server.engine.sequence import Sequence as TokenSequence
from server.engine.snapshots import Snapshots
from server.errors import ContextOverflow, EngineFailed, QueueFull, ShuttingDown, SparrowError

log = logging.getLogger("sparrow.engine")

YIELD_S = 1e-6
"""Really 60 µs, in which the event loop gets the GIL and sends: later it would take a core from the next step."""

MAX_WAITING = 32
"""Requests that may wait for a slot; one more is told to come back later."""


@dataclass(frozen=True)
class ModelInfo:
    """What is being served. n_ctx: tokens that one conversation may hold."""

    name: str
    quant: str
    n_ctx: int
    is_demo: bool = False


class Engine:
    """Answers prompts, several in one batch. Lives from start() to close()."""

    def __init__(
        self,
        model: Model,
        context: Context,
        info: ModelInfo,
        n_slots: int,
        snapshots: Snapshots,
        defaults: SamplingParams | None = None,
        step_s: float = 0.15,
    ) -> None:
        """Owns model and context from now on: close() frees them. step_s: see Pace."""
        self.model = info
        self.vocab = model.vocab
        self.chat_template = model.chat_template
        self.sampling_defaults = defaults or SamplingParams()
        self._model = model
        self.scheduler = Scheduler(n_slots, info.n_ctx, context, snapshots)
        self._snapshots = snapshots
        self._context = context
        self._pace = Pace(step_s, context.n_batch)
        self._requests: dict[int, Request] = {}
        self._by_sequence: dict[int, Request] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_open = 0
        self._n_slots = n_slots
        self._mean_s = 5.0
        self._closing = self._may_interrupt = self._reads_drafts = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._snapshots.start()
        self._thread.start()

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, sink: Sink, *, resume: Sequence[int] = ()
    ) -> Handle:
        """Answer the prompt `tokens`. sink gets TextDelta events, then exactly one Finished.

        resume: the tokens of an answer to this prompt that was cut off; it goes on behind them without a seam.
        Raises ContextOverflow, QueueFull or ShuttingDown, and then sink is never called.
        """
        n_ctx = self.model.n_ctx
        tokens = [*tokens, *resume]
        if len(tokens) >= n_ctx:
            raise ContextOverflow(len(tokens), n_ctx)
        n_most = n_ctx if params.max_tokens is None else params.max_tokens
        sequence = TokenSequence(tokens, min(n_ctx, len(tokens) + max(1, n_most)), is_draft=n_most == 0)
        request = Request(sequence, params, sink, shown=b"".join(map(self.vocab.piece, resume)))
        with self._lock:
            if self._closing:
                raise ShuttingDown("The server is shutting down: send the message again when it is back.")
            if self._n_open >= self._n_slots + MAX_WAITING:
                raise QueueFull(MAX_WAITING, self._retry_after())
            self._n_open += 1
        self._command(lambda: self._add(request))
        return Handle(request.id, partial(self._cancel_soon, request.id), partial(self.scheduler.progress, sequence))

    def _retry_after(self) -> int:
        """Seconds until a place is probably free, from the mean length of the last answers."""
        return max(1, min(60, round(self._mean_s / self._n_slots)))

    def close(self) -> None:
        """End every answer with ShuttingDown, stop the thread, free llama.cpp's memory."""
        with self._lock:
            self._closing = True
        self._command(lambda: None)
        self._interrupt()
        if self._thread.is_alive():
            self._thread.join()
        self._context.close()
        self._model.close()

    def _command(self, command: Callable[[], None]) -> None:
        self._inbox.put(command)
        if self._reads_drafts:
            self._context.interrupt()

    def _interrupt(self) -> None:
        """Have the inbox read now and not after the step, unless that would hold up somebody who reads along."""
        if self._may_interrupt:
            self._context.interrupt()

    def _run(self) -> None:
        while not self._closing:
            if not self.scheduler.has_work:
                self._sleep()
            self._drain()
            if self.scheduler.has_work:
                self._guarded_step()
        self._drain()
        for request in list(self._requests.values()):
            self._finish(request, "error", ShuttingDown("The server was stopped in the middle of this answer."))
        self._snapshots.close(self.scheduler.slots)

    def _sleep(self) -> None:
        """Idle: see that the books are right, save what should outlive us, and wait for a command."""
        try:
            self.scheduler.check_integrity()
        except AssertionError:
            log.exception("the slots' books are wrong; all prefixes are forgotten")
            self.scheduler.slots.reset()
        for wait_s in self._snapshots.idle(self.scheduler.slots):
            with contextlib.suppress(queue.Empty):
                return self._inbox.get(timeout=wait_s)()

    def _drain(self) -> None:
        """Run the commands that are there."""
        self._context.resume()
        while not self._inbox.empty():
            self._inbox.get()()

    def _guarded_step(self) -> None:
        """A mistake of ours in one step must not end the thread that everybody waits for."""
        try:
            self.step()
        except Exception:
            log.exception("a step failed; its answers end with an error")
            for sequence in list(self.scheduler.running):
                self._fail(sequence, EngineFailed("Something went wrong inside the server: try again."))

    def step(self) -> None:
        """One batch: schedule, compute, choose tokens, hand out text."""
        self._guess()
        batch = self.scheduler.schedule(self._pace.n_prefill(self.scheduler.n_decoding > 0))
        self._mark_started(batch)
        status = self._compute(batch)
        if status is not DecodeStatus.OK:
            return self._recover(status, batch)
        sampled = {sequence: self._choose(sequence, rows) for rows, sequence in batch.sampled_rows()}
        self.scheduler.commit(batch, sampled)
        for sequence in sampled:
            self._deliver(self._by_sequence[id(sequence)])
        self._finish_drafts(batch)
        time.sleep(YIELD_S)

    def _compute(self, batch: Batch) -> DecodeStatus:
        n_prefill, began = batch.n_prefill, time.monotonic()
        self._may_interrupt = not self.scheduler.n_decoding
        self._reads_drafts = all(span.sequence.is_draft for span in batch.spans)
        status = self._context.decode(batch)
        self._may_interrupt = self._reads_drafts = False
        if status is DecodeStatus.OK:
            self._pace.observe(n_prefill, time.monotonic() - began)
        return status

    def _mark_started(self, batch: Batch) -> None:
        for span in batch.spans:
            self._by_sequence[id(span.sequence)].start()

    def _guess(self) -> None:
        """For one or two who read along; beside more of them a row for a guess costs what it can gain."""
        decoding = [sequence for sequence in self.scheduler.running if sequence.is_decoding]
        if not self._context.n_guesses or len(decoding) > 2:
            return
        for sequence in decoding:
            room = min(self._context.n_guesses // len(decoding), sequence.n_max - len(sequence.tokens) - 1)
            sequence.guesses = self._by_sequence[id(sequence)].guesses(room)

    def _choose(self, sequence: TokenSequence, rows: range) -> list[int]:
        """The sequence's next tokens: the guesses that are what would be chosen anyway, and the one after them."""
        request, chosen = self._by_sequence[id(sequence)], list[int]()
        chain = request.sampler(self.vocab)
        for row, guess in zip_longest(rows, sequence.guesses):
            token = chain.sample(self._context.logits(row))
            chosen.append(token)
            is_last = request.show(token, self.vocab) or len(sequence.tokens) + len(chosen) >= sequence.n_max
            if token != guess or is_last:
                break
        request.learn(chosen)
        return chosen

    def _deliver(self, request: Request) -> None:
        """Hand out the new text, and end the answer where it ends."""
        reason: FinishReason | None = "stop" if request.has_stopped else "length" if request.sequence.is_full else None
        if reason:
            request.flush()
        self._emit_text(request, is_last=reason is not None)
        if reason:
            self._finish(request, reason)

    def _finish_drafts(self, batch: Batch) -> None:
        for span in batch.spans:
            if span.sequence.is_draft and not span.sequence.n_pending:
                self._finish(self._by_sequence[id(span.sequence)], "length")

    def _emit_text(self, request: Request, *, is_last: bool) -> None:
        delta = request.take(is_last=is_last)
        if delta is not None:
            self._emit(request, delta)

    def _emit(self, request: Request, event: Event) -> None:
        try:
            request.sink(event)
        except Exception:
            log.exception("the receiver of answer %d failed", request.id)

    def _add(self, request: Request) -> None:
        self._requests[request.id] = self._by_sequence[id(request.sequence)] = request
        fetched = partial(self._command, lambda: self._enqueue(request))
        self._snapshots.fetch(request.sequence.tokens, self.scheduler.slots, fetched)

    def _enqueue(self, request: Request) -> None:
        if request.id in self._requests:  # not cancelled while the disk was read
            self.scheduler.add(request.sequence)

    def _cancel_soon(self, request_id: int) -> None:
        self._command(lambda: self._cancel(request_id))
        self._interrupt()

    def _cancel(self, request_id: int) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            request.flush()
            self._emit_text(request, is_last=True)
            self._finish(request, "cancelled")

    def _finish(self, request: Request, reason: FinishReason, error: SparrowError | None = None) -> None:
        """The only place where an answer ends: slot, bookkeeping, sampler, terminal event."""
        self.scheduler.remove(request.sequence)
        del self._requests[request.id], self._by_sequence[id(request.sequence)]
        request.close()
        with self._lock:
            self._n_open -= 1
        usage = request.usage()
        if reason in ("stop", "length") and not request.sequence.is_draft:
            self._mean_s += 0.2 * (usage.prompt_s + usage.decode_s - self._mean_s)
        self._emit(request, Finished(reason, usage, error))

    def _recover(self, status: DecodeStatus, batch: Batch) -> None:
        """The batch was not computed: make room and try again, take it back, or end those who were in it."""
        if status is DecodeStatus.INTERRUPTED:
            self.scheduler.undo(batch)
        elif status is DecodeStatus.FAILED:
            for span in batch.spans:
                self._fail(span.sequence, EngineFailed("llama.cpp could not compute this answer: try again."))
        elif not self.scheduler.make_room():
            self._fail(batch.spans[0].sequence, EngineFailed("The conversation does not fit into memory any more."))

    def _fail(self, sequence: TokenSequence, error: SparrowError) -> None:
        self.scheduler.fail(sequence)
        self._finish(self._by_sequence[id(sequence)], "error", error)
