"""What will probably be asked is read before it is asked: the box of the page while its author types, and an answer
that has just ended. The engine reads drafts when it has nothing else to do. They are neither stored nor logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from server.engine.engine import Engine
from server.engine.request import Handle
from server.engine.sequence import Event
from server.errors import SparrowError
from server.owners import client_of_owner
from server.places import Context
from server.prompts import Prompts

MAX_DRAFTS = 4
"""All owners' together: drafts are a courtesy, and a place in the engine's queue is somebody's answer."""


class _Draft:
    """One draft from its arrival until it is read; the handle is there once the engine has it."""

    handle: Handle | None = None


class Drafts:
    """At most one draft of each owner. Lives on the event loop."""

    def __init__(self, engine: Engine, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts
        self._drafts: dict[str, _Draft] = {}

    def has(self, owner: str) -> bool:
        """A draft of this owner is not read to its end yet."""
        return owner in self._drafts

    def cancel(self, owner: str) -> None:
        """What was read of it stays in its slot for whoever asks for it."""
        draft = self._drafts.pop(owner, None)
        if draft is not None and draft.handle is not None:
            draft.handle.cancel()

    async def read(self, owner: str, context: Context, question: str | None = None) -> None:
        """Have it read in the place of the owner's older draft; None: what the next question will follow.

        One that can't be read, too long or one too many, is left: nobody waits for it.
        """
        self.cancel(owner)
        if len(self._drafts) >= MAX_DRAFTS:
            return
        draft = self._drafts[owner] = _Draft()
        try:
            if question is None:
                tokens = await self._prompts.before_next(context)
            else:
                tokens = (await self._prompts.fit(context, question)).tokens
            if self._drafts.get(owner) is draft:  # no newer draft and no question came meanwhile
                self._submit(owner, draft, tokens, is_closing=question is None)
        except SparrowError:
            self._forget(owner, draft)

    def _submit(self, owner: str, draft: _Draft, tokens: Sequence[int], *, is_closing: bool) -> None:
        loop = asyncio.get_running_loop()

        def sink(_end: Event) -> None:
            try:
                loop.call_soon_threadsafe(self._forget, owner, draft)
            except RuntimeError:  # the loop is closed: the server has ended
                pass

        client = client_of_owner(owner)
        draft.handle = self._engine.read_ahead(tokens, sink, client=client, is_closing=is_closing)

    def _forget(self, owner: str, draft: _Draft) -> None:
        if self._drafts.get(owner) is draft:
            del self._drafts[owner]
