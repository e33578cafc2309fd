"""Where requests come in: checked, counted, and handed to the engine's thread. For any thread."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from server.engine.admission import Admission
from server.engine.erasure import Deleted
from server.engine.forecast import Forecast
from server.engine.inbox import Inbox
from server.engine.pace import Pace
from server.engine.prefix import Ids
from server.engine.request import EmbeddingSink, Handle, Request, Sink, constraint_of
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Scheduler
from server.engine.sequence import Progress
from server.engine.sequence import Sequence as TokenSequence
from server.engine.snapshots import Snapshots
from server.engine.vocab import Vocab
from server.errors import ContextOverflow, InvalidField

log = logging.getLogger("sparrow.engine")

ERASE_S = 10.0
"""Seconds that erase() waits for the engine, which may be at its end."""


class Desk(ABC):
    """The part of the engine that its callers see."""

    def __init__(
        self,
        vocab: Vocab,
        n_ctx: int,
        admission: Admission,
        scheduler: Scheduler,
        pace: Pace,
        snapshots: Snapshots,
        answer_s: float,
    ) -> None:
        """n_ctx: tokens that one conversation may hold. answer_s: seconds that one answer may take; 0: any."""
        self.vocab = vocab
        self._n_ctx, self._answer_s = n_ctx, answer_s
        self._admission, self._inbox = admission, Inbox()
        self._slots, self._snapshots = scheduler.slots, snapshots
        self._forecast = Forecast(scheduler, admission.n_slots, pace)

    @abstractmethod
    def _command(self, command: Callable[[], None]) -> None:
        """Have the engine's thread run it soon."""

    @abstractmethod
    def _add(self, request: Request) -> None:
        """A request has come; on the engine's thread."""

    @abstractmethod
    def _cancel_soon(self, request_id: int) -> None:
        """Have it cancelled, if it has not ended."""

    def expecting(self) -> AbstractContextManager[None]:
        """A prompt is being made, and submitted inside. On the event loop's thread; see Inbox."""
        return self._inbox.expecting()

    def submit(
        self, tokens: Sequence[int], params: SamplingParams, sink: Sink, *, resume: Sequence[int] = (), client: str = ""
    ) -> Handle:
        """Answer the prompt `tokens`. sink gets TextDelta events, then exactly one Finished.

        resume: the tokens of an answer to this prompt that was cut off; it goes on behind them without a seam.
        client: whose it is, for fairness among those who wait.
        Raises ContextOverflow, InvalidField, QueueFull or ShuttingDown, and then sink is never called.
        """
        return self._accept([self._prepare(tokens, params, sink, resume, client)])[0]

    def submit_all(
        self, tokens: Sequence[int], params: Sequence[SamplingParams], sinks: Sequence[Sink], *, client: str = ""
    ) -> list[Handle]:
        """Several answers to one prompt, which is read once. Raises like submit(), and then none of them is begun."""
        requests = [self._prepare(tokens, each, sink, (), client) for each, sink in zip(params, sinks, strict=True)]
        for request in requests[1:]:
            request.sequence.after = requests[0].sequence
        return self._accept(requests)

    def read_ahead(self, tokens: Sequence[int], sink: Sink, *, client: str = "", is_closing: bool = False) -> Handle:
        """Have tokens in a slot for whoever asks for them later; they are read while nothing else is to be done.

        is_closing: see Sequence. sink gets Finished. Raises ContextOverflow, QueueFull or ShuttingDown, and then it is
        never called.
        """
        if len(tokens) >= self._n_ctx:
            raise ContextOverflow(len(tokens), self._n_ctx)
        sequence = TokenSequence(tokens, len(tokens) + 1, is_draft=True, is_closing=is_closing, client=client)
        return self._accept([Request(sequence, SamplingParams(), sink, limit_s=self._answer_s)])[0]

    def embed(self, tokens: Sequence[int], sink: EmbeddingSink, *, client: str = "") -> Handle:
        """What the model makes of these tokens, at most as many as a conversation may hold, as one vector.

        sink gets an Embedding, then Finished("stop"); or only Finished, if it was cancelled, failed or took too long.
        Raises ContextOverflow, InvalidField, QueueFull or ShuttingDown, and then sink is never called.
        """
        if not tokens:
            raise InvalidField("input", "give a text that is not empty.")
        if len(tokens) > self._n_ctx:
            raise ContextOverflow(len(tokens), self._n_ctx)
        sequence = TokenSequence(tokens, len(tokens) + 1, is_embedding=True, client=client)
        return self._accept([Request(sequence, SamplingParams(), sink, limit_s=self._answer_s)])[0]

    def erase(self, deleted: Deleted) -> None:
        """Forget what slots and snapshots hold of these messages. It waits for a step: for a thread of its own."""

        def find(tokens: Ids) -> int | None:
            return deleted.first(tokens, self.vocab)

        done = threading.Event()

        def in_slots() -> None:
            try:
                self._slots.erase(find)
            finally:
                done.set()

        self._command(in_slots)
        done.wait(ERASE_S)
        try:
            self._snapshots.erase(find)
        except Exception:  # it must not be kept in the database, too
            log.exception("what is kept on disk could not be looked through")

    def _prepare(
        self, tokens: Sequence[int], params: SamplingParams, sink: Sink, said: Sequence[int], client: str
    ) -> Request:
        constraint, n_ctx = constraint_of(params, self.vocab, said), self._n_ctx
        tokens = [*tokens, *said]
        if len(tokens) >= n_ctx:
            raise ContextOverflow(len(tokens), n_ctx)
        n_most = n_ctx if params.max_tokens is None else params.max_tokens
        n_max = min(n_ctx, len(tokens) + max(1, n_most))
        sequence = TokenSequence(tokens, n_max, is_draft=n_most == 0, client=client)
        return Request(sequence, params, sink, constraint, b"".join(map(self.vocab.piece, said)), self._answer_s)

    def _accept(self, requests: Sequence[Request]) -> list[Handle]:
        """All of them, or none."""

        def then() -> None:
            for request in requests:
                self._forecast.coming[request.id] = request.sequence
                self._command(partial(self._add, request))

        self._admission.enter(requests[0].sequence.client, len(requests), then)
        return [
            Handle(request.id, partial(self._cancel_soon, request.id), partial(self._progress, request.sequence))
            for request in requests
        ]

    def _progress(self, sequence: TokenSequence) -> Progress:
        return self._forecast.progress(sequence, self._admission.slot_s)

    def refuse(self) -> None:
        """Take nothing new: submit() raises ShuttingDown. What was accepted goes on."""
        self._admission.refuse()
