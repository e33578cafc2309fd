"""The engine's thread: events in order, one terminal event each whatever happens, slots that survive it."""

from __future__ import annotations

import queue
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.chat import Chat, ChatMessage
from server.engine.admission import MAX_QUEUE
from server.engine.engine import Engine
from server.engine.llama import DecodeStatus
from server.engine.loader import open_engine
from server.engine.request import EMIT_S, Handle, Request
from server.engine.sampler import SamplerChain
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Batch
from server.engine.sequence import Event, Finished, Progress, TextDelta
from server.engine.text import TextStream
from server.errors import ContextOverflow, EngineFailed, InvalidField, QueueFull, ShuttingDown
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


def test_who_comes_a_moment_later_is_read_together_with_the_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.inbox.GATHER_S", 1.0)
    monkeypatch.setattr("server.engine.inbox.GATHER_MOST_S", 1.5)
    sizes = batch_sizes(engine, monkeypatch)
    first = ask(engine, "hello")
    time.sleep(0.1)  # the engine is awake, and waits
    for reader in (first, ask(engine, "howdy")):
        reader.wait()
    assert set(sizes) == {2}


def test_whose_prompt_is_being_made_is_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.inbox.GATHER_MOST_S", 10.0)
    sizes = batch_sizes(engine, monkeypatch)
    with engine.expecting():
        first = ask(engine, "hello")
        time.sleep(0.3)
        assert not sizes
        second = ask(engine, "howdy")
    for reader in (first, second):
        reader.wait()
    assert set(sizes) == {2}


