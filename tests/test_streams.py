"""The event log under readers that come late, leave, come back or are slow; and the bytes of server-sent events."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import TypeVar

import pytest

from server.engine.sequence import Event, Finished, TextDelta, Usage
from server.errors import ShuttingDown
from server.sse import PING, RETRY, SSEResponse, sse
from server.streams import RUN, EventLog, Streams, frames

T = TypeVar("T")
END = Finished("stop", Usage(n_prompt=3, n_completion=2, n_reused=0, queue_s=0.0, prompt_s=0.1, decode_s=0.2))


async def collect(source: AsyncIterator[T]) -> list[T]:
    return [item async for item in source]


def encode(n: int, event: Event) -> bytes:
    return sse(event.text if isinstance(event, TextDelta) else event.reason, id=n)


def finished_log(*texts: str) -> EventLog:
    log = EventLog(asyncio.get_running_loop())
    for text in texts:
        log.append(TextDelta(text))
    log.append(END)
    return log


@pytest.mark.parametrize("after", range(5))
def test_a_reader_gets_exactly_what_came_after_its_number(after: int) -> None:
    async def scenario() -> list[tuple[int, Event]]:
        return await collect(finished_log("a", "b", "c").subscribe(after=after))

    everything = [(1, TextDelta("a")), (2, TextDelta("b")), (3, TextDelta("c")), (4, END)]
    assert asyncio.run(scenario()) == everything[after:]


def test_readers_that_come_at_any_time_see_the_same_events_in_order() -> None:
    async def scenario() -> list[list[tuple[int, Event]]]:
        log = EventLog(asyncio.get_running_loop())
        readers: list[asyncio.Task[list[tuple[int, Event]]]] = []
        for number in range(20):
            readers.append(asyncio.create_task(collect(log.subscribe())))
            log.append(TextDelta(str(number)))
            await asyncio.sleep(0)
        log.append(END)
        return await asyncio.gather(*readers)

    seen = asyncio.run(scenario())
    assert all(events == seen[0] for events in seen)
    assert [n for n, _ in seen[0]] == list(range(1, 22))


def test_events_from_the_engine_thread_arrive_in_order_while_a_reader_waits() -> None:
    async def scenario() -> tuple[str, list[int]]:
        log = Streams().open("x")

        def engine() -> None:
            for number in range(500):
                log.sink(TextDelta(f"{number} "))
            log.sink(END)

        thread = threading.Thread(target=engine)
        thread.start()
        events = await collect(log.subscribe())
        thread.join()
        assert log.finished == END and log.ended
        return log.text, [n for n, _ in events]

    text, numbers = asyncio.run(scenario())
    assert text == "".join(f"{number} " for number in range(500))
    assert numbers == list(range(1, 502))


def test_a_reader_that_leaves_in_the_middle_disturbs_nobody() -> None:
    async def scenario() -> list[tuple[int, Event]]:
        log = EventLog(asyncio.get_running_loop())
        leaving, staying = (asyncio.create_task(collect(log.subscribe())) for _ in range(2))
        log.append(TextDelta("a"))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        log.append(END)
        return await staying

    assert asyncio.run(scenario()) == [(1, TextDelta("a")), (2, END)]


def test_the_sink_is_harmless_after_the_loop_has_gone() -> None:
    async def scenario() -> EventLog:
        return EventLog(asyncio.get_running_loop())

    log = asyncio.run(scenario())
    log.sink(TextDelta("nobody hears this"))
    assert log.last == 0


def test_a_second_terminal_event_is_a_mistake() -> None:
    async def scenario() -> None:
        finished_log().append(END)

    with pytest.raises(AssertionError, match="exactly one terminal event"):
        asyncio.run(scenario())


@pytest.mark.parametrize("seen", [0, 3, 57, RUN + 1, RUN + 2])
def test_a_resumed_answer_begins_anew_for_whoever_saw_any_event_of_an_earlier_run(seen: int) -> None:
    async def scenario() -> list[tuple[int, Event]]:
        streams = Streams()
        first = streams.open("x")
        first.append(TextDelta("a", (1,)))
        with pytest.raises(AssertionError, match="is being written"):
            streams.open("x", n_resumed=1)
        first.append(END)
        log = streams.open("x", n_resumed=1)
        log.append(TextDelta("a", (1,)))
        log.append(TextDelta("b", (2, 3)))
        log.append(END)
        assert (log.text, log.tokens, streams.get("x")) == ("ab", [1, 2, 3], log)
        return await collect(log.subscribe(after=seen))

    everything = [(RUN + 1, TextDelta("a", (1,))), (RUN + 2, TextDelta("b", (2, 3))), (RUN + 3, END)]
    assert asyncio.run(scenario()) == everything[max(0, seen - RUN) :]


def test_shutdown_ends_all_readers_and_keeps_what_comes_later() -> None:
    async def scenario() -> tuple[list[tuple[int, Event]], str]:
        streams = Streams()
        log = streams.open(1)
        reader = asyncio.create_task(collect(log.subscribe()))
        log.append(TextDelta("a"))
        await asyncio.sleep(0)
        streams.close()
        seen = await reader
        log.append(TextDelta("b"))
        log.append(END)
        with pytest.raises(ShuttingDown):
            streams.open(2)
        return seen, log.text

    assert asyncio.run(scenario()) == ([(1, TextDelta("a"))], "ab")


def test_the_registry_keeps_running_answers_and_the_last_finished_ones() -> None:
    async def scenario() -> list[int]:
        streams = Streams(n_keep=2)
        streams.open(0)
        for number in range(1, 6):
            streams.open(number).append(END)
        streams.open(6)
        return [number for number in range(8) if streams.get(number)]

    assert asyncio.run(scenario()) == [0, 4, 5, 6]


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_data_of_several_lines_stays_one_event(line_end: str) -> None:
    assert sse(f"a{line_end}b{line_end}", id=7, event="delta") == b"event: delta\nid: 7\ndata: a\ndata: b\ndata: \n\n"


def test_a_plain_event_is_one_line_of_utf8() -> None:
    assert sse("麻雀") == "data: 麻雀\n\n".encode()


def test_frames_catch_up_in_one_chunk_and_go_on_from_any_number() -> None:
    async def scenario(after: int) -> list[bytes]:
        return await collect(frames(finished_log("a", "b"), encode, after=after))

    assert asyncio.run(scenario(0)) == [RETRY, b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: stop\n\n"]
    assert asyncio.run(scenario(2)) == [RETRY, b"id: 3\ndata: stop\n\n"]
    assert asyncio.run(scenario(3)) == [RETRY]


def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    async def scenario() -> list[bytes]:
        log = EventLog(asyncio.get_running_loop())
        reader = asyncio.create_task(collect(frames(log, encode, ping_s=0.02)))
        await asyncio.sleep(0.05)
        log.append(END)
        return await reader

    chunks = asyncio.run(scenario())
    assert chunks[0] == RETRY and chunks[-1] == b"id: 1\ndata: stop\n\n"
    assert chunks[1:-1] and set(chunks[1:-1]) == {PING}


def test_no_cache_and_no_proxy_holds_the_stream_back() -> None:
    headers = SSEResponse(iter([b""])).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
