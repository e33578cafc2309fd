"""From a question to an answer that owns itself: it is written to its end whether or not anybody listens.

    ask ── store: question and empty answer ── engine.submit ──> sink ──> log ──> listeners
                                                                  └─ every SAVE_S and at the end ──> store

The terminal event reaches the log after the store has the whole answer: whoever hears the end may ask again at once.
With the text go its tokens: an answer that was cut off, by a person or by the server's end, goes on behind them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from server.chat import Chat
from server.drafts import Drafts
from server.engine.engine import Engine, Handle
from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.engine.text import TextStream
from server.engine.vocab import Vocab
from server.errors import Conflict, ContextOverflow, InvalidRequest, ShuttingDown, SparrowError, StoreFailed
from server.prompts import Prompts
from server.records import Ending, Exchange, Failure, Message, Progress, Status
from server.store import Store
from server.streams import EventLog, Streams

log = logging.getLogger("sparrow.answers")

SAVE_S = 0.4
"""Seconds of an answer that a crash may take."""

MAX_RESUMED = 3
"""How often an answer goes on without being asked to: one that ends the server must not do so for ever."""

NOTHING = Usage(n_prompt=0, n_completion=0, n_reused=0, queue_s=0.0, prompt_s=0.0, decode_s=0.0)
NEW = TextDelta("")
"""What an answer that was never cut off goes on from."""


class _Answer:
    """One run of an answer, from its first token, or from where it was cut off, to its terminal event."""

    def __init__(self, owner: str, message: Message, log: EventLog, said: TextDelta) -> None:
        self.owner = owner
        self.message = message
        self.log = log
        self.finished: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self.handle: Handle | None = None
        self.stopped = False
        self._said = said
        self._loop = asyncio.get_running_loop()
        if message.n_resumed:  # this run's readers begin with the whole text, whatever they saw of the earlier one
            log.append(said)

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
            self.finished.set_result(replace(event, usage=_whole(event.usage, len(self._said.tokens))))

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()

    def submit(self, engine: Engine, prompt: Sequence[int]) -> None:
        """Have the rest written. An error ends the answer, not the call: its question is stored already."""
        resume = self._said.tokens
        if resume and resume[-1] in engine.vocab.eog:
            return self.receive(Finished("stop", NOTHING))
        try:
            self.handle = engine.submit(prompt, engine.sampling_defaults, self.sink, resume=resume)
        except ContextOverflow as error:
            self.receive(Finished("length", NOTHING) if resume else Finished("error", NOTHING, error))
        except SparrowError as error:
            self.receive(Finished("error", NOTHING, error))


class Answers:
    """All answers that are being written. Lives on the event loop, between the engine and the store."""

    def __init__(self, engine: Engine, chat: Chat, store: Store, streams: Streams) -> None:
        self._engine = engine
        self._store = store
        self._streams = streams
        self._prompts = Prompts(chat, engine.model.n_ctx)
        self._drafts = Drafts(engine, self._prompts)
        self._busy: set[str] = set()
        self._running: dict[int, _Answer] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._revival = asyncio.Lock()

    async def ask(self, owner: str, conversation_id: str | None, text: str, key: str) -> Exchange:
        """Store the question and begin its answer; a key that was sent before returns what it began then.

        Raises NotFound, Conflict while an answer of this conversation is being written, ContextOverflow when the
        question alone is too long (nothing is stored then), StoreFailed. A full queue ends the answer, not the call.
        """
        known = await self._store.exchange(owner, key)
        if known is not None:
            return known
        with self._claim(conversation_id):
            history = await self._history(owner, conversation_id)
            prompt = await self._prompts.fit(history, text)
            exchange = await self._store.begin(owner, conversation_id, text, key, prompt.n_dropped)
            if exchange.is_new:
                self._start(owner, exchange.answer, prompt.tokens)
        return exchange

    async def retry(self, owner: str, answer_id: int) -> Message:
        """Begin another answer to the same question, beside the old one. Raises what `ask` raises."""
        old = await self._store.message(owner, answer_id)
        if old.role != "assistant":
            raise InvalidRequest(f"Message {answer_id} is no answer: only answers can be retried.")
        with self._claim(old.conversation_id):
            history = (await self._store.branch(answer_id))[:-1]
            prompt = await self._prompts.fit(history)
            answer = await self._store.begin_again(history[-1], prompt.n_dropped)
            self._start(owner, answer, prompt.tokens)
        return answer

    async def resume(self, owner: str, answer_id: int) -> Message:
        """Go on with an answer that was stopped or interrupted, behind its last word. Raises what `ask` raises."""
        old = await self._store.message(owner, answer_id)
        with self._claim(old.conversation_id):
            thread = await self._store.thread(old.conversation_id)
            if thread[-1].id != answer_id or thread[-1].status not in ("stopped", "interrupted"):
                raise Conflict(f"Message {answer_id} can't go on: only a last answer that was cut off can.")
            said = _said(await self._store.progress(answer_id), self._engine.vocab)
            prompt = await self._prompts.fit(thread[:-1])
            answer = await self._store.resume(answer_id, prompt.n_dropped)
            self._start(owner, answer, prompt.tokens, said)
        return answer

    async def revive(self, owner: str, answer: Message) -> Message:
        """Its reader is back: an answer that `may_revive` goes on, once for all who come. If it can't, it stays."""
        async with self._revival:
            if may_revive(answer) and self._streams.get(answer.id) is None:
                with contextlib.suppress(SparrowError):
                    return await self.resume(owner, answer.id)
        return answer

    async def draft(self, owner: str, conversation_id: str | None, text: str) -> None:
        """Read what may be asked next, while its author types; "" was deleted again. Nobody hears of its errors."""
        self._drafts.cancel(owner)
        # While an answer is written, its question may have crossed its own draft on the way.
        if not text or any(answer.owner == owner for answer in self._running.values()):
            return
        with contextlib.suppress(SparrowError):
            await self._drafts.read(owner, await self._history(owner, conversation_id), text)

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

    @contextlib.contextmanager
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

    async def _history(self, owner: str, conversation_id: str | None) -> tuple[Message, ...]:
        if conversation_id is None:
            return ()
        await self._store.conversation(owner, conversation_id)
        return await self._store.thread(conversation_id)

    def _start(self, owner: str, message: Message, prompt: Sequence[int], said: TextDelta = NEW) -> None:
        answer = _Answer(owner, message, self._streams.open(message.id, message.n_resumed), said)
        self._busy.add(message.conversation_id)
        self._running[message.id] = answer
        self._drafts.cancel(owner)
        answer.submit(self._engine, prompt)
        keeper = asyncio.create_task(self._keep(answer))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def _keep(self, answer: _Answer) -> None:
        """Write the answer to the store while it grows, then its end; then tell those who listen."""
        last_saved = answer.log.last
        while not (await asyncio.wait([answer.finished], timeout=SAVE_S))[0]:
            if answer.log.last > last_saved:
                last_saved = answer.log.last
                await self._save(answer)
        end = answer.finished.result()
        try:
            if end.reason in ("cancelled", "error"):
                await self._save(answer)
            await self._store.finish(answer.message.id, ending(end, answer.log.text, answer.stopped))
        except StoreFailed as error:
            log.error("answer %d could not be saved: %s", answer.message.id, error.message)
            end = Finished("error", end.usage, error)
        finally:
            del self._running[answer.message.id]
            self._busy.discard(answer.message.conversation_id)
            answer.log.append(end)
        if end.reason in ("stop", "length"):
            await self._read_on(answer)

    async def _save(self, answer: _Answer) -> None:
        said = Progress(answer.log.text, tuple(answer.log.tokens), self._engine.vocab.fingerprint)
        try:
            await self._store.save(answer.message.id, said)
        except StoreFailed as error:  # there may be room again when the answer ends; until then it streams
            log.warning("answer %d is not saved yet: %s", answer.message.id, error.message)

    async def _read_on(self, answer: _Answer) -> None:
        """The next question will follow this answer: read it as it will stand in the prompt, unless they type already.

        Its slot has its tokens as they were sampled; written out they may be others, and how it closes is new.
        """
        with contextlib.suppress(SparrowError):
            thread = await self._store.branch(answer.message.id)
            if not self._drafts.has(answer.owner) and answer.message.conversation_id not in self._busy:
                await self._drafts.read(answer.owner, thread)


