"""The one thread that owns llama.cpp: drain the inbox, make a step, sleep only when idle.

Everybody else calls submit() and Handle.cancel(), which put a command into the inbox and return at once.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.llama import Context, DecodeStatus, Model, SamplerChain
from server.engine.pace import Pace
from server.engine.sampling import PENALTY_LAST_N, SamplingParams, plan
from server.engine.scheduler import Batch, Scheduler
from server.engine.sequence import Event, Finished, FinishReason, TextDelta, Usage
from server.engine.sequence import Sequence as TokenSequence
from server.engine.text import TextStream
from server.errors import ContextOverflow, EngineFailed, QueueFull, ShuttingDown, SparrowError

log = logging.getLogger("sparrow.engine")

Sink = Callable[[Event], None]
"""Called on the engine's thread, at most once per step and sequence: it must return at once and not raise."""

MAX_WAITING = 32
"""Requests that may wait for a slot; one more is told to come back later."""

_ids = itertools.count(1)


@dataclass(frozen=True)
class ModelInfo:
    """What is being served. n_ctx: tokens that one conversation may hold."""

    name: str
    quant: str
    n_ctx: int
    is_demo: bool = False


class _Answer:
    """One accepted request, from its prompt to its terminal event. Only the engine's thread touches it."""

    def __init__(self, sequence: TokenSequence, params: SamplingParams, sink: Sink) -> None:
        self.id = next(_ids)
        self.sequence = sequence
        self.params = params
        self.sink = sink
        self.text = TextStream(params.stop)
        self.chain: SamplerChain | None = None
        self.t_submitted = time.monotonic()
        self.t_started: float | None = None
        self.t_first: float | None = None

    def usage(self) -> Usage:
        now = time.monotonic()
        started = self.t_started or now
        first = self.t_first or now
        return Usage(
            n_prompt=self.sequence.n_prompt,
            n_completion=self.sequence.n_completion,
            n_reused=self.sequence.n_reused or 0,
            queue_s=started - self.t_submitted,
            prompt_s=max(0.0, first - started),
            decode_s=now - first,
        )


class Handle:
    """What a caller holds of a submitted request."""

    def __init__(self, engine: Engine, answer_id: int) -> None:
        self._engine = engine
        self.id = answer_id

    def cancel(self) -> None:
        """Stop it now; the terminal event is then Finished("cancelled"). After the end: nothing."""
        self._engine._command(lambda: self._engine._cancel(self.id))
        self._engine._interrupt()


