"""The engine's thread: events in order, one terminal event each whatever happens, slots that survive it."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.chat import Chat, ChatMessage
from server.engine.engine import MAX_WAITING, Engine
from server.engine.llama import DecodeStatus, SamplerChain
from server.engine.loader import open_engine
from server.engine.request import EMIT_S, Handle, Request
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch
from server.engine.sequence import Event, Finished, Progress, TextDelta
from server.engine.text import TextStream
from server.errors import ContextOverflow, EngineFailed, QueueFull, ShuttingDown
from tests.conftest import DEMO

N_CTX = 256
GREEDY = SamplingParams(temperature=0.0, repeat_penalty=1.0, ignore_eos=True, max_tokens=12)


class Reader:
    """A sink that can be waited for; it fails on anything after the terminal event."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self.text = ""
        self.tokens: list[int] = []
        self.finished: Finished | None = None

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def next(self) -> Event:
        assert self.finished is None
        event = self._events.get(timeout=20)
        if isinstance(event, TextDelta):
            assert event.text
            self.text += event.text
            self.tokens += event.tokens
        else:
            self.finished = event
        return event

    def wait(self) -> Finished:
        while self.finished is None:
            self.next()
        assert self._events.empty(), "something came after the end"
        return self.finished


@pytest.fixture
def engine(tiny_path: Path) -> Iterator[Engine]:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=3, n_threads=1)
    engine.start()
    yield engine
    engine.close()


def ask(engine: Engine, text: str, params: SamplingParams = GREEDY) -> Reader:
    reader = Reader()
    engine.submit(engine.vocab.tokenize(text), params, reader)
    return reader


def test_an_answer_of_twelve_tokens(engine: Engine) -> None:
    finished = ask(engine, "hello there").wait()
    assert finished.reason == "length" and finished.error is None
    assert (finished.usage.n_prompt, finished.usage.n_completion, finished.usage.n_reused) == (11, 12, 0)
    assert finished.usage.prompt_s >= 0 and finished.usage.decode_s >= 0


def test_text_is_handed_out_at_once_and_then_as_often_as_a_screen_shows_it(engine: Engine) -> None:
    began, reader = time.monotonic(), ask(engine, "Count", replace(GREEDY, max_tokens=150))
    sizes = list[int]()
    while reader.finished is None:
        sizes.append(-len(reader.tokens))
        reader.next()
        sizes[-1] += len(reader.tokens)
    *sizes, n_last = sizes
    assert n_last == 0 and 0 <= 150 - sum(sizes) < 4, "tokens that only begin a character go with the next text"
    assert sizes[0] < 4, "the first text waited"
    assert len(sizes) <= (time.monotonic() - began) / EMIT_S + 2  # the last one waits for nothing


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    params = SamplingParams(seed=3, max_tokens=30, temperature=1.0, ignore_eos=True)
    readers = [ask(engine, "abc", replace(params, seed=seed)) for seed in (3, 3, 4)]
    for reader in readers:
        reader.wait()
    assert readers[0].text == readers[1].text != readers[2].text


def test_a_stop_string_ends_the_answer_before_it(engine: Engine) -> None:
    whole = ask(engine, "q")
    whole.wait()
    stop = whole.text[3:5]
    reader = ask(engine, "q", replace(GREEDY, stop=(stop,)))
    assert reader.wait().reason == "stop"
    assert reader.text == whole.text[: whole.text.index(stop)]


def test_an_answer_that_reaches_the_end_of_the_context_ends_with_length(engine: Engine) -> None:
    reader = ask(engine, "x" * (N_CTX - 10), replace(GREEDY, max_tokens=None))
    finished = reader.wait()
    assert (finished.reason, finished.usage.n_completion) == ("length", 10)


def test_a_prompt_that_leaves_no_room_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(ContextOverflow, match=f"{N_CTX} tokens"):
        ask(engine, "x" * N_CTX)
    assert ask(engine, "x" * (N_CTX - 1)).wait().usage.n_completion == 1


def test_an_answer_goes_on_behind_any_of_its_tokens_without_a_seam(engine: Engine) -> None:
    """Also in the middle of a character: this random model writes many that take several tokens."""
    prompt, params = engine.vocab.tokenize("go on"), replace(GREEDY, max_tokens=40, stop=("\x00\x00",))
    whole = Reader()
    engine.submit(prompt, params, whole)
    whole.wait()
    for n in range(1, len(whole.tokens)):
        shown = TextStream(params.stop).push(b"".join(map(engine.vocab.piece, whole.tokens[:n])))
        rest = Reader()
        engine.submit(prompt, replace(params, max_tokens=40 - n), rest, resume=whole.tokens[:n])
        assert rest.wait().reason == whole.finished.reason if whole.finished else False
        assert shown + rest.text == whole.text


