"""One run of an answer, and what it goes on from when it was cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from server.engine.engine import Engine
from server.engine.request import Handle
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.engine.text import TextStream
from server.engine.vocab import Vocab
from server.errors import ContextOverflow, SparrowError
from server.owners import client_of_owner
from server.records import Message, Progress
from server.streams import AnswerLog

NOTHING = Usage(n_prompt=0, n_completion=0, n_reused=0, queue_s=0.0, prompt_s=0.0, decode_s=0.0)
NEW = TextDelta("")
"""What an answer that was never cut off goes on from."""


class Run:
    """One run of an answer, from its first token, or from where it was cut off, to its terminal event."""

    def __init__(self, owner: str, message: Message, log: AnswerLog, said: TextDelta) -> None:
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
            usage = whole(event.usage, len(self._said.tokens), self.message.usage)
            self.finished.set_result(replace(event, usage=usage))

    def cancel(self) -> None:
        if self.handle is not None:
            self.handle.cancel()

    def submit(self, engine: Engine, prompt: Sequence[int], params: SamplingParams) -> None:
        """Have the rest written. An error ends the answer, not the call: its question is stored already."""
        resume = self._said.tokens
        if resume and resume[-1] in engine.vocab.eog:
            return self.receive(Finished("stop", NOTHING))
        try:
            self.handle = engine.submit(prompt, params, self.sink, resume=resume, client=client_of_owner(self.owner))
            self.log.reading = self.handle.progress
        except ContextOverflow as error:
            self.receive(Finished("length", NOTHING) if resume else Finished("error", NOTHING, error))
        except SparrowError as error:
            self.receive(Finished("error", NOTHING, error))


def said_before(progress: Progress, vocab: Vocab) -> TextDelta:
    """What a cut-off answer goes on from. Tokens of another model mean nothing to this one: then it reads the text."""
    if progress.vocab == vocab.fingerprint:
        # Stop in the middle of a character has shown a replacement for it; its tokens know the half, and go on.
        text = TextStream().push(b"".join(map(vocab.piece, progress.tokens)))
        return TextDelta(text, progress.tokens)
    text = progress.content.rstrip("\ufffd")
    return TextDelta(text, tuple(vocab.tokenize(text)))


def whole(usage: Usage, n_said: int, earlier: Usage | None) -> Usage:
    """The numbers of the answer, of those of its last run: the engine counts the n_said tokens before it as prompt.

    earlier: the numbers until the last run that was not lost to a crash. What was lost counts as fast as the rest.
    """
    if usage is NOTHING and earlier is not None:
        return earlier
    n_prompt = max(0, usage.n_prompt - n_said)
    n_reused = min(usage.n_reused, n_prompt)
    known = earlier or NOTHING
    n_completion, n_timed = usage.n_completion + n_said, usage.n_completion + known.n_completion
    decode_s = (usage.decode_s + known.decode_s) * n_completion / max(1, n_timed)
    return replace(usage, n_prompt=n_prompt, n_reused=n_reused, n_completion=n_completion, decode_s=decode_s)