def may_revive(answer: Message) -> bool:
    """The server's end cut it off, and going on has not been tried too often. A person's Stop is kept."""
    return answer.status == "interrupted" and answer.n_resumed < MAX_RESUMED


def _said(progress: Progress, vocab: Vocab) -> TextDelta:
    """What a cut-off answer goes on from. Tokens of another model mean nothing to this one: then it reads the text."""
    if progress.vocab == vocab.fingerprint:
        # Stop in the middle of a character has shown a replacement for it; its tokens know the half, and go on.
        text = TextStream().push(b"".join(map(vocab.piece, progress.tokens)))
        return TextDelta(text, progress.tokens)
    text = progress.content.rstrip("\ufffd")
    return TextDelta(text, tuple(vocab.tokenize(text)))


def _whole(usage: Usage, n_said: int) -> Usage:
    """The engine counts what was said before as a part of the prompt."""
    n_prompt = max(0, usage.n_prompt - n_said)
    n_reused = min(usage.n_reused, n_prompt)
    return replace(usage, n_prompt=n_prompt, n_reused=n_reused, n_completion=usage.n_completion + n_said)


def ending(end: Finished, text: str, stopped: bool) -> Ending:
    """How an answer that ended so is kept. `stopped`: the person asked for the end, not the server."""
    failure = None if end.error is None else Failure(end.error.code, end.error.message)
    status: Status = "done"
    if end.reason == "cancelled":
        status = "stopped" if stopped else "interrupted"
    elif end.reason == "error":
        status = "interrupted" if isinstance(end.error, ShuttingDown) else "error"
    return Ending(text, status, end.reason, failure, end.usage)
