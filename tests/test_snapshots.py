"""Conversations outlive the process: exactly, within the quota, and whatever has happened to their files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine import snapshots as module
from server.engine.archive import Archive
from server.engine.engine import Engine
from server.engine.llama import Context, Model
from server.engine.loader import open_engine
from server.engine.prefix import MIN_RESTORE, SLIGHT, Ids, SlotTable, n_common
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.snapshots import Snapshots
from tests.fakes import FakeMemory
from tests.server_process import ServerProcess
from tests.test_archive import files, ids, payload
from tests.test_engine import GREEDY, ask
from tests.test_equivalence import N_CTX as N_EXACT
from tests.test_equivalence import N_NEW, N_SLOTS, alone, new_context, step
from tests.tiny_model import write_tiny_model

N_CTX = 512


class FakeShelf:
    """Snapshots as token lists."""

    def __init__(self, memory: FakeMemory) -> None:
        self.memory = memory
        self.saved: list[Ids] = []
        self.is_broken = False

    def n_common(self, tokens: Ids) -> int:
        return max((n_common(one, tokens) for one in self.saved), default=0)

    def restore(self, slot: int, tokens: Ids) -> Ids | None:
        if self.is_broken:
            self.saved.clear()
            return None
        best = max(self.saved, key=lambda one: n_common(one, tokens))
        self.memory.tokens[slot] = best.tolist()
        return best


def table(n_slots: int = 2, can_truncate: bool = True) -> tuple[SlotTable, FakeMemory, FakeShelf]:
    memory = FakeMemory(n_slots, can_truncate=can_truncate)
    shelf = FakeShelf(memory)
    return SlotTable(n_slots, 1000, memory, shelf), memory, shelf


def use(slots: SlotTable, memory: FakeMemory, tokens: list[int], is_draft: bool = False) -> int:
    """Claim, read and release; returns how many tokens were at hand."""
    slot, n_past = slots.claim(tokens)
    memory.tokens[slot] += tokens[n_past:]
    slots.extend(slot, tokens[n_past:])
    slots.check_integrity()
    slots.release(slot, is_draft)
    return n_past


def test_a_snapshot_is_restored_where_it_saves_enough() -> None:
    slots, memory, shelf = table()
    shelf.saved = [ids(range(200)), ids(range(50), range(700, 900))]
    assert use(slots, memory, [*range(150), 999]) == 150
    assert use(slots, memory, [*range(150), 999, 998]) == 151, "the slot holds as much as the snapshot"
    assert use(slots, memory, [*range(50), *range(700, 900)]) == 249, "one token has to be evaluated"
    slots.reset()
    assert use(slots, memory, [*range(MIN_RESTORE - 1), 5]) == 0, "reading so few is quicker"


def test_a_restore_throws_no_other_conversation_out_while_a_slot_is_empty() -> None:
    slots, memory, shelf = table()
    shelf.saved = [ids(range(100), range(500, 600)), ids(range(100), range(700, 800))]
    assert use(slots, memory, [*range(100), *range(500, 600), 1]) == 200
    assert use(slots, memory, [*range(100), *range(700, 800), 1]) == 200
    assert sorted(map(len, memory.tokens)) == [201, 201]


def test_a_snapshot_that_can_not_be_loaded_is_read_anew() -> None:
    slots, memory, shelf = table()
    shelf.saved, shelf.is_broken = [ids(range(200))], True
    assert use(slots, memory, [*range(201)]) == 0
    slots, memory, shelf = table(can_truncate=False)
    shelf.saved = [ids(range(200))]
    assert use(slots, memory, [*range(201)]) == 200
    slots.reset()
    assert use(slots, memory, [*range(100), 7]) == 0, "an architecture that can't forget a part"


def test_each_slot_is_offered_once_after_each_use_and_only_if_it_is_worth_it() -> None:
    slots, memory, shelf = table()
    use(slots, memory, [*range(MIN_RESTORE - 1)])
    assert slots.next_unsaved(False) is None
    use(slots, memory, [*range(100)])
    found = slots.next_unsaved(False)
    assert found and found[1].tolist() == [*range(100)]
    assert slots.next_unsaved(True) is None, "it could not be saved, perhaps: not again and again"
    shelf.saved.append(found[1])
    use(slots, memory, [*range(120)])
    assert slots.next_unsaved(True) is None, "twenty tokens more are not worth a file"
    use(slots, memory, [*range(100 + MIN_RESTORE)])
    assert slots.next_unsaved(True) is not None


def test_a_draft_is_not_written_to_disk() -> None:
    """Nor does it keep the conversation before it from being saved, when it is given up."""
    slots, memory, _ = table()
    use(slots, memory, [*range(300, 500)], is_draft=True)
    assert slots.next_unsaved(True) is None
    use(slots, memory, [*range(100)])
    use(slots, memory, [*range(180)], is_draft=True)
    assert slots.next_unsaved(False) is None
    for n_draft, may_cut in ((180, True), (100 + SLIGHT, False)):
        use(slots, memory, [*range(n_draft)], is_draft=True)
        found = slots.next_unsaved(may_cut)
        assert found and found[1].tolist() == [*range(100)]
        slots.check_integrity()


def test_a_busy_slot_is_left_alone() -> None:
    slots, memory, _ = table()
    slot, _ = slots.claim([*range(100)])
    memory.tokens[slot] += range(100)
    slots.extend(slot, [*range(100)])
    assert slots.next_unsaved(True) is None


# --- with llama.cpp --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(write_tiny_model(tmp_path_factory.mktemp("exact") / "tiny.gguf", seed=1, dtype="F32"))
    yield model
    model.close()


def opened(
    memory: Context | FakeMemory, folder: Path, model: Path, quota: int = 10**8, settings: str = "f32"
) -> Snapshots:
    """Snapshots with their index read; the first time that hashes the model."""
    made = Snapshots(memory, folder, model, settings, N_EXACT, quota)  # type: ignore[arg-type]
    made.start()
    made._hash_unhashed()
    if made._job:
        made._job.join()
    return made


def run(context: Context, kept: Snapshots, prompts: list[list[int]], n_prefill: int) -> list[Sequence]:
    scheduler = Scheduler(N_SLOTS, N_EXACT, context, kept)
    sequences = [Sequence(prompt, len(prompt) + N_NEW) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
        while scheduler.has_work:
            step(scheduler, context, n_prefill)
    kept.close(scheduler.slots)
    scheduler.check_integrity()
    return sequences


@pytest.mark.parametrize("seed", range(10))
def test_restored_conversations_go_on_exactly_as_alone(exact_model: Model, tmp_path: Path, seed: int) -> None:
    """Save, restart, restore, continue: with f32 KV the same tokens, however far the next prompt agrees."""
    rng = random.Random(seed)
    first = [[rng.randrange(256) for _ in range(rng.randint(70, 90))] for _ in range(3)]
    context = new_context(exact_model)
    answers = [one.tokens for one in run(context, opened(context, tmp_path, exact_model.path), first, 40)]
    context.close()
    second = [answer[: rng.randint(66, len(answer))] + [rng.randrange(256) for _ in range(5)] for answer in answers]
    context = new_context(exact_model)
    again = run(context, opened(context, tmp_path, exact_model.path), second, rng.randint(1, 40))
    context.close()
    assert all(sequence.n_reused and sequence.n_reused >= MIN_RESTORE for sequence in again)
    assert [sequence.tokens for sequence in again] == alone(exact_model, second)


def test_damage_costs_time_and_nothing_else(exact_model: Model, tmp_path: Path) -> None:
    rng = random.Random(3)
    prompts = [[rng.randrange(256) for _ in range(90)]]
    expected = alone(exact_model, prompts)
    for _ in range(15):
        context = new_context(exact_model)
        run(context, opened(context, tmp_path, exact_model.path), prompts, 64)
        context.close()
        (path,) = files(tmp_path)
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw))])])
        context = new_context(exact_model)
        (after,) = run(context, opened(context, tmp_path, exact_model.path), prompts, 64)
        context.close()
        assert after.tokens == expected[0] and after.n_reused == 0


def test_what_llama_cpp_refuses_is_deleted_and_the_slot_is_empty(exact_model: Model, tmp_path: Path) -> None:
    """The checksums are right and the payload is of another number of slots: only the key keeps such a thing out."""
    context = new_context(exact_model)
    kept = opened(context, tmp_path, exact_model.path)
    assert kept._archive
    kept._archive.write(ids(range(100)), memoryview(bytes(5000)))
    (sequence,) = run(context, kept, [[*range(100), 3]], 64)
    assert sequence.n_reused == 0 and len(files(tmp_path)) == 1
    context.close()


def test_the_hash_is_known_at_the_second_start_and_another_model_or_setting_is_another_key(tmp_path: Path) -> None:
    folder, path = tmp_path / "kv", write_tiny_model(tmp_path / "m.gguf", seed=1)
    memory = FakeMemory(1)
    first = opened(memory, folder, path)
    assert first._job and first._archive
    first._archive.write(ids(range(100)), memoryview(payload(1)))
    second = opened(memory, folder, path)
    assert second._job is None and second.n_common(ids(range(100))) == 100
    assert opened(memory, folder, path, settings="f16").n_common(ids(range(100))) == 0 and not files(folder)
    second._archive.write(ids(range(100)), memoryview(payload(1)))  # type: ignore[union-attr]
    write_tiny_model(path, seed=2)
    assert opened(memory, folder, path).n_common(ids(range(100))) == 0 and not files(folder)
    (folder / "model-hash.json").write_text('{"hash": 5')
    assert opened(memory, folder, path)._archive


def test_a_quota_of_zero_deletes_and_keeps_nothing(tmp_path: Path) -> None:
    folder, path = tmp_path / "kv", write_tiny_model(tmp_path / "m.gguf")
    kept = opened(FakeMemory(1), folder, path)
    assert kept._archive
    kept._archive.write(ids(range(100)), memoryview(payload(1)))
    off = opened(FakeMemory(1), folder, path, quota=0)
    assert not files(folder) and off._archive is None and list(off.idle(SlotTable(1, 9, FakeMemory(1))))[-1] is None
    opened(FakeMemory(1), tmp_path / "never", path, quota=0)
    assert not (tmp_path / "never").exists()


def test_a_folder_that_can_not_be_used_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kv").write_text("a file")
    kept = opened(FakeMemory(1), tmp_path / "kv", write_tiny_model(tmp_path / "m.gguf"))
    assert kept.n_common(ids(range(9))) == 0 and len(caplog.records) == 1 and "read anew" in caplog.text


# --- with the engine -------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLED_S", 0.05)
    monkeypatch.setattr(module, "ABANDONED_S", 0.3)
    monkeypatch.setattr(module, "POLL_S", 0.01)


def started(path: Path, folder: Path) -> Engine:
    engine = open_engine(path, n_ctx=N_CTX, n_slots=2, n_threads=1, snapshots=folder, snapshot_bytes=10**8)
    engine.start()
    return engine


def wait_for_files(folder: Path, n: int) -> None:
    wait_until(lambda: len(list(folder.glob("*.kv"))) == n)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stamps(folder: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in files(folder)]


@pytest.mark.usefixtures("quick")
def test_an_idle_server_writes_each_conversation_once(tiny_path: Path, tmp_path: Path) -> None:
    engine = started(tiny_path, tmp_path)
    for text in ("a" * 100, "b" * 100):
        ask(engine, text).wait()
    wait_for_files(tmp_path, 2)
    before = stamps(tmp_path)
    time.sleep(0.5)
    ask(engine, "a" * 100 + "!").wait()
    time.sleep(0.5)
    engine.close()
    assert stamps(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_nothing_is_saved_while_anybody_waits(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations come and go for seconds; the first pause saves those that are still there."""
    engine, rng = started(tiny_path, tmp_path), random.Random(4)
    save, at_work = engine._context.save, list[bool]()

    def watching(slot: int) -> memoryview:
        at_work.append(engine.scheduler.has_work)
        return save(slot)

    monkeypatch.setattr(engine._context, "save", watching)
    live = [ask(engine, f"{n}" * 90) for n in range(2)]
    for _ in range(40):
        live.append(ask(engine, rng.choice("abc") * 90, replace(GREEDY, max_tokens=rng.randint(1, 30))))
        live.pop(0).wait()
    for reader in live:
        reader.wait()
    deadline = time.monotonic() + 10
    while not files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    engine.close()
    assert at_work and not any(at_work)