class Engine:
    """Answers prompts, several in one batch. Lives from start() to close()."""

    def __init__(
        self,
        model: Model,
        context: Context,
        info: ModelInfo,
        n_slots: int,
        defaults: SamplingParams | None = None,
        step_s: float = 0.1,
    ) -> None:
        """Owns model and context from now on: close() frees them. step_s: see Pace."""
        self.model = info
        self.vocab = model.vocab
        self.chat_template = model.chat_template
        self.sampling_defaults = defaults or SamplingParams()
        self._model = model
        self.scheduler = Scheduler(n_slots, info.n_ctx, context)
        self._context = context
        self._pace = Pace(step_s, context.n_batch)
        self._answers: dict[int, _Answer] = {}
        self._by_sequence: dict[int, _Answer] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_open = 0
        self._n_slots = n_slots
        self._mean_s = 5.0
        self._closing = False
        self._may_interrupt = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- for every thread -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, tokens: Sequence[int], params: SamplingParams, sink: Sink) -> Handle:
        """Answer the prompt `tokens`. sink gets TextDelta events, then exactly one Finished.

        Raises ContextOverflow, QueueFull or ShuttingDown, and then sink is never called.
        """
        n_ctx = self.model.n_ctx
        if len(tokens) >= n_ctx:
            raise ContextOverflow(len(tokens), n_ctx)
        n_max = n_ctx if params.max_tokens is None else min(n_ctx, len(tokens) + params.max_tokens)
        answer = _Answer(TokenSequence(tokens, n_max), params, sink)
        with self._lock:
            if self._closing:
                raise ShuttingDown("The server is shutting down: send the message again when it is back.")
            if self._n_open >= self._n_slots + MAX_WAITING:
                raise QueueFull(MAX_WAITING, self._retry_after())
            self._n_open += 1
        self._command(lambda: self._add(answer))
        return Handle(self, answer.id)

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

    def _interrupt(self) -> None:
        """Have the inbox read now and not after the step, unless that would hold up somebody who reads along."""
        if self._may_interrupt:
            self._context.interrupt()

    # --- the engine's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            if not self.scheduler.has_work:
                self._sleep()
            self._drain()
            if self.scheduler.has_work:
                self._guarded_step()
        self._drain()
        for answer in list(self._answers.values()):
            self._finish(answer, "error", ShuttingDown("The server was stopped in the middle of this answer."))

    def _sleep(self) -> None:
        """Idle: see that the books are right, and wait for a command."""
        try:
            self.scheduler.check_integrity()
        except AssertionError:
            log.exception("the slots' books are wrong; all prefixes are forgotten")
            self.scheduler.slots.reset()
        self._inbox.get()()

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
        batch = self.scheduler.schedule(self._pace.n_prefill(self.scheduler.n_decoding))
        self._mark_started(batch)
        status = self._compute(batch)
        if status is not DecodeStatus.OK:
            return self._recover(status, batch)
        answers = [(row, self._by_sequence[id(sequence)]) for row, sequence in batch.sampled_rows()]
        sampled = {row: self._sample(answer, row) for row, answer in answers}
        self.scheduler.commit(batch, sampled)
        for row, answer in answers:
            self._deliver(answer, sampled[row])

    def _compute(self, batch: Batch) -> DecodeStatus:
        n_decode, began = self.scheduler.n_decoding, time.monotonic()
        self._may_interrupt = not n_decode
        status = self._context.decode(batch)
        self._may_interrupt = False
        if status is DecodeStatus.OK:
            self._pace.observe(n_decode, batch.n_tokens - n_decode, time.monotonic() - began)
        return status

    def _mark_started(self, batch: Batch) -> None:
        now = time.monotonic()
        for span in batch.spans:
            answer = self._by_sequence[id(span.sequence)]
            answer.t_started = answer.t_started or now

    def _sample(self, answer: _Answer, row: int) -> int:
        if answer.chain is None:
            seed = random.getrandbits(32)
            answer.chain = SamplerChain(self.vocab, answer.params, plan(answer.params, seed))
            for token in answer.sequence.tokens[-PENALTY_LAST_N:]:
                answer.chain.accept(token)
        return answer.chain.sample(self._context.logits(row))

    def _deliver(self, answer: _Answer, token: int) -> None:
        """Show the text of a new token, and end the answer where it ends."""
        answer.t_first = answer.t_first or time.monotonic()
        ended = token in self.vocab.eog
        text = "" if ended else answer.text.push(self.vocab.piece(token))
        ended = ended or answer.text.stopped
        full = answer.sequence.is_full
        if ended or full:
            text += answer.text.flush()
        self._emit(answer, TextDelta(text) if text else None)
        if ended or full:
            self._finish(answer, "stop" if ended else "length")

    def _emit(self, answer: _Answer, event: Event | None) -> None:
        if event is None:
            return
        try:
            answer.sink(event)
        except Exception:
            log.exception("the receiver of answer %d failed", answer.id)

    def _add(self, answer: _Answer) -> None:
        self._answers[answer.id] = self._by_sequence[id(answer.sequence)] = answer
        self.scheduler.add(answer.sequence)

    def _cancel(self, answer_id: int) -> None:
        answer = self._answers.get(answer_id)
        if answer is not None:
            text = answer.text.flush()
            self._emit(answer, TextDelta(text) if text else None)
            self._finish(answer, "cancelled")

    def _finish(self, answer: _Answer, reason: FinishReason, error: SparrowError | None = None) -> None:
        """The only place where an answer ends: slot, bookkeeping, sampler, terminal event."""
        self.scheduler.remove(answer.sequence)
        del self._answers[answer.id], self._by_sequence[id(answer.sequence)]
        if answer.chain is not None:
            answer.chain.close()
        with self._lock:
            self._n_open -= 1
        usage = answer.usage()
        self._mean_s += 0.2 * (usage.prompt_s + usage.decode_s - self._mean_s)
        self._emit(answer, Finished(reason, usage, error))

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
