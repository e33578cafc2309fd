"""The one thread that owns llama.cpp: drain the inbox, make a step, sleep only when idle.

Everybody else calls submit() and Handle.cancel(), which put a command into the inbox and return at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import zip_longest

from server.engine.admission import MAX_QUEUE, Admission
from server.engine.desk import Desk
from server.engine.info import ModelInfo
from server.engine.llama import Context, DecodeStatus, Model
from server.engine.overview import overview
from server.engine.pace import Pace
from server.engine.request import Request
from server.engine.rest import Rest
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch, Scheduler
from server.engine.sequence import Embedding, Event, Finished, FinishReason, Progress
from server.engine.sequence import Sequence as TokenSequence
from server.engine.snapshots import Snapshots
from server.engine.stats import Counters, Stats
from server.errors import EngineFailed, ShuttingDown, SparrowError

log = logging.getLogger("sparrow.engine")

YIELD_S = 1e-6
"""Really 60 µs, in which the event loop gets the GIL and sends: later it would take a core from the next step."""


class Engine(Desk):
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
        rest: Rest | None = None,
        n_queue: int = MAX_QUEUE,
        answer_s: float = 0.0,
    ) -> None:
        """Owns model and context from now on: close() frees them. step_s: see Pace. rest: None never unloads.

        n_queue: requests that may wait for a slot. answer_s: seconds that one may have a slot; 0: any.
        """
        self.model = info
        self.chat_template = model.chat_template
        self.sampling_defaults = defaults or SamplingParams()
        self._model = model
        self.scheduler = Scheduler(n_slots, info.n_ctx, context, snapshots, 1 + context.n_guesses, context.needs_states)
        self._pace = Pace(step_s, context.n_batch)
        admission = Admission(n_slots, n_queue)
        super().__init__(model.vocab, info.n_ctx, admission, self.scheduler, self._pace, snapshots, answer_s)
        self.rest = rest or Rest(model, context, snapshots)
        self._context = context
        self._counters = Counters()
        self._requests: dict[int, Request] = {}
        self._by_sequence: dict[int, Request] = {}
        self._closing = self._may_interrupt = self._reads_drafts = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._snapshots.start()
        self._thread.start()

    def stats(self) -> Stats:
        """For any thread; it takes no lock that a step could hold."""
        return overview(self._counters, self.scheduler, self._snapshots, self.model.n_ctx)

    def _progress(self, sequence: TokenSequence) -> Progress:
        return self.rest.progress(super()._progress(sequence))

    def close(self) -> None:
        """End every answer with ShuttingDown, stop the thread, free llama.cpp's memory."""
        self._admission.refuse()
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
                self.rest.sleep(self.scheduler, self._inbox)
            self._drain()
            if self._requests and self.rest.state == "asleep":
                self._wake()
            elif self.scheduler.has_work:
                self._guarded_step()
        self._drain()
        for request in list(self._requests.values()):
            self._finish(request, "error", ShuttingDown("The server was stopped in the middle of this answer."))
        self._snapshots.close(self.scheduler.slots)

    def _wake(self) -> None:
        """Load the model for those who came while it was away; who comes or goes meanwhile is heard."""
        error = self.rest.wake(self._drain)
        for request in list(self._requests.values()) if error and not self._closing else ():
            self._finish(request, "error", error)

    def _drain(self) -> bool:
        """Run the commands that are there. False: the end has come."""
        self._context.resume()
        self._inbox.run_all()
        return not self._closing

    def _guarded_step(self) -> None:
        """A mistake of ours in one step must not end the thread that everybody waits for."""
        try:
            self.step()
        except Exception as error:
            log.exception("a step failed; its answers end with an error")
            ours = EngineFailed("Something went wrong inside the server: try again.")
            running = list(self.scheduler.running)
            for sequence in running or [request.sequence for request in self._requests.values()]:
                self._fail(sequence, error if isinstance(error, SparrowError) else ours)

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
        self._finish_read(batch)
        self._end_late()
        time.sleep(YIELD_S)

    def _compute(self, batch: Batch) -> DecodeStatus:
        n_prefill, began = batch.n_prefill, time.monotonic()
        self._may_interrupt = not self.scheduler.n_decoding
        self._reads_drafts = all(span.sequence.is_draft for span in batch.spans)
        status = self._context.decode(batch)
        self._may_interrupt = self._reads_drafts = False
        if status is DecodeStatus.OK:
            seconds = time.monotonic() - began
            self._pace.observe(n_prefill, seconds)
            self._counters.step(seconds)
            self._pool(batch)
        return status

    def _pool(self, batch: Batch) -> None:
        row = 0
        for span in batch.spans:
            if span.sequence.is_embedding:
                states = self._context.states(row, span.n_tokens)
                self._by_sequence[id(span.sequence)].pool(states, span.sequence.n_past)
            row += span.n_tokens

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
        for row, guess in zip_longest(rows, sequence.guesses):
            token = request.choose(self._context.logits(row), self.vocab, self._context.best)
            if token is None:
                break
            chosen.append(token)
            is_last = request.show(token, self.vocab) or len(sequence.tokens) + len(chosen) >= sequence.n_max
            if token != guess or is_last:
                break
        request.learn(chosen)
        return chosen

    def _deliver(self, request: Request) -> None:
        """Hand out the new text, and end the answer where it ends."""
        reason = request.reason
        if reason:
            request.flush()
        self._emit_text(request, is_last=reason is not None)
        if reason:
            self._finish(request, reason, request.error)

    def _finish_read(self, batch: Batch) -> None:
        for span in batch.spans:
            request = self._by_sequence.get(id(span.sequence))
            if request is None or span.sequence.n_pending:
                continue
            if span.sequence.is_embedding:
                self._emit(request, request.embedding())
            if span.sequence.is_draft or span.sequence.is_embedding:
                self._finish(request, "stop" if span.sequence.is_embedding else "length")

    def _emit_text(self, request: Request, *, is_last: bool) -> None:
        delta = request.take(is_last=is_last)
        if delta is not None:
            self._emit(request, delta)

    def _emit(self, request: Request, event: Event | Embedding) -> None:
        try:
            request.sink(event)
        except Exception:
            log.exception("the receiver of answer %d failed", request.id)

    def _add(self, request: Request) -> None:
        self._requests[request.id] = self._by_sequence[id(request.sequence)] = request
        fetched = partial(self._command, lambda: self._enqueue(request))
        if request.sequence.is_embedding:  # all of it has to be read
            return fetched()
        try:
            self._snapshots.fetch(request.sequence.tokens, self.scheduler.slots, fetched)
        except Exception:  # whoever asked would wait for ever; without what the disk holds it is only slower
            log.exception("what is kept on disk could not be looked through")
            fetched()

    def _enqueue(self, request: Request) -> None:
        if request.id in self._requests:  # not cancelled while the disk was read
            if id(request.sequence.after) not in self._by_sequence:
                request.sequence.after = None
            self.scheduler.add(request.sequence)
            self._forecast.coming.pop(request.id, None)

    def _cancel_soon(self, request_id: int) -> None:
        self._command(lambda: self._cancel(request_id))
        self._interrupt()

    def _cancel(self, request_id: int) -> None:
        if request := self._requests.get(request_id):
            self._break_off(request, "cancelled")

    def _break_off(self, request: Request, reason: FinishReason) -> None:
        """It ends here, whatever it was about to say."""
        request.flush()
        self._emit_text(request, is_last=True)
        self._finish(request, reason)

    def _end_late(self) -> None:
        for sequence in self.scheduler.lapsed:
            self._finish(self._by_sequence[id(sequence)], "cancelled")
        for sequence in [*self.scheduler.running, *self.scheduler.drafts]:
            if self._by_sequence[id(sequence)].is_late:
                self._break_off(self._by_sequence[id(sequence)], "time")

    def _finish(self, request: Request, reason: FinishReason, error: SparrowError | None = None) -> None:
        """The only place where an answer ends: slot, bookkeeping, sampler, terminal event."""
        self.scheduler.remove(request.sequence)
        del self._requests[request.id], self._by_sequence[id(request.sequence)]
        self._forecast.coming.pop(request.id, None)
        request.close()
        usage = request.usage()
        if not request.sequence.is_closing:
            self._counters.finish(reason, usage, is_draft=request.sequence.is_draft)
        is_typical = reason in ("stop", "length") and usage.n_completion > 0
        self._admission.leave(request.sequence.client, usage.prompt_s + usage.decode_s if is_typical else None)
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