def test_the_servers_end_saves_and_the_next_start_restores(tiny_path: Path, tmp_path: Path) -> None:
    first = started(tiny_path, tmp_path)
    alone = ask(first, "c" * 200)
    alone.wait()
    first.close()
    second = started(tiny_path, tmp_path)
    again = ask(second, "c" * 200)
    assert again.wait().usage.n_reused == 199 and again.text == alone.text
    second.close()


def test_a_draft_is_given_up_for_what_was_said_before_it(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ABANDONED_S", 0.1)
    engine = started(tiny_path, tmp_path)
    ask(engine, "d" * 100).wait()
    ask(engine, "d" * 200, replace(GREEDY, max_tokens=0)).wait()
    wait_until(lambda: engine.stats().n_snapshots == 1)
    assert engine._snapshots._archive
    snapshot, _ = engine._snapshots._archive.match(np.array(engine.vocab.tokenize("d" * 200), dtype=np.int32))
    assert snapshot and len(snapshot.tokens) == 100, "the question, and nothing of the draft"
    engine.close()


def test_a_cancel_while_the_disk_is_read(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who waits for a slow disk holds nobody up, and may go away."""
    first = started(tiny_path, tmp_path)
    ask(first, "e" * 200).wait()
    first.close()
    engine, slow = started(tiny_path, tmp_path), threading.Event()
    monkeypatch.setattr(Archive, "fetch", lambda *_: slow.wait(20))
    waiting, patient = ask(engine, "e" * 200), ask(engine, "e" * 200)
    handle = engine.submit(engine.vocab.tokenize("e" * 201), GREEDY, cancelled := type(waiting)())
    assert ask(engine, "f").wait().reason == "length"
    handle.cancel()
    assert cancelled.wait().reason == "cancelled"
    slow.set()
    assert waiting.wait().usage.n_reused == patient.wait().usage.n_reused == 199
    engine.close()


def test_a_system_without_threads_costs_time_and_nothing_else(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container has a limit of them. Everybody waits for the engine's own one."""
    first = started(tiny_path, tmp_path)
    ask(first, "e" * 200).wait()
    first.close()
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name in ("snapshots", "fetch"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", none_left)
    engine = started(tiny_path, tmp_path)
    assert ask(engine, "e" * 200).wait().usage.n_reused == 199
    assert ask(engine, "h" * 200).wait().reason == "length"
    engine.close()
    assert "thread to save a conversation" in caplog.text
    (tmp_path / "model-hash.json").unlink()
    anew = started(tiny_path, tmp_path)
    assert ask(anew, "i" * 200).wait().reason == "length"
    anew.close()


def test_the_end_does_not_wait_for_a_slow_disk(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.2)
    engine, slow = started(tiny_path, tmp_path), threading.Event()
    assert ask(engine, "g" * 100).wait().reason == "length"
    monkeypatch.setattr(Archive, "write", lambda *_: slow.wait(20))
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 1.5
    slow.set()


# --- as a person meets it ------------------------------------------------------------------------------------


def test_the_next_turn_after_a_restart_finds_the_whole_history(tiny_path: Path, tmp_path: Path) -> None:
    flags = ["--model", str(tiny_path), "--ctx", "1024", "--data-dir", str(tmp_path)]
    messages = [{"role": "user", "content": "Tell me of sparrows. " * 20}]
    body = {"messages": messages, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with ServerProcess(flags) as server:
        reply = server.json("/v1/chat/completions", body)
        server.stop()
        assert len(list((tmp_path / "kv").glob("*.kv"))) == 1
        server.start()
        answer = reply["choices"][0]["message"]
        messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "And more?"}]
        usage = server.json("/v1/chat/completions", body)["usage"]
        assert "Traceback" not in server.output
    n_prompt = reply["usage"]["prompt_tokens"]
    n_question = len("And more?") + len("assistant\n")  # a letter is a token; how the answer closes may be kept, too
    assert n_prompt - 1 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] - n_question
