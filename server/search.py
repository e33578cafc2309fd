"""Words to rows: SQLite's FTS5 over messages and titles, made to find Chinese.

FTS5 cuts texts where there are no letters, and Chinese has nothing between its words: each character of a script that
is written without blanks is indexed as a word of its own, and 麻雀 is looked for as the phrase of its two characters.
Everything else is found by the beginnings of its words. Neither case nor accents count.
"""

from __future__ import annotations

import re
import sqlite3
from typing import Literal

TOKENIZER = "unicode61 remove_diacritics 2 categories ''L* N* Co So''"
"""So: emoji, which people look for too."""

_GAP = "\u200b"
"""Stands between the characters in the index: it has no width, so what FTS5 cites of a text needs no mending."""

_BEGIN, _END = "\x02", "\x03"
_MARKS = re.compile(f"[{_GAP}{_BEGIN}{_END}]")

_CLOSE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2600-\u27bf\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Kana, Chinese, Korean (whose endings grow on to the words), and emoji."""

_RUN = re.compile(f"[{_CLOSE}]+")
_WORD = re.compile(rf"[^\W_]|[{_CLOSE}]")

MAX_QUERY = 200
MAX_WORDS = 16
N_AROUND = 20
"""Words, or Chinese characters, that are cited of a message."""

N_MERGE = 200
"""Pages of an index that are written at once."""

Snippet = tuple[tuple[str, bool], ...]
"""A cited text in parts; True: this part is what was looked for."""


def spaced(text: str) -> str:
    """The text as it is indexed."""
    return _RUN.sub(lambda run: _GAP + _GAP.join(run[0]) + _GAP, _MARKS.sub("", text))


def match(query: str) -> str | None:
    """The query in FTS5's language: every word has to be there. None: there is no word in it."""
    words = [word for word in query[:MAX_QUERY].split() if _WORD.search(word)]
    phrases = ('"' + spaced(word).replace('"', " ") + '"*' for word in words[:MAX_WORDS])
    return " ".join(phrases) or None


def put_message(db: sqlite3.Connection, id: int, content: str) -> None:
    """Index the message's text in the place of an earlier one. A trigger takes it out with the message."""
    db.execute("DELETE FROM message_index WHERE rowid = ?", (id,))
    if content:
        db.execute("INSERT INTO message_index (rowid, content) VALUES (?, ?)", (id, spaced(content)))


def put_title(db: sqlite3.Connection, conversation_id: str, title: str) -> None:
    """Index the conversation's title in the place of an earlier one. A trigger takes it out with the conversation."""
    db.execute(
        "DELETE FROM title_index WHERE rowid = (SELECT title_row FROM conversations WHERE id = ?)", (conversation_id,)
    )
    row = db.execute(
        "INSERT INTO title_index (title, conversation_id) VALUES (?, ?)", (spaced(title), conversation_id)
    ).lastrowid
    db.execute("UPDATE conversations SET title_row = ? WHERE id = ?", (row, conversation_id))


def forget(db: sqlite3.Connection, index: Literal["message_index", "title_index"], *, goes_on: bool) -> bool:
    """Take the words of what was deleted out of the index: FTS5 only marks them, and keeps them until it merges.

    So much at a time as a writer may be kept from the others. Call it again, with goes_on, until it returns False.
    """
    before = db.total_changes
    # Below 0: of all parts of the index make one.
    db.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('merge', ?)", (N_MERGE if goes_on else -N_MERGE,))
    return db.total_changes - before >= 2  # that is how FTS5 says that there was something to do


def cite(db: sqlite3.Connection, wanted: str, messages: list[int]) -> dict[int, Snippet]:
    """What each of these messages says around what `match` made of the query."""
    # The + keeps FTS5 from looking the words up again for each of the rows.
    rows = db.execute(
        f"SELECT rowid, snippet(message_index, 0, ?, ?, '…', {N_AROUND}) FROM message_index"
        f" WHERE message_index MATCH ? AND +rowid IN ({', '.join('?' * len(messages))})",
        (_BEGIN, _END, wanted, *messages),
    )
    return {id: _parts(text) for id, text in rows}


def _parts(cited: str) -> Snippet:
    """Marked text -> its parts; a line is enough to show."""
    parts = re.split(f"[{_BEGIN}{_END}]", re.sub(r"\s+", " ", cited.replace(_GAP, "")))
    return tuple((part, bool(at % 2)) for at, part in enumerate(parts) if part)