def test_nobody_is_waited_for_long(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = batch_sizes(engine, monkeypatch)
    with engine.expecting():
        ask(engine, "hello").wait()
    assert set(sizes) == {1}


def batch_sizes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each step by how many answers had a part in it."""
    sizes: list[int] = []
    compute = engine._compute

    def noting(batch: Batch) -> DecodeStatus:
        sizes.append(len(batch.spans))
        return compute(batch)

    monkeypatch.setattr(engine, "_compute", noting)
    return sizes


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
    readers = [ask(engine, "x", replace(GREEDY, max_tokens=1)) for _ in range(MAX_QUEUE + 3)]
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


@pytest.mark.parametrize("max_tokens", [3, 0])
def test_a_mistake_before_anybody_has_a_slot_ends_those_who_wait(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler.slots, "claim", lambda *_, **__: 1 / 0)
        finished = ask(engine, "x", replace(GREEDY, max_tokens=max_tokens)).wait()
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
        seen.append([replace(handle.progress(), left_s=None) for handle in handles])
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


GRAMMAR = r'root ::= word (" " word)*' + "\n" + r"word ::= [a-z]{2,9}"


@pytest.mark.parametrize(
    "more",
    [{"temperature": 0.0}, {"temperature": 0.7}, {"grammar": GRAMMAR, "logprobs": 2, "logit_bias": ((3, -5.0),)}],
    ids=["cold", "warm", "grammar"],
)
def test_guesses_change_the_number_of_steps_and_not_the_answer(
    demo: Engine, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """A model that repeats a text: with guesses it takes a fraction of the steps, and says the same."""
    text = "the cat sat near the window and looked at the birds in the garden until the sun went down behind the hill"
    messages = [ChatMessage("user", f"Repeat: {text}")]
    tokens = Chat(demo.chat_template, demo.vocab).prompt(messages)
    params = replace(SamplingParams(seed=1, repeat_penalty=1.0), **more)
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


def test_a_mistake_in_a_command_does_not_end_the_engine(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def mistake() -> None:
        raise ZeroDivisionError

    engine._command(mistake)
    assert ask(engine, "hello").wait().reason == "length"
    assert "what was asked of the engine failed" in caplog.text


def test_a_mistake_while_the_disk_is_looked_through_keeps_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistake(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine._snapshots, "fetch", mistake)
    assert ask(engine, "hello").wait().reason == "length"
    assert "on disk" in caplog.text


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


@pytest.mark.parametrize("stop", [(), ("\x00\x00\x00",), ("e",)])
def test_every_token_that_is_shown_comes_with_its_log_probability_once(engine: Engine, stop: tuple[str, ...]) -> None:
    params = replace(GREEDY, max_tokens=80, logprobs=3, stop=stop)
    deltas = list[TextDelta]()
    reader = ask(engine, "tell me", params)
    while reader.finished is None:
        event = reader.next()
        if isinstance(event, TextDelta):
            deltas.append(event)
    scored = [one for delta in deltas for one in delta.logprobs]
    assert [one.token for one in scored] == reader.tokens[: len(scored)]
    for delta in deltas:
        assert delta.logprobs, "text without its tokens"
        for one in delta.logprobs:
            assert one.piece == engine.vocab.piece(one.token) and one.logprob <= 0
            assert one.top[0][:2] == (one.token, one.piece), "greedy takes the first"
            assert one.top[0][2] == one.logprob >= one.top[1][2] >= one.top[2][2]
    said = TextStream().push(b"".join(one.piece for one in scored))
    assert said.startswith(reader.text.rstrip("\ufffd")) and len(said) - len(reader.text) <= 1
    plain = ask(engine, "tell me", replace(params, logprobs=None))
    plain.wait()
    assert plain.text == reader.text


def test_a_bias_for_a_token_that_is_not_there_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidField, match="logit_bias: 300 is no token"):
        ask(engine, "x", replace(GREEDY, logit_bias=((300, 1.0),)))


def test_a_bias_reaches_the_answer(engine: Engine) -> None:
    reader = ask(engine, "x", replace(GREEDY, logit_bias=((ord("Z"), 100.0),), max_tokens=5))
    assert reader.wait().reason == "length" and set(reader.tokens) == {engine.vocab.tokenize("Z")[0]}


def test_an_answer_follows_its_grammar_and_ends_with_it(engine: Engine) -> None:
    params = replace(GREEDY, grammar='root ::= "[" [0-9]{3} ("," [0-9]{3})? "]"', max_tokens=40, temperature=1.0)
    readers = [ask(engine, "x", replace(params, seed=seed, logprobs=1)) for seed in range(6)]
    for reader in readers:
        assert reader.wait().reason == "stop" and re.fullmatch(r"\[\d{3}(,\d{3})?\]", reader.text)
    said = readers[0].tokens[:3]
    rest = Reader()
    engine.submit(engine.vocab.tokenize("x"), params, rest, resume=said)
    assert rest.wait().reason == "stop"
    assert re.fullmatch(r"\[\d{3}(,\d{3})?\]", TextStream().push(b"".join(map(engine.vocab.piece, said))) + rest.text)


def test_what_a_trigger_begins_is_not_cut_by_a_stop_string(engine: Engine) -> None:
    (letter,) = engine.vocab.tokenize("z")
    params = replace(GREEDY, grammar='root ::= "zstop it"', grammar_trigger="z", stop=("op",), max_tokens=20)
    reader = ask(engine, "x", replace(params, logit_bias=((letter, 100.0),)))
    assert reader.wait().reason == "stop" and reader.text == "zstop it"


def test_a_grammar_that_is_none_is_refused_and_one_that_leads_nowhere_ends_its_answer_only(engine: Engine) -> None:
    for grammar, said in (("root ::= x", ()), ('root ::= "a"', engine.vocab.tokenize("b"))):
        with pytest.raises(InvalidField, match="grammar"):
            engine.submit([1], replace(GREEDY, grammar=grammar), Reader(), resume=said)
    other = ask(engine, "y", replace(GREEDY, max_tokens=100))
    biased = replace(GREEDY, logit_bias=((engine.vocab.tokenize("b")[0], 90.0),), max_tokens=100)
    for grammar, message in (
        ('root ::= "a" []', "leads nowhere"),
        ('root ::= "b" root "c" | "b" root "d" | "a"', "too many"),
    ):
        finished = ask(engine, "x", replace(biased, grammar=grammar)).wait()
        assert finished.reason == "error" and isinstance(finished.error, InvalidField)
        assert message in str(finished.error) and finished.error.param == "grammar"
    assert other.wait().reason == "length"
    assert ask(engine, "x").wait().reason == "length"
    engine.scheduler.check_integrity()


def ends(readers: list[Reader]) -> list[str]:
    return [reader.wait().reason for reader in readers]


def test_progress_is_right_from_the_moment_of_the_call(tiny_path: Path) -> None:
    """Nobody has read the inbox yet; with two slots the third waits for one, the fourth stands behind it."""
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=2, n_threads=1)
    readers = [Reader() for _ in range(4)]
    handles = [engine.submit(engine.vocab.tokenize("abc"), GREEDY, reader) for reader in readers]
    assert [handle.progress().place for handle in handles] == [0, 0, 1, 2]
    handles[0].cancel()
    engine.start()
    assert ends(readers) == ["cancelled", "length", "length", "length"]
    assert [handle.progress().place for handle in handles] == [0, 0, 0, 0] and not engine._forecast.coming
    engine.close()


def test_the_seconds_that_are_left_are_estimated(engine: Engine) -> None:
    ask(engine, "y" * 200).wait()
    block = threading.Event()
    engine._command(lambda: (block.wait(20), None)[1])
    handles = [engine.submit(engine.vocab.tokenize("x" * 200), GREEDY, Reader()) for _ in range(5)]
    left = [handle.progress().left_s for handle in handles]
    assert all(seconds is not None for seconds in left)
    assert (left[4] or 0) >= (left[3] or 0) > (left[0] or 0) >= 0
    for handle in handles:
        handle.cancel()
    block.set()


def test_several_answers_to_one_prompt_read_it_once(engine: Engine) -> None:
    prompt = engine.vocab.tokenize("q" * 100)
    params = [replace(GREEDY, temperature=1.0, seed=seed) for seed in range(5)]
    readers = [Reader() for _ in params]
    engine.submit_all(prompt, params, readers, client="me")
    assert ends(readers) == ["length"] * 5
    reused = [reader.finished.usage.n_reused for reader in readers if reader.finished]
    assert reused == [0, 99, 99, 99, 99]
    alone = [Reader() for _ in params]
    for each, reader in zip(params, alone, strict=True):
        engine.submit(prompt, each, reader)
        reader.wait()
    assert [reader.text for reader in readers] == [reader.text for reader in alone]


@pytest.mark.parametrize("n_cancelled", [1, 2])
def test_the_others_go_on_when_the_first_of_several_is_cancelled(engine: Engine, n_cancelled: int) -> None:
    readers = [Reader() for _ in range(4)]
    block = threading.Event()
    engine._command(lambda: (block.wait(20), None)[1])
    handles = engine.submit_all(engine.vocab.tokenize("q" * 100), [GREEDY] * 4, readers)
    for handle in handles[:n_cancelled]:
        handle.cancel()
    block.set()
    assert ends(readers) == ["cancelled"] * n_cancelled + ["length"] * (4 - n_cancelled)
    engine.scheduler.check_integrity()


def test_there_is_room_for_all_of_several_or_for_none(tiny_path: Path) -> None:
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=1, n_threads=1, n_queue=3)
    readers = [Reader() for _ in range(4)]
    engine.submit_all([1, 2], [GREEDY] * 2, readers[:2])
    with pytest.raises(QueueFull):
        engine.submit_all([1, 2], [GREEDY] * 3, [Reader() for _ in range(3)])
    engine.submit_all([1, 2], [GREEDY] * 2, readers[2:])
    engine.start()
    assert ends(readers) == ["length"] * 4
    engine.close()


def test_clients_take_turns(tiny_path: Path) -> None:
    """One slot: who asks eight times does not keep another waiting for longer than one answer."""
    engine = open_engine(tiny_path, n_ctx=N_CTX, n_slots=1, n_threads=1)
    order = list[str]()

    def reader(name: str) -> Reader:
        class Named(Reader):
            def __call__(self, event: Event) -> None:
                if isinstance(event, Finished):
                    order.append(name)
                super().__call__(event)

        return Named()

    readers = [(name, reader(name)) for name in "aaaaabcb"]
    for name, sink in readers:
        engine.submit(engine.vocab.tokenize(name * 9), replace(GREEDY, max_tokens=2), sink, client=name)
    engine.start()
    assert ends([sink for _, sink in readers]) == ["length"] * 8
    assert "".join(order) == "abcabaaa"
    engine.close()


def test_an_answer_that_takes_too_long_ends_with_what_it_has(tiny_path: Path) -> None:
    engine = open_engine(tiny_path, n_ctx=2048, n_slots=2, n_threads=1, answer_s=0.3)
    engine.start()
    readers = [ask(engine, "x", replace(GREEDY, max_tokens=2000)) for _ in range(3)]
    assert ends(readers) == ["time"] * 3
    for reader in readers:
        assert reader.finished and reader.tokens and len(reader.tokens) == reader.finished.usage.n_completion
    assert ask(engine, "x").wait().reason == "length"
    engine.scheduler.check_integrity()
    busy = [ask(engine, "y", replace(GREEDY, max_tokens=2000)) for _ in range(8)]
    draft = ask(engine, "what is read when nobody asks for anything", replace(GREEDY, max_tokens=0))
    assert draft.wait().reason == "time", "there is no such moment"
    ends(busy)
    engine.close()
