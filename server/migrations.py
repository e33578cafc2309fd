"""The schema of the store, as the steps that made it. A step that was released is never edited: add the next one."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable

from server.errors import UsageError
from server.search import TOKENIZER, put_message, put_title

Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: list[Migration] = []


def migration(step: Migration) -> Migration:
    MIGRATIONS.append(step)
    return step


def migrate(db: sqlite3.Connection) -> None:
    """Apply what this database lacks, in order; call it inside a transaction.

    Raises UsageError when the database knows a step that this program does not: a newer one wrote it.
    """
    db.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    applied = {name for (name,) in db.execute("SELECT name FROM migrations")}
    unknown = applied - {step.__name__ for step in MIGRATIONS}
    if unknown:
        file = db.execute("PRAGMA database_list").fetchone()[2]
        raise UsageError(
            f"{file} was written by a newer Sparrow ({', '.join(sorted(unknown))}): "
            "update this one, or choose another folder with --data-dir."
        )
    for step in MIGRATIONS:
        if step.__name__ not in applied:
            step(db)
            db.execute("INSERT INTO migrations VALUES (?, datetime('now'))", (step.__name__,))


@migration
def m001_conversations_and_their_trees_of_messages(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE conversations (id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL,"
        " created_at REAL NOT NULL, updated_at REAL NOT NULL) WITHOUT ROWID"
    )
    db.execute("CREATE INDEX conversations_of_owner ON conversations (owner, updated_at)")
    # AUTOINCREMENT: the id of a deleted answer never comes back, and a browser may still ask for its stream.
    db.execute(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT,"
        " conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,"
        " parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,"
        " role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),"
        " content TEXT NOT NULL,"
        " status TEXT NOT NULL CHECK (status IN ('streaming', 'done', 'stopped', 'error', 'interrupted')),"
        " created_at REAL NOT NULL, key TEXT,"
        " finish_reason TEXT, error_code TEXT, error_message TEXT, n_prompt INTEGER, n_completion INTEGER,"
        " n_reused INTEGER, queue_s REAL, prompt_s REAL, decode_s REAL)"
    )
    db.execute("CREATE INDEX messages_of_conversation ON messages (conversation_id, id)")
    db.execute("CREATE INDEX messages_of_parent ON messages (parent_id)")
    db.execute("CREATE INDEX messages_by_key ON messages (key) WHERE key IS NOT NULL")


@migration
def m002_answers_that_go_on(db: sqlite3.Connection) -> None:
    # tokens: ids of the vocabulary whose fingerprint is in `vocab`, each as four bytes, the lowest first.
    db.execute("ALTER TABLE messages ADD COLUMN tokens BLOB")
    db.execute("ALTER TABLE messages ADD COLUMN vocab TEXT")
    db.execute("ALTER TABLE messages ADD COLUMN n_resumed INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE messages ADD COLUMN n_dropped INTEGER NOT NULL DEFAULT 0")


@migration
def m003_lists_that_are_searched_pinned_and_undone(db: sqlite3.Connection) -> None:
    # leaf_id: the last message of the branch that is shown, NULL for the newest; settings, value: JSON.
    for column in ("pinned_at REAL", "deleted_at REAL", "leaf_id INTEGER", "settings TEXT", "title_row INTEGER"):
        db.execute(f"ALTER TABLE conversations ADD COLUMN {column}")
    db.execute("CREATE INDEX conversations_deleted ON conversations (deleted_at) WHERE deleted_at IS NOT NULL")
    db.execute("CREATE TABLE preferences (owner TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
    db.execute("CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    db.execute("INSERT INTO secrets VALUES ('form', ?)", (secrets.token_bytes(32),))
    db.execute(f"CREATE VIRTUAL TABLE message_index USING fts5 (content, tokenize = '{TOKENIZER}')")
    db.execute(
        f"CREATE VIRTUAL TABLE title_index USING fts5 (title, conversation_id UNINDEXED, tokenize = '{TOKENIZER}')"
    )
    db.execute(
        "CREATE TRIGGER message_gone AFTER DELETE ON messages BEGIN DELETE FROM message_index WHERE rowid = old.id; END"
    )
    db.execute(
        "CREATE TRIGGER conversation_gone AFTER DELETE ON conversations BEGIN"
        " DELETE FROM title_index WHERE rowid = old.title_row; END"
    )
    for id, title in db.execute("SELECT id, title FROM conversations").fetchall():
        put_title(db, id, title)
    for id, content in db.execute("SELECT id, content FROM messages"):
        put_message(db, id, content)
