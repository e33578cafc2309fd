"""From the store's messages to the model's prompt: the same for a question, its draft and an answer that goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import takewhile

from starlette.concurrency import run_in_threadpool

from server.chat import MAX_RESERVE, Chat, ChatMessage, Fitted
from server.errors import ContextOverflow
from server.places import Context


class Prompts:
    """Prompts for one model. n_ctx: tokens that one conversation may hold."""

    def __init__(self, chat: Chat, n_ctx: int) -> None:
        self._chat = chat
        self._n_ctx = n_ctx

    async def fit(self, context: Context, question: str | None = None, *, n_said: int = 0) -> Fitted:
        """What fits of the messages. n_said: tokens of the answer that are there already.

        Raises ContextOverflow, InvalidRequest.
        """
        messages = spoken(context)
        if question is not None:
            messages.append(ChatMessage("user", question))
        n_reserve = min(MAX_RESERVE, self._n_ctx // 4) + n_said
        return await run_in_threadpool(self._chat.fit, messages, self._n_ctx, n_reserve)

    async def before_next(self, context: Context) -> list[int]:
        """What the next question will stand behind. Raises ContextOverflow, InvalidRequest."""

        async def prompt(question: str) -> list[int]:
            return (await self.fit(context, question)).tokens

        return await before_question(prompt)

    async def fit_to_go_on(self, context: Context, n_said: int, *, must: bool) -> Fitted:
        """The prompt of an answer that goes on: the one it began with, or one that forgets more when that leaves no
        room. must: raise ContextOverflow when nothing does, or for a word or two only: somebody asked for more."""
        prompt = await self.fit(context)
        if len(prompt.tokens) + n_said + (self._n_ctx // 32 if must else 0) < self._n_ctx:
            return prompt
        try:
            return await self.fit(context, n_said=n_said)
        except ContextOverflow:
            if must:
                raise ContextOverflow(len(prompt.tokens) + n_said, self._n_ctx) from None
            return prompt


async def before_question(prompt: Callable[[str], Awaitable[Sequence[int]]]) -> list[int]:
    """What the prompts of all questions begin with: all that comes before two that differ."""
    both = zip(await prompt("a"), await prompt("b"), strict=False)
    return [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], both)]


def spoken(context: Context) -> list[ChatMessage]:
    """What the model hears: an answer that failed before its first word says nothing."""
    system = [ChatMessage("system", context.system_prompt)] if context.system_prompt else []
    return [*system, *(ChatMessage(message.role, message.content) for message in context.history if message.content)]
