"""The store on real files: what is written comes back, what can't be opened says why, owners stay apart."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from server import branches, migrations, rows
from server.conversations import Page, delete, listed, purge
from server.engine.sequence import Usage
from server.errors import NotFound, StoreBusy, StoreFailed, UsageError
from server.records import MAX_TITLE, Ending, Failure, Message, Progress, title_of
from server.store import Store

T = TypeVar("T")
USAGE = Usage(n_prompt=12, n_completion=5, n_reused=3, queue_s=0.25, prompt_s=0.5, decode_s=1.5)


def run(path: Path, scenario: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, run the scenario, close it: one life of the server."""

    async def life() -> T:
        store = await Store.open(path)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(life())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sparrow.db"


async def turn(store: Store, conversation: str | None, text: str, answer: str, key: str = "") -> tuple[str, int]:
    """One finished question and answer; returns the ids of the conversation and the answer."""
    exchange = await store.begin("ana", conversation, text, key or text)
    await store.finish(exchange.answer.id, Ending(answer, "done", "stop", None, USAGE))
    return exchange.conversation.id, exchange.answer.id


async def thread(store: Store, conversation: str) -> tuple[Message, ...]:
    return await store.read(lambda db: rows.branch(db, rows.shown_leaf(db, conversation)))


def test_a_conversation_comes_back_after_a_restart(path: Path) -> None:
    async def write(store: Store) -> str:
        conversation, _ = await turn(store, None, "My name is Ana.", "Hello, Ana.")
        await turn(store, conversation, "我叫什么名字？", "你叫 Ana。 🐦")
        return conversation

    conversation = run(path, write)

    async def read(store: Store) -> None:
        assert (await store.read(rows.conversation, "ana", conversation)).title == "My name is Ana."
        messages = await thread(store, conversation)
        assert [(message.role, message.content) for message in messages] == [
            ("user", "My name is Ana."),
            ("assistant", "Hello, Ana."),
            ("user", "我叫什么名字？"),
            ("assistant", "你叫 Ana。 🐦"),
        ]
        assert [message.parent_id for message in messages] == [None, *[message.id for message in messages[:-1]]]
        assert messages[1].usage == USAGE and messages[1].finish_reason == "stop"
        assert messages[0].usage is None and messages[0].failure is None

    run(path, read)


def test_an_answer_cut_by_a_crash_is_interrupted_and_keeps_its_text(path: Path) -> None:
    async def crash(store: Store) -> int:
        exchange = await store.begin("ana", None, "Count from 1 to 100.", "k")
        await store.save(exchange.answer.id, Progress("1, 2, 3", (7, 70_000, 2**32 - 1), "v"))
        assert (await store.message("ana", exchange.answer.id)).status == "streaming"
        return exchange.answer.id

    answer = run(path, crash)
    message = run(path, lambda store: store.message("ana", answer))
    assert (message.status, message.content, message.n_resumed) == ("interrupted", "1, 2, 3", 0)


def test_an_answer_goes_on_from_its_tokens_which_are_kept_until_it_is_done(path: Path) -> None:
    async def scenario(store: Store) -> None:
        answer = (await store.begin("ana", None, "Count from 1 to 100.", "k")).answer.id
        assert await store.progress(answer) == Progress("")
        said = Progress("1, 2, 3", (7, 70_000, 2**32 - 1), "v")
        await store.save(answer, said)
        await store.finish(answer, Ending("1, 2, 3", "error", "error", Failure("engine_failed", "x")))
        assert await store.progress(answer) == Progress("1, 2, 3")
        await store.save(answer, said)
        await store.finish(answer, Ending("1, 2, 3", "stopped", "cancelled", None, USAGE))
        assert await store.progress(answer) == said
        resumed = await store.resume(answer, n_dropped=2)
        assert (resumed.status, resumed.n_resumed, resumed.n_dropped) == ("streaming", 1, 2)
        assert (resumed.finish_reason, resumed.failure, resumed.content) == (None, None, "1, 2, 3")

    run(path, scenario)


