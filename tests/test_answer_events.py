"""An answer's events: numbered frames that are made once, what is heard before the first word, and at the end."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from server.answer_events import Waiting, frames, stats
from server.answer_frames import N_KEEP, Frames
from server.engine.sequence import Finished, TextDelta, Usage
from server.markdown import render
from server.records import Message
from server.sse import PING, RETRY
from server.streams import RUN, AnswerLog
from tests.answer_page import AnswerPage
from tests.page_reader import events

TEXT = "# One\n\ntwo **three** four\n- five\n- six\n\n```py\nx = 1\n```\n" * 5
USAGE = Usage(n_prompt=40, n_completion=21, n_reused=30, queue_s=0.5, prompt_s=0.25, decode_s=2.0)
ANSWER = Message(
    id=7,
    conversation_id="c",
    parent_id=None,
    role="assistant",
    content="",
    status="streaming",
    created_at=0.0,
    finish_reason=None,
    n_resumed=0,
    n_dropped=2,
    failure=None,
    usage=None,
)


class Reader:
    """A browser: its page, and the number that it comes back with."""

    def __init__(self) -> None:
        self.page = AnswerPage()
        self.last = 0
        self.n_resets = 0
        self.end: Any = None

    def take(self, chunk: bytes) -> None:
        for event, id, data in events(chunk.decode()):
            self.page.take(event, data)
            self.last = int(id)
            self.n_resets += event == "reset"
            self.end = data if event == "end" else self.end


def test_whoever_comes_back_after_any_frame_has_the_same_page() -> None:
    made, steady = Frames(), Reader()
    cut: list[Reader] = []
    for at in range(0, len(TEXT), 3):
        made.push(TEXT[at : at + 3])
        steady.take(made.since(steady.last))
        assert (steady.page.settled, steady.page.open, steady.last) == (*_html(made), made.last)
        leaving = Reader()
        leaving.take(made.since(0))
        cut.append(leaving)
    made.flush()
    made.close({"status": "done"})
    for reader in [steady, *cut]:
        reader.take(made.since(reader.last))
        assert reader.page.settled == render(TEXT) and reader.page.open == "" and reader.end == {"status": "done"}
        assert made.since(reader.last) == b""
    assert steady.n_resets == 0 and cut[0].n_resets == 1 and cut[-1].n_resets == 1


def _html(made: Frames) -> tuple[str, str]:
    return made.view.settled, made.view.open


def test_a_page_that_is_loaded_at_the_very_end_still_hears_it() -> None:
    made = Frames()
    made.push("Hi")
    made.flush()
    made.close({"status": "done"})
    assert [event for event, _, _ in events(made.since(made.view.after).decode())] == ["end"]


def test_only_the_last_frames_stay_and_who_is_further_behind_gets_all_anew() -> None:
    made = Frames()
    for _ in range(3 * N_KEEP):
        made.push("word ")
    assert made.last == 3 * N_KEEP
    assert len(events(made.since(2 * N_KEEP).decode())) == N_KEEP
    for n in (0, 5, 2 * N_KEEP - 1, made.last + 1, 10**15):
        ((event, id, data),) = events(made.since(n).decode())
        assert (event, int(id)) == ("reset", made.last) and data["open"].count("word") == 3 * N_KEEP


@pytest.mark.parametrize("seen", [0, 3, 57, RUN, RUN + 1, RUN + 2, RUN + 99])
def test_a_run_that_goes_on_begins_with_all_that_was_written(seen: int) -> None:
    made = Frames(RUN)
    made.push("Once upon")
    made.push(" a time")
    reader = Reader()
    reader.page = AnswerPage(open=made.view.open.replace(" a time", "")) if seen == RUN + 1 else AnswerPage()
    reader.take(made.since(seen))
    if seen != RUN + 2:
        assert reader.page.text == "Once upon a time" and reader.last == RUN + 2
    assert reader.n_resets == (seen not in (RUN + 1, RUN + 2))


def test_a_run_that_goes_on_from_nothing_still_says_so() -> None:
    made = Frames(RUN)
    made.push("")
    assert events(made.since(0).decode()) == [
        ("reset", str(RUN + 1), {"settled": "", "open": '<span class="tail"></span>'})
    ]


def test_text_becomes_html_once_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    push = Frames.push

    def noted(frames: Frames, text: str) -> None:
        pushed.append(text)
        push(frames, text)

    monkeypatch.setattr(Frames, "push", noted)

    async def scenario() -> list[bytes]:
        log = AnswerLog(asyncio.get_running_loop())
        log.append(TextDelta("a lot "))
        log.append(TextDelta("before anybody listens, "))
        readers = [asyncio.create_task(_collect(frames(log, ANSWER))) for _ in range(5)]
        for word in ("one ", "two ", "three"):
            await asyncio.sleep(0.01)
            log.append(TextDelta(word))
        log.append(Finished("stop", USAGE))
        return [b"".join(chunks) for chunks in await asyncio.gather(*readers)]

    streams = asyncio.run(scenario())
    assert pushed == ["a lot before anybody listens, ", "one ", "two ", "three"]
    assert len(set(streams)) == 1
    reader = Reader()
    reader.take(streams[0])
    assert reader.page.text == "a lot before anybody listens, one two three" and reader.page.open == ""
    assert reader.end == {
        "status": "done",
        "reason": "stop",
        "error": None,
        "dropped": 2,
        "stats": {"n_prompt": 40, "n_reused": 30, "n_completion": 21, "first_token_s": 0.75, "tokens_per_s": 10.5},
    }


async def _collect(source: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in source]


def test_what_comes_while_a_slow_reader_takes_a_chunk_is_not_lost() -> None:
    async def scenario() -> bytes:
        log = AnswerLog(asyncio.get_running_loop())
        log.append(TextDelta("One, "))
        stream = b""
        async for chunk in frames(log, ANSWER):
            stream += chunk
            if b"One" in chunk and not log.finished:
                log.append(TextDelta("two"))
                log.append(Finished("stop", USAGE))
        return stream

    reader = Reader()
    reader.take(asyncio.run(scenario()))
    assert reader.page.text == "One, two" and reader.end["status"] == "done"


def test_an_answer_that_never_came_to_the_engine_has_no_numbers() -> None:
    assert stats(None) is None and stats(Usage(0, 0, 0, 0.0, 0.0, 0.0)) is None
    assert stats(replace(USAGE, n_completion=0, decode_s=0.0))["tokens_per_s"] == 0.0  # type: ignore[index]


@dataclass(frozen=True)
class Progress:
    place: int
    n_done: int
    n_prompt: int
    left_s: float | None = None
    loading_s: float | None = None


def test_the_wait_is_told_until_the_first_word_comes() -> None:
    async def scenario() -> str:
        log = AnswerLog(asyncio.get_running_loop())
        steps = [Progress(2, 0, 100), Progress(2, 0, 100), None, Progress(0, 25, 100), Progress(0, 50, 100)]
        log.reading = lambda: steps.pop(0)
        reader = asyncio.create_task(_collect(frames(log, ANSWER, ping_s=0.02)))
        while steps:
            await asyncio.sleep(0.005)
        log.append(TextDelta("Now"))
        log.append(Finished("stop", USAGE))
        return b"".join(await reader).decode()

    stream = asyncio.run(scenario())
    told = [json.loads(data) for data in re.findall(r"event: wait\ndata: (.*)\n\n", stream)]
    assert [(news["queue"], news["read"]) for news in told] == [(2, 0.0), (0, 0.25), (0, 0.5)]
    assert [news["left_s"] is None for news in told] == [True, True, False]
    assert PING.decode() in stream, "the same twice, or nothing known: a sign of life"
    assert [event for event, _, _ in events(stream)] == ["delta", "delta", "end"]


def test_a_model_that_wakes_up_is_told_with_the_time_that_it_takes() -> None:
    async def scenario() -> Any:
        log = AnswerLog(asyncio.get_running_loop())
        log.reading = lambda: Progress(0, 0, 900, loading_s=3.21)
        return Waiting(log).news(0.0)

    assert asyncio.run(scenario()) == {"loading": True, "left_s": 3.2}


def test_the_time_that_is_left_is_told_from_the_speed_of_reading() -> None:
    async def scenario() -> list[Any]:
        log = AnswerLog(asyncio.get_running_loop())
        waiting = Waiting(log)
        told = []
        for now, progress in enumerate([None, Progress(1, 0, 900), Progress(0, 100, 900), Progress(0, 300, 900)] * 2):
            log.reading = lambda progress=progress: progress  # type: ignore[misc]
            told.append(waiting.news(float(now)))
        return told

    told = asyncio.run(scenario())
    assert told[:4] == [
        None,
        {"queue": 1, "read": 0.0, "left_s": None},
        {"queue": 0, "read": 0.111, "left_s": None},
        {"queue": 0, "read": 0.333, "left_s": 3.0},
    ]


def test_what_the_engine_expects_is_told_also_in_the_queue() -> None:
    """It knows who else is there; the speed of reading alone does not."""

    async def scenario() -> list[Any]:
        log, told = AnswerLog(asyncio.get_running_loop()), []
        waiting = Waiting(log)
        for now, progress in enumerate([Progress(2, 0, 900, 12.34), Progress(0, 100, 900, 5.0)]):
            log.reading = lambda progress=progress: progress  # type: ignore[misc]
            told.append(waiting.news(float(now)))
        return told

    assert [news["left_s"] for news in asyncio.run(scenario())] == [12.3, 5.0]


def test_a_silent_answer_is_kept_alive_and_shutdown_lets_its_readers_go() -> None:
    async def scenario() -> list[bytes]:
        log = AnswerLog(asyncio.get_running_loop())
        reader = asyncio.create_task(_collect(frames(log, ANSWER, ping_s=0.01)))
        await asyncio.sleep(0.05)
        log.append(TextDelta("a"))
        await asyncio.sleep(0)
        log.close()
        return await reader

    first, *rest = asyncio.run(scenario())
    assert first == RETRY and rest[0] == PING
    assert b"event: delta" in rest[-1] and b"event: end" not in rest[-1]
