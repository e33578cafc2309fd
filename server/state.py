"""What the app's lifespan owns and every request finds in `request.state`. app.py makes and ends it in this order:

streams = Streams()
store = await Store.open(settings.data_dir / "sparrow.db")      # UsageError: one line for the person who starts it
answers = Answers(engine, chat, store, streams)
yield AppState(...)
streams.close()          # earlier, when uvicorn begins to shut down: it waits for open responses before the lifespan
await answers.close()    # ends what is being written as "interrupted" and saves it
engine.close()
await store.close()
"""

from __future__ import annotations

import asyncio
from typing import TypedDict

from server.answers import Answers
from server.chat import Chat
from server.engine.engine import Engine
from server.observe import Meter
from server.settings import Settings
from server.store import Store
from server.streams import Streams


class AppState(TypedDict):
    settings: Settings
    engine: Engine
    chat: Chat
    store: Store
    streams: Streams
    answers: Answers
    form_secret: bytes
    """What the tokens in forms are made with; it outlives the server, as a page that is open does."""
    importing: asyncio.Lock
    """One file at a time."""
    started_at: int
    """Seconds since 1970."""
    meter: Meter
