"""From the store's messages to the model's prompt: the same for a question, its draft and an answer that goes on."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from server.chat import MAX_RESERVE, Chat, ChatMessage, Fitted
from server.records import Message


class Prompts:
    """Prompts for one model. n_ctx: tokens that one conversation may hold."""

    def __init__(self, chat: Chat, n_ctx: int) -> None:
        self._chat = chat
        self._n_ctx = n_ctx

    async def fit(self, history: Sequence[Message], question: str | None = None, *, opening: bool = True) -> Fitted:
        """What fits of the messages. opening: the assistant begins to speak. Raises ContextOverflow, InvalidRequest."""
        messages = spoken(history)
        if question is not None:
            messages.append(ChatMessage("user", question))
        n_reserve = min(MAX_RESERVE, self._n_ctx // 4)
        return await run_in_threadpool(self._chat.fit, messages, self._n_ctx, n_reserve, opening=opening)


def spoken(messages: Sequence[Message]) -> list[ChatMessage]:
    """What the model hears: an answer that failed before its first word says nothing."""
    return [ChatMessage(message.role, message.content) for message in messages if message.content]
