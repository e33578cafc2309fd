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
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from server import branches, conversations, places
from server.chat import Chat
from server.drafts import Drafts
from server.engine.engine import Engine
from server.engine.erasure import Deleted
from server.engine.sequence import Finished, TextDelta
from server.errors import Conflict, InvalidRequest, ShuttingDown, SparrowError, StoreFailed
from server.places import Place
from server.preferences import ChatSettings
from server.prompts import Prompts
from server.records import Ending, Exchange, Failure, Message, Progress, Status
from server.runs import NEW, Run, said_before
from server.store import Store
from server.streams import Streams

log = logging.getLogger("sparrow.answers")

SAVE_S = 0.4
"""Seconds of an answer that a crash may take."""

RETRY_S = 1.0
"""Seconds until an answer that could not be saved is tried again."""

MAX_RESUMED = 3
"""How often an answer goes on without being asked to: one that ends the server must not do so for ever."""


class Answers:
    """All answers that are being written. Lives on the event loop, between the engine and the store."""

    def __init__(self, engine: Engine, chat: Chat, store: Store, streams: Streams) -> None:
        self._engine = engine
        self._store = store
        self._streams = streams
        self._prompts = Prompts(chat, engine.model.n_ctx)
        self._drafts = Drafts(engine, self._prompts)
        self._busy: set[str] = set()
        self._running: dict[int, Run] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._revival = asyncio.Lock()
        self._closing = asyncio.Event()
        self._asking: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def ask(self, owner: str, place: Place, text: str, key: str) -> Exchange:
        """Store the question and begin its answer; a key that was sent before returns what it began then.

        Raises NotFound, Conflict while an answer of this conversation is being written, ContextOverflow when the
        question alone is too long (nothing is stored then), StoreFailed. A full queue ends the answer, not the call.
        """
        # A double click waits for the first one's end, and then finds what that began.
        async with self._asking.setdefault((owner, key), asyncio.Lock()):
            return await self._store.exchange(owner, key) or await self._ask(owner, place, text, key)

    async def _ask(self, owner: str, place: Place, text: str, key: str) -> Exchange:
        with self._claim(place.conversation_id), self._engine.expecting():
            context = await self._store.read(places.before_question, owner, place)
            prompt = await self._prompts.fit(context, text)
            exchange = await self._store.begin(
                owner,
                place.conversation_id,
                text,
                key,
                prompt.n_dropped,
                below=context.below,
                settings=place.settings,
            )
            if exchange.is_new:
                self._start(owner, exchange.answer, prompt.tokens, context.settings)
        return exchange

    async def retry(self, owner: str, message_id: int) -> Message:
        """Begin another answer to the same question, beside the old one; a question's own id will do. Raises what
        `ask` raises."""
        old = await self._store.message(owner, message_id)
        with self._claim(old.conversation_id), self._engine.expecting():
            context = await self._store.read(places.up_to, owner, message_id)
            if old.role == "assistant":
                context = replace(context, history=context.history[:-1])
            if not context.history:
                raise InvalidRequest(f"Message {message_id} can't be answered again: there is no question above it.")
            prompt = await self._prompts.fit(context)
            answer = await self._store.begin_again(context.history[-1], prompt.n_dropped)
            self._start(owner, answer, prompt.tokens, context.settings)
        return answer

    async def resume(self, owner: str, answer_id: int) -> Message:
        """Go on with an answer that was stopped, interrupted or ended by its length, behind its last word.

        Raises what `ask` raises; ContextOverflow, too, when there is no room behind an answer that was too long.
        """
        old = await self._store.message(owner, answer_id)
        with self._claim(old.conversation_id), self._engine.expecting():
            old = await self._store.message(owner, answer_id)
            if not may_go_on(old) or await self._store.read(branches.newest_leaf, answer_id) != answer_id:
                raise Conflict(f"Message {answer_id} can't go on: only a last answer that was cut off can.")
            said = said_before(await self._store.progress(answer_id), self._engine.vocab)
            context = await self._store.read(places.up_to, owner, answer_id)
            context = replace(context, history=context.history[:-1])
            prompt = await self._prompts.fit_to_go_on(context, len(said.tokens), must=old.status == "done")
            answer = await self._store.resume(answer_id, prompt.n_dropped)
            self._start(owner, answer, prompt.tokens, context.settings, said)
        return answer

    async def revive(self, owner: str, answer: Message) -> Message:
        """Its reader is back: an answer that `may_revive` goes on, once for all who come. If it can't, it stays."""
        async with self._revival:
            if may_revive(answer) and self._streams.get(answer.id) is None:
                with contextlib.suppress(SparrowError):
                    return await self.resume(owner, answer.id)
        return answer

    async def draft(self, owner: str, place: Place, text: str) -> None:
        """Read what may be asked next, while its author types; "" was deleted again. Nobody hears of its errors."""
        self._drafts.cancel(owner)
        # While an answer is written, its question may have crossed its own draft on the way.
        if not text or any(answer.owner == owner for answer in self._running.values()):
            return
        with contextlib.suppress(SparrowError):
            await self._drafts.read(owner, await self._store.read(places.before_question, owner, place), text)

    async def delete_message(self, owner: str, message_id: int) -> int | None:
        """Delete it with all below it. Returns the last message of what is shown then. Raises NotFound, Conflict."""
        found = await self._store.message(owner, message_id)
        with self._claim(found.conversation_id, only_now=True):
            deleted = Deleted(*await self._store.read(branches.said_below, found))
            leaf = await self._store.write(branches.delete, found)
        self._drafts.cancel(owner)  # it would hold the slot
        self.look_after(asyncio.to_thread(self._engine.erase, deleted))
        return leaf

    async def delete_conversation(self, owner: str, conversation_id: str) -> None:
        """Delete it so that it can be brought back; what is being written in it stops. Raises NotFound."""
        await self._store.write(conversations.delete, owner, conversation_id)
        for answer in list(self._running.values()):
            if answer.message.conversation_id == conversation_id:
                self.stop(answer.message.id)

    def stop(self, answer_id: int) -> None:
        """End the answer as it stands; one that has ended stays as it is."""
        answer = self._running.get(answer_id)
        if answer is not None:
            answer.stopped = True
            answer.cancel()

    async def close(self) -> None:
        """Interrupt what is being written and save it. Call it before the store closes; the engine may be closed."""
        self._closing.set()
        for answer in self._running.values():
            answer.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=5.0)

    @contextlib.contextmanager
    def _claim(self, conversation_id: str | None, *, only_now: bool = False) -> Iterator[None]:
        """Hold the conversation until its answer ends, or only inside the block; an error lets go at once."""
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
        if only_now or not self._is_running(conversation_id):
            self._busy.discard(conversation_id)

    def _is_running(self, conversation_id: str) -> bool:
        return any(answer.message.conversation_id == conversation_id for answer in self._running.values())

    def _start(
        self, owner: str, message: Message, prompt: Sequence[int], settings: ChatSettings, said: TextDelta = NEW
    ) -> None:
        answer = Run(owner, message, self._streams.open(message.id, message.n_resumed), said)
        self._busy.add(message.conversation_id)
        self._running[message.id] = answer
        self._drafts.cancel(owner)
        answer.submit(self._engine, prompt, settings.sampling(self._engine.sampling_defaults))
        self.look_after(self._keep(answer))

    def look_after(self, work: Coroutine[Any, Any, None]) -> None:
        """It goes on by itself, and close() waits for it."""
        keeper = asyncio.create_task(work)
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def _keep(self, answer: Run) -> None:
        """Write the answer to the store while it grows, then its end; then tell those who listen."""
        last_saved = answer.log.last
        while not (await asyncio.wait([answer.finished], timeout=SAVE_S))[0]:
            if answer.log.last > last_saved:
                last_saved = answer.log.last
                await self._save(answer)
        end = answer.finished.result()
        kept = ending(end, answer.log.text, answer.stopped)
        try:
            if end.reason != "stop":  # it may go on from its last token
                await self._save(answer)
            await self._store.finish(answer.message.id, kept)
        except StoreFailed as error:
            log.error("answer %d could not be saved: %s", answer.message.id, error.message)
            end = Finished("error", end.usage, error)
        finally:
            del self._running[answer.message.id]
            self._busy.discard(answer.message.conversation_id)
            answer.log.append(end)
        if isinstance(end.error, StoreFailed):
            await self._finish_later(answer, kept)
        elif end.reason in ("stop", "length", "time"):
            await self._read_on(answer)

    async def _finish_later(self, answer: Run, kept: Ending) -> None:
        """Its readers know that it is not saved. It will be once the disk has room, or the database is free again."""
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), RETRY_S)
            with contextlib.suppress(StoreFailed):
                await self._store.save(answer.message.id, self._said(answer))
                return await self._store.finish(answer.message.id, kept)

    async def _save(self, answer: Run) -> None:
        try:
            await self._store.save(answer.message.id, self._said(answer))
        except StoreFailed as error:  # there may be room again when the answer ends; until then it streams
            log.warning("answer %d is not saved yet: %s", answer.message.id, error.message)

    def _said(self, answer: Run) -> Progress:
        return Progress(answer.log.text, tuple(answer.log.tokens), self._engine.vocab.fingerprint)

    async def _read_on(self, answer: Run) -> None:
        """The next question will follow this answer: read it as it will stand in the prompt, unless they type already.

        Its slot has its tokens as they were sampled; written out they may be others, and how it closes is new.
        """
        with contextlib.suppress(SparrowError):
            context = await self._store.read(places.up_to, answer.owner, answer.message.id)
            if not self._drafts.has(answer.owner) and answer.message.conversation_id not in self._busy:
                await self._drafts.read(answer.owner, context)


def may_revive(answer: Message) -> bool:
    """The server's end cut it off, and going on has not been tried too often. A person's Stop is kept."""
    return answer.status == "interrupted" and answer.n_resumed < MAX_RESUMED


def may_go_on(answer: Message) -> bool:
    """It was cut off: by a person, by the server's end, or by the most tokens that it may have."""
    return answer.status in ("stopped", "interrupted") or (
        answer.status == "done" and answer.finish_reason in ("length", "time") and answer.role == "assistant"
    )


def ending(end: Finished, text: str, stopped: bool) -> Ending:
    """How an answer that ended so is kept. `stopped`: the person asked for the end, not the server."""
    failure = None if end.error is None else Failure(end.error.code, end.error.message)
    status: Status = "done"
    if end.reason == "cancelled":
        status = "stopped" if stopped else "interrupted"
    elif end.reason == "error":
        status = "interrupted" if isinstance(end.error, ShuttingDown) else "error"
    return Ending(text, status, end.reason, failure, end.usage)