def test_a_failure_is_kept_with_its_code_and_its_words(path: Path) -> None:
    async def scenario(store: Store) -> None:
        exchange = await store.begin("ana", None, "Hi", "k")
        failure = Failure("queue_full", "4 requests are waiting already.")
        await store.finish(exchange.answer.id, Ending("Hel", "error", "error", failure))
        message = await store.message("ana", exchange.answer.id)
        assert (message.status, message.content, message.failure) == ("error", "Hel", failure)

    run(path, scenario)


def test_a_retry_is_a_branch_beside_the_old_answer(path: Path) -> None:
    async def scenario(store: Store) -> None:
        conversation, first = await turn(store, None, "Hi", "one")
        question = (await thread(store, conversation))[0]
        second = await store.begin_again(question)
        await store.finish(second.id, Ending("two", "done", "stop"))
        assert [message.content for message in await thread(store, conversation)] == ["Hi", "two"]
        assert [message.content for message in await store.read(rows.branch, first)] == ["Hi", "one"]
        await turn(store, conversation, "And?", "three")
        assert [message.content for message in await thread(store, conversation)] == ["Hi", "two", "And?", "three"]

    run(path, scenario)


def test_the_same_key_adds_nothing_even_when_both_come_at_once(path: Path) -> None:
    async def scenario(store: Store) -> None:
        both = await asyncio.gather(*(store.begin("ana", None, "Hi", "same") for _ in range(2)))
        assert sorted(exchange.is_new for exchange in both) == [False, True]
        assert both[0].answer.id == both[1].answer.id
        assert len((await store.read(listed, "ana")).conversations) == 1
        known = await store.exchange("ana", "same")
        assert known and known.question == both[0].question
        assert await store.exchange("ben", "same") is None

    run(path, scenario)


def test_owners_never_see_each_other(path: Path) -> None:
    async def scenario(store: Store) -> None:
        conversation, answer = await turn(store, None, "secret", "ok")
        assert [entry.id for entry in (await store.read(listed, "ana")).conversations] == [conversation]
        assert await store.read(listed, "ben") == Page(())
        with pytest.raises(NotFound):
            await store.read(rows.conversation, "ben", conversation)
        with pytest.raises(NotFound):
            await store.message("ben", answer)
        with pytest.raises(NotFound):
            await store.begin("ben", conversation, "let me in", "k")
        assert len(await thread(store, conversation)) == 2

    run(path, scenario)


def test_the_list_has_the_last_changed_first(path: Path) -> None:
    async def scenario(store: Store) -> None:
        first, _ = await turn(store, None, "first", "ok")
        second, _ = await turn(store, None, "second", "ok")
        assert [entry.id for entry in (await store.read(listed, "ana")).conversations] == [second, first]
        await turn(store, first, "again", "ok")
        assert [entry.id for entry in (await store.read(listed, "ana")).conversations] == [first, second]

    run(path, scenario)


def test_many_writers_at_once_lose_nothing(path: Path) -> None:
    async def scenario(store: Store) -> None:
        await asyncio.gather(*(turn(store, None, f"number {n}", "ok") for n in range(30)))
        assert {entry.title for entry in (await store.read(listed, "ana")).conversations} == {
            f"number {n}" for n in range(30)
        }

    run(path, scenario)


