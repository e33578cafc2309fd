"""When a chat's answer has gone out, what its next question will stand behind is read, if nobody else asks anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from starlette.background import BackgroundTask
from starlette.requests import Request

from server.api.answering import fitted
from server.api.choice import Choice
from server.api.tools import Form
from server.chat import ChatMessage
from server.clients import client_of
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event
from server.errors import SparrowError
from server.prompts import before_question
from server.state import AppState


class Asked(Protocol):
    """A request whose prompt is a chat's."""

    @property
    def messages(self) -> list[ChatMessage]: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def form(self) -> Form: ...
    @property
    def truncates(self) -> bool: ...


def ahead(request: Request[AppState], asked: Asked, choices: Sequence[Choice]) -> BackgroundTask:
    """For the end of the response. Of several answers nobody knows which one goes on; tools' results are no question.

    The slot has the answer's tokens as they were sampled: written out they may be others, and how it closes is new.
    """
    return BackgroundTask(_begin, request, asked, choices)


async def _begin(request: Request[AppState], asked: Asked, choices: Sequence[Choice]) -> None:
    """The request has ended, for who counts requests, too."""
    request.state["answers"].look_after(_read_ahead(request, asked, choices))


async def _read_ahead(request: Request[AppState], asked: Asked, choices: Sequence[Choice]) -> None:
    engine, choice = request.state["engine"], choices[0]
    stats = engine.stats()
    if len(choices) > 1 or not _goes_on(choice) or stats.n_running or stats.n_waiting:
        return
    said = [*asked.messages, ChatMessage("assistant", choice.text)]

    async def prompt(question: str) -> list[int]:
        messages = [*said, ChatMessage("user", question)]
        made = await fitted(request, messages, asked.form.tools, asked.params, truncates=asked.truncates)
        return made.tokens

    with suppress(SparrowError):  # too long, or a full queue: nobody waits for it
        if tokens := await before_question(prompt):
            engine.read_ahead(tokens, _ignore, client=client_of(request), is_closing=True)


def _goes_on(choice: Choice) -> bool:
    return bool(choice.finished and choice.text and choice.finish_reason in ("stop", "length"))


def _ignore(_end: Event) -> None:
    pass