def test_cancel_ends_it_once_and_frees_the_slot(engine: Engine) -> None:
    reader = Reader()
    handle = engine.submit(engine.vocab.tokenize("long"), replace(GREEDY, max_tokens=200), reader)
    reader.next()
    handle.cancel()
    handle.cancel()
    assert reader.wait().reason == "cancelled"
    handle.cancel()
    assert ask(engine, "next").wait().reason == "length"
    assert not engine.scheduler.running


def test_the_next_turn_reuses_the_slot(engine: Engine) -> None:
    first = ask(engine, "a long beginning of a conversation")
    first.wait()
    second = ask(engine, "a long beginning of a conversation, and more")
    assert second.wait().usage.n_reused >= len("a long beginning of a conversation")


def test_a_full_queue_says_when_to_come_back(engine: Engine) -> None:
    block = threading.Event()
    engine._command(lambda: (block.wait(20), None)[1])
    readers = [ask(engine, "x", replace(GREEDY, max_tokens=1)) for _ in range(MAX_WAITING + 3)]
    with pytest.raises(QueueFull) as caught:
        ask(engine, "one too many")
    assert 1 <= caught.value.retry_after <= 60
    block.set()
    assert {reader.wait().reason for reader in readers} == {"length"}


def test_close_ends_every_answer_and_refuses_new_ones(tiny_path: Path) -> None:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=1, n_threads=1)
    engine.start()
    readers = [ask(engine, "x", replace(GREEDY, max_tokens=200)) for _ in range(3)]
    readers[0].next()
    engine.close()
    for reader in readers:
        finished = reader.wait()
        assert finished.reason == "length" or isinstance(finished.error, ShuttingDown)
    assert isinstance(readers[2].finished, Finished) and readers[2].finished.reason == "error"
    with pytest.raises(ShuttingDown):
        ask(engine, "late")


@pytest.mark.parametrize("status", [DecodeStatus.FAILED, DecodeStatus.NO_SLOT])
def test_a_computation_that_fails_ends_its_answers_and_the_engine_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, status: DecodeStatus
) -> None:
    decode = engine._context.decode
    n_calls = 0

    def failing(batch: Batch) -> DecodeStatus:
        nonlocal n_calls
        n_calls += 1
        return status if n_calls == 3 else decode(batch)

    monkeypatch.setattr(engine._context, "decode", failing)
    finished = ask(engine, "x").wait()
    assert finished.reason == "error" and isinstance(finished.error, EngineFailed)
    assert ask(engine, "x").wait().reason == "length"