def test_nobody_else_on_the_machine_can_read_it(path: Path) -> None:
    async def modes(store: Store) -> set[int]:
        await turn(store, None, "secret", "ok")
        return {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert run(path, modes) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("in_the_way", ["data", "data/sparrow.db/"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, in_the_way: str) -> None:
    obstacle = tmp_path / in_the_way
    obstacle.mkdir(parents=True) if in_the_way.endswith("/") else obstacle.write_text("a file where a folder should be")
    with pytest.raises(UsageError, match=r"sparrow\.db can't be written \(.+\): choose another .*--data-dir"):
        run(tmp_path / "data" / "sparrow.db", Store.close)


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("This is a letter, not a database. " * 100)
    with pytest.raises(UsageError, match="sparrow.db can't be used .*not a database"):
        run(path, Store.close)
    assert path.read_text().startswith("This is a letter")


def test_a_database_of_a_newer_version_is_refused_unchanged(path: Path) -> None:
    run(path, Store.close)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO migrations VALUES ('m999_from_the_future', 'now')")
    db.close()
    with pytest.raises(UsageError, match="newer Sparrow .*m999_from_the_future.*--data-dir"):
        run(path, Store.close)


def test_migrations_bring_the_first_schema_ever_up_to_date(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
        first = migrations.MIGRATIONS[0]
        first(db)
        db.execute("INSERT INTO migrations VALUES (?, 'then')", (first.__name__,))
        db.execute("INSERT INTO conversations VALUES ('c', 'ana', 'old', 1.0, 2.0)")
    db.close()
    assert [entry.title for entry in run(path, lambda store: store.read(listed, "ana")).conversations] == ["old"]


def test_a_full_disk_is_a_clear_error_and_the_next_write_works(path: Path) -> None:
    async def scenario(store: Store) -> None:
        _, answer = await turn(store, None, "Hi", "ok")
        # SQLite's own page limit raises SQLITE_FULL, as a full disk does.
        await store.write(lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(StoreFailed, match="sparrow.db .*full"):
            await store.save(answer, Progress("long " * 10_000))
        await store.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
        assert (await store.message("ana", answer)).content == "ok"
        await store.save(answer, Progress("long " * 10_000))

    run(path, scenario)


@pytest.mark.parametrize(
    "text, title",
    [
        ("Hello", "Hello"),
        ("  two\n\nlines ", "two lines"),
        ("word " * 30, "word word word word word word word word word word word word…"[: MAX_TITLE - 1] + "…"),
        ("麻" * 100, "麻" * MAX_TITLE + "…"),
        ("x" * 100, "x" * MAX_TITLE + "…"),
    ],
)
def test_titles_are_the_first_words(text: str, title: str) -> None:
    assert title_of(text) == title
    assert len(title_of(text)) <= MAX_TITLE + 1


def test_what_another_program_holds_is_named_at_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.BUSY_S", 0.05)
    run(path, lambda store: turn(store, None, "Hi", "ok"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(UsageError, match="another program holds it; close that one"):
            run(path, lambda store: turn(store, None, "Ho", "ok"))


def test_who_waited_in_vain_keeps_the_next_ones_waiting_less(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And waits again as long as ever once the other program has let go."""
    monkeypatch.setattr("server.store.BUSY_S", 0.3)
    monkeypatch.setattr("server.store.STILL_BUSY_S", 0.01)

    async def scenario(store: Store) -> list[int]:
        patience = []
        _, answer = await turn(store, None, "Hi", "ok")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusy, match="close it"):
                await store.save(answer, Progress("more"))
            holder.execute("COMMIT")
        for _ in range(2):
            patience.append(await store.write(lambda db: int(db.execute("PRAGMA busy_timeout").fetchone()[0])))
        return patience

    assert run(path, scenario) == [10, 300]


def test_deleted_in_a_future_that_was_a_mistake_is_gone_after_the_usual_time(path: Path) -> None:
    """The clock was set back by years since then."""

    async def scenario(store: Store) -> None:
        conversation, _ = await turn(store, None, "Hi", "ok")
        await store.write(delete, "ana", conversation)
        await store.write(lambda db: db.execute("UPDATE conversations SET deleted_at = deleted_at + 1e8"))
        assert not await store.write(purge), "it can be undone for ten minutes"
        await store.write(lambda db: db.execute("UPDATE conversations SET deleted_at = deleted_at - 601"))
        assert await store.write(purge)

    run(path, scenario)


def test_an_answer_that_was_deleted_before_it_could_be_saved_leaves_nothing(path: Path) -> None:
    async def scenario(store: Store) -> list[tuple[int]]:
        _, answer = await turn(store, None, "Hi", "ok")
        await store.write(branches.delete, await store.message("ana", answer))
        await store.finish(answer, Ending("late", "done", "stop", None, USAGE))
        return await store.read(lambda db: db.execute("SELECT rowid FROM message_index").fetchall())

    assert run(path, scenario) == [(1,)]
