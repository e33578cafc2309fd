"""From a question to an answer that owns itself: it is written to its end whether or not anybody listens.

    ask ── store: question and empty answer ── engine.submit ──> sink ──> log ──> listeners
                                                                  └─ every SAVE_S and at the end ──> store

The terminal event reaches the log after the store has the whole answer: whoever hears the end may ask again at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from starlette.concurrency import run_in_threadpool

from server.chat import Chat, ChatMessage
from server.engine.engine import Engine, Handle
from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.errors import Conflict, InvalidRequest, ShuttingDown, SparrowError, StoreFailed
from server.records import Ending, Exchange, Failure, Message, Status
from server.store import Store
from server.streams import EventLog, Streams

log = logging.getLogger("sparrow.answers")

SAVE_S = 0.4
"""Seconds of an answer that a crash may take."""

MAX_RESERVE = 1024
"""Tokens kept free for an answer, at most; in a small context a quarter of it."""

NOTHING = Usage(n_prompt=0, n_completion=0, n_reused=0, queue_s=0.0, prompt_s=0.0, decode_s=0.0)


class _Answer:
    """One answer while it is being written."""

    def __init__(self, message: Message, log: EventLog, loop: asyncio.AbstractEventLoop) -> None:
        self.message = message
        self.log = log
        self.finished: asyncio.Future[Finished] = loop.create_future()
        self.handle: Handle | None = None
        self.stopped = False
        self._loop = loop

    def sink(self, event: Event) -> None:
        """Called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self.receive, event)
        except RuntimeError:  # the loop is closed: the next start finds the row "streaming" and calls it interrupted
            pass

    def receive(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self.log.append(event)
        else:
            self.finished.set_result(event)

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()


class Answers:
    """All answers that are being written. Lives on the event loop, between the engine and the store."""

    def __init__(self, engine: Engine, chat: Chat, store: Store, streams: Streams) -> None:
        self._engine = engine
        self._chat = chat
        self._store = store
        self._streams = streams
        self._busy: set[str] = set()
        self._running: dict[int, _Answer] = {}
        self._keepers: set[asyncio.Task[None]] = set()

    async def ask(self, owner: str, conversation_id: str | None, text: str, key: str) -> Exchange:
        """Store the question and begin its answer; a key that was sent before returns what it began then.

        Raises NotFound, Conflict while an answer of this conversation is being written, ContextOverflow when the
        question alone is too long (nothing is stored then), StoreFailed. A full queue ends the answer, not the call.
        """
        known = await self._store.exchange(owner, key)
        if known is not None:
            return known
        with self._claim(conversation_id):
            history: Sequence[Message] = ()
            if conversation_id is not None:
                await self._store.conversation(owner, conversation_id)
                history = await self._store.thread(conversation_id)
            tokens = await self._prompt([*_spoken(history), ChatMessage("user", text)])
            exchange = await self._store.begin(owner, conversation_id, text, key)
            if exchange.is_new:
                self._start(exchange.answer, tokens)
        return exchange

    async def retry(self, owner: str, answer_id: int) -> Message:
        """Begin another answer to the same question, beside the old one. Raises what `ask` raises."""
        old = await self._store.message(owner, answer_id)
        if old.role != "assistant":
            raise InvalidRequest(f"Message {answer_id} is no answer: only answers can be retried.")
        with self._claim(old.conversation_id):
            history = (await self._store.branch(answer_id))[:-1]
            tokens = await self._prompt(_spoken(history))
            answer = await self._store.begin_again(history[-1])
            self._start(answer, tokens)
        return answer

    def stop(self, answer_id: int) -> None:
        """End the answer as it stands; one that has ended stays as it is."""
        answer = self._running.get(answer_id)
        if answer is not None:
            answer.stopped = True
            answer.cancel()

    async def close(self) -> None:
        """Interrupt what is being written and save it. Call it before the store closes; the engine may be closed."""
        for answer in self._running.values():
            answer.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=5.0)

    @contextmanager
    def _claim(self, conversation_id: str | None) -> Iterator[None]:
        """Hold the conversation until its answer ends; an error before it begins lets go at once."""
        if conversation_id is None:
            yield
            return
        if conversation_id in self._busy:
            raise Conflict("An answer of this conversation is still being written: wait for it or stop it.")
        self._busy.add(conversation_id)
        try:
            yield
        except BaseException:
            self._busy.discard(conversation_id)
            raise

    async def _prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        n_ctx = self._engine.model.n_ctx
        fitted = await run_in_threadpool(self._chat.fit, messages, n_ctx, min(MAX_RESERVE, n_ctx // 4))
        return fitted.tokens

    def _start(self, message: Message, tokens: Sequence[int]) -> None:
        answer = _Answer(message, self._streams.open(message.id), asyncio.get_running_loop())
        self._busy.add(message.conversation_id)
        self._running[message.id] = answer
        try:
            answer.handle = self._engine.submit(tokens, self._engine.sampling_defaults, answer.sink)
        except SparrowError as error:  # the question is stored: the error belongs where its answer would be
            answer.receive(Finished("error", NOTHING, error))
        keeper = asyncio.create_task(self._keep(answer))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def _keep(self, answer: _Answer) -> None:
        """Write the answer to the store while it grows, then its end; then tell those who listen."""
        n_saved = 0
        while not (await asyncio.wait([answer.finished], timeout=SAVE_S))[0]:
            if answer.log.n_events > n_saved:
                n_saved = answer.log.n_events
                await self._save(answer)
        end = answer.finished.result()
        try:
            await self._store.finish(answer.message.id, ending(end, answer.log.text, answer.stopped))
        except StoreFailed as error:
            log.error("answer %d could not be saved: %s", answer.message.id, error.message)
            end = Finished("error", end.usage, error)
        finally:
            del self._running[answer.message.id]
            self._busy.discard(answer.message.conversation_id)
            answer.log.append(end)

    async def _save(self, answer: _Answer) -> None:
        try:
            await self._store.save(answer.message.id, answer.log.text)
        except StoreFailed as error:  # there may be room again when the answer ends; until then it streams
            log.warning("answer %d is not saved yet: %s", answer.message.id, error.message)


def ending(end: Finished, text: str, stopped: bool) -> Ending:
    """How an answer that ended so is kept. `stopped`: the person asked for the end, not the server."""
    failure = None if end.error is None else Failure(end.error.code, end.error.message)
    status: Status = "done"
    if end.reason == "cancelled":
        status = "stopped" if stopped else "interrupted"
    elif end.reason == "error":
        status = "interrupted" if isinstance(end.error, ShuttingDown) else "error"
    return Ending(text, status, end.reason, failure, end.usage)


def _spoken(messages: Sequence[Message]) -> list[ChatMessage]:
    """What the model hears: an answer that failed before its first word says nothing."""
    return [ChatMessage(message.role, message.content) for message in messages if message.content]