def test_cancel_breaks_a_prompt_off_and_the_next_one_goes_on_from_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes while the second chunk computes: no third one is begun."""
    decode, seen = engine._context.decode, list[DecodeStatus]()
    reader, text = Reader(), "y" * 240

    def counting(batch: Batch) -> DecodeStatus:
        if len(seen) == 1:
            handle.cancel()
        seen.append(decode(batch))
        return seen[-1]

    monkeypatch.setattr(engine._context, "decode", counting)
    handle = engine.submit(engine.vocab.tokenize(text), GREEDY, reader)
    assert reader.wait().reason == "cancelled"
    assert seen == [DecodeStatus.OK, DecodeStatus.INTERRUPTED]
    finished = ask(engine, text, replace(GREEDY, max_tokens=1)).wait()
    assert finished.reason == "length" and finished.usage.n_reused == engine._context.n_batch
    engine.scheduler.check_integrity()


def test_a_request_tells_its_place_and_how_much_of_its_prompt_is_read(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=1, n_threads=1)
    decode, seen = engine._context.decode, list[list[Progress]]()
    handles = list[Handle]()

    def watching(batch: Batch) -> DecodeStatus:
        seen.append([handle.progress() for handle in handles])
        return decode(batch)

    monkeypatch.setattr(engine._context, "decode", watching)
    readers = [Reader() for _ in range(3)]
    for text, reader in zip("abc", readers, strict=True):
        handles.append(engine.submit(engine.vocab.tokenize(text * 200), GREEDY, reader))
    engine.start()
    for reader in readers:
        reader.wait()
    assert seen[0] == [Progress(0, 0, 200), Progress(1, 0, 200), Progress(2, 0, 200)]
    assert seen[1][0] == Progress(0, engine._context.n_batch, 200), "a chunk is read"
    assert seen[-1] == [Progress(0, 200, 200)] * 3, "the last step's sampled tokens are no part of the prompt"
    engine.close()


def test_a_draft_gives_way_at_once_and_is_read_in_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question arrives while a draft is read: the draft's chunk is broken off, and read after the answer."""
    decode, seen = engine._context.decode, list[tuple[bool, DecodeStatus]]()
    readers: list[Reader] = []

    def watching(batch: Batch) -> DecodeStatus:
        if not seen:
            readers.append(ask(engine, "a question"))
        seen.append((batch.spans[0].sequence.is_draft, decode(batch)))
        return seen[-1][1]

    monkeypatch.setattr(engine._context, "decode", watching)
    draft = ask(engine, "d" * 200, replace(GREEDY, max_tokens=0))
    finished = draft.wait()
    assert (finished.reason, finished.usage.n_completion, draft.text) == ("length", 0, "")
    assert readers[0].wait().reason == "length"
    assert seen[0] == (True, DecodeStatus.INTERRUPTED)
    assert [is_draft for is_draft, _ in seen[1:]] == [False] * 12 + [True] * 4
    assert ask(engine, "d" * 200 + "!").wait().usage.n_reused == 200


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    engine = open_engine(DEMO, n_ctx=1024, n_slots=2)
    engine.start()
    yield engine
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_change_the_number_of_steps_and_not_the_answer(
    demo: Engine, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """A model that repeats a text: with guesses it takes a fraction of the steps, and says the same."""
    text = "the cat sat near the window and looked at the birds in the garden until the sun went down behind the hill"
    messages = [ChatMessage("user", f"Repeat: {text}")]
    tokens = Chat(demo.chat_template, demo.vocab).prompt(messages)
    params = SamplingParams(temperature=temperature, seed=1, repeat_penalty=1.0)
    decode, n_steps, texts = demo._context.decode, [0, 0], list[str]()
    for at, n in enumerate((0, demo._context.n_guesses)):

        def counting(batch: Batch, at: int = at) -> DecodeStatus:
            n_steps[at] += 1
            return decode(batch)

        monkeypatch.setattr(demo._context, "decode", counting)
        monkeypatch.setattr(demo._context, "n_guesses", n)
        reader = Reader()
        demo.submit(tokens, params, reader)
        reader.wait()
        texts.append(reader.text)
    assert texts == [text, text]
    assert n_steps[1] < n_steps[0] / 2


def test_a_bug_in_a_step_ends_its_answers_and_the_engine_lives(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SamplerChain, "sample", lambda *_: 1 // 0)
        finished = ask(engine, "x").wait()
        assert finished.reason == "error" and "try again" in str(finished.error)
    assert "ZeroDivisionError" in caplog.text
    assert ask(engine, "x").wait().reason == "length"


def test_a_receiver_that_raises_does_not_harm_the_others(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_event: Event) -> None:
        raise RuntimeError("reader is gone")

    engine.submit(engine.vocab.tokenize("x"), GREEDY, broken)
    assert ask(engine, "y").wait().reason == "length"


def test_two_hundred_requests_with_cancels_end_once_each(engine: Engine) -> None:
    rng = random.Random(5)
    alone = {text: ask(engine, text) for text in ("ab", "abc", "xyz", "a" * 60)}
    for reader in alone.values():
        reader.wait()
    live: list[tuple[str, Reader]] = []
    for _ in range(200):
        text = rng.choice(list(alone))
        reader = Reader()
        handle = engine.submit(engine.vocab.tokenize(text), GREEDY, reader)
        live.append((text, reader))
        if rng.random() < 0.3:
            handle.cancel()
        if len(live) > 20:
            live.pop(0)[1].wait()
    for text, reader in live:
        if reader.wait().reason == "length":
            assert len(reader.text) == len(alone[text].text)
    assert not engine.scheduler.has_work
    engine.scheduler.check_integrity()


def test_guesses_and_a_prompt_fit_into_one_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt is read beside an answer that is guessed at: the rows of both are no more than a batch has."""
    monkeypatch.setattr(Request, "guesses", lambda _self, n_most: [1] * n_most)
    monkeypatch.setattr(engine._pace, "_budget_s", 1000.0)
    reader = ask(engine, "x", replace(GREEDY, max_tokens=200))
    reader.next()
    assert ask(engine, "y" * 250, replace(GREEDY, max_tokens=1)).wait().reason == "length"
    assert reader.wait().reason == "length"
