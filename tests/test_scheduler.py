"""Bookkeeping of sequences and slots: random lives, with everything compared after each step."""

from __future__ import annotations

import random

import pytest

from server.engine.chunks import in_groups
from server.engine.forecast import Forecast
from server.engine.pace import Pace
from server.engine.prefix import MIN_COPY, SlotTable
from server.engine.scheduler import MAX_OVERTAKEN, SHORT, Scheduler
from server.engine.sequence import Sequence
from tests.fakes import FakeMemory

N_CTX = 64
N_LONG = 4096


def make(n_slots: int = 2, n_shared: int = 10**9, can_truncate: bool = True) -> tuple[Scheduler, FakeMemory]:
    memory = FakeMemory(n_slots, n_shared, can_truncate)
    return Scheduler(n_slots, N_CTX, memory), memory


def step(scheduler: Scheduler, memory: FakeMemory, n_prefill: int = 8, token: int = 7) -> int:
    """One step that samples `token`; returns how many tokens were computed."""
    batch = scheduler.schedule(n_prefill)
    if not memory.decode(batch):
        assert scheduler.make_room()
        return 0
    scheduler.commit(batch, {sequence: [token] for _, sequence in batch.sampled_rows()})
    scheduler.check_integrity()
    return batch.n_tokens


def finish(scheduler: Scheduler, memory: FakeMemory, sequence: Sequence) -> None:
    while not sequence.n_completion:
        step(scheduler, memory)
    scheduler.remove(sequence)


def run_batch(scheduler: Scheduler, memory: FakeMemory) -> list[tuple[Sequence, int]]:
    batch = scheduler.schedule(8)
    assert memory.decode(batch)
    scheduler.commit(batch, {sequence: [5] for _, sequence in batch.sampled_rows()})
    return [(span.sequence, span.n_tokens) for span in batch.spans]


def test_beside_a_stream_a_long_prompt_is_cut_into_chunks_and_takes_turns_with_it() -> None:
    scheduler, memory = make()
    reader = Sequence([1, 2, 3], N_CTX)
    scheduler.add(reader)
    step(scheduler, memory)
    prompt = Sequence(range(10, 30), N_CTX)
    scheduler.add(prompt)
    turns = [run_batch(scheduler, memory) for _ in range(7)]
    assert turns[::2] == [[(reader, 1)]] * 3 + [[(reader, 1), (prompt, 1)]]
    assert turns[1::2] == [[(prompt, 8)], [(prompt, 8)], [(prompt, 4)]]


def add(scheduler: Scheduler, *prompts: range) -> list[Sequence]:
    sequences = [Sequence(prompt, N_LONG) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    return sequences


def make_long(n_slots: int) -> tuple[Scheduler, FakeMemory]:
    memory = FakeMemory(n_slots, 10**9, True)
    return Scheduler(n_slots, N_LONG, memory), memory


def test_people_who_come_together_are_read_together_and_stay_in_step() -> None:
    scheduler, memory = make(n_slots=4)
    sequences = [Sequence(range(n, n + 6), N_CTX) for n in (10, 20, 30, 40)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [run_batch(scheduler, memory) for _ in range(3)] == [[(each, 2) for each in sequences]] * 3
    assert run_batch(scheduler, memory) == [(each, 1) for each in sequences], "all have their first token"


def test_a_chunk_has_as_many_tokens_of_each_and_only_of_neighbours() -> None:
    scheduler, memory = make(n_slots=4)
    long_ago = Sequence(range(40, 44), N_CTX)
    scheduler.add(long_ago)
    while not long_ago.n_completion:
        run_batch(scheduler, memory)
    first, second, third = [Sequence(range(n, n + size), N_CTX) for n, size in ((100, 3), (200, 9), (300, 9))]
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert long_ago.slot == 0
    turns = [run_batch(scheduler, memory) for _ in range(4)]
    assert turns[1] == [(first, 2), (second, 2), (third, 2)]
    assert turns[2] == [(long_ago, 1), (first, 1)], "a prompt's last token is a row like any other"
    assert turns[3] == [(second, 4), (third, 4)]


@pytest.mark.parametrize(
    ("n_rows", "n_sequences", "n_left", "n_tokens"),
    [(64, 1, 64, 64), (64, 1, 30, 30), (30, 1, 99, 16), (15, 1, 99, 12), (3, 1, 99, 3), (30, 5, 60, 4), (64, 8, 60, 8)]
    + [(64, 7, 60, 8), (30, 2, 40, 8), (30, 8, 40, 2), (30, 7, 60, 4), (8, 3, 9, 2), (30, 5, 6, 6)],
)
def test_the_rows_of_a_chunk_come_in_full_groups(n_rows: int, n_sequences: int, n_left: int, n_tokens: int) -> None:
    assert in_groups(n_rows, n_sequences, n_left) == n_tokens <= n_rows // n_sequences


def test_where_the_last_token_stays_apart_no_chunk_has_it() -> None:
    memory = FakeMemory(2, 10**9, True)
    scheduler = Scheduler(2, N_CTX, memory, last_apart=True)
    one, other = Sequence(range(10, 16), N_CTX), Sequence(range(20, 26), N_CTX)
    draft = Sequence(range(10, 22), N_CTX, is_draft=True)
    for sequence in (one, other):
        scheduler.add(sequence)
    assert [run_batch(scheduler, memory) for _ in range(3)] == [
        [(one, 4), (other, 4)],
        [(one, 1), (other, 1)],
        [(one, 1), (other, 1)],
    ]
    assert one.n_completion == other.n_completion == 1
    scheduler.remove(one)
    scheduler.remove(other)
    scheduler.add(draft)
    assert run_batch(scheduler, memory) == [(draft, 6)], "nobody waits for a token of a draft: all of it is read"


def test_a_greeting_does_not_wait_for_a_book_nor_the_book_for_greetings() -> None:
    scheduler, memory = make_long(n_slots=3)
    (book,) = add(scheduler, range(1000, 1000 + 20 * SHORT))
    run_batch(scheduler, memory)
    (greeting,) = add(scheduler, range(12))
    for _ in range(6):
        run_batch(scheduler, memory)
    assert greeting.n_completion and not book.n_completion
    n_read = book.n_past
    while scheduler.running and book.n_past < n_read + 40:
        scheduler.remove(greeting)
        (greeting,) = add(scheduler, range(5000 + book.n_past, 5040 + book.n_past))
        for _ in range(8):
            run_batch(scheduler, memory)
    assert book.n_past > n_read, "however many greetings come"


def test_rows_are_in_the_order_of_their_slots() -> None:
    """llama.cpp computes neighbours together, and each of a disorderly lot alone."""
    scheduler, memory = make(n_slots=3)
    sequences = [Sequence([n, n + 1], N_CTX) for n in (10, 20, 30)]
    for sequence in sequences:
        scheduler.add(sequence)
    for _ in sequences:
        run_batch(scheduler, memory)
    scheduler.remove(sequences[0])
    again = Sequence([10, 11, 5, 9], N_CTX)  # in the first slot, though it comes last
    scheduler.add(again)
    while not again.n_completion:
        run_batch(scheduler, memory)
    assert [sequence for sequence, _ in run_batch(scheduler, memory)] == [again, *sequences[1:]]


def test_the_next_turn_reads_only_what_is_new() -> None:
    scheduler, memory = make()
    first = Sequence([1, 2, 3, 4], N_CTX)
    scheduler.add(first)
    finish(scheduler, memory, first)
    second = Sequence([1, 2, 3, 4, 7, 8, 9], N_CTX)
    scheduler.add(second)
    assert step(scheduler, memory) == 3 and second.n_reused == 4


def test_a_prompt_that_is_held_whole_still_evaluates_its_last_token() -> None:
    scheduler, memory = make()
    first = Sequence([1, 2, 3, 4], N_CTX)
    scheduler.add(first)
    finish(scheduler, memory, first)
    again = Sequence([1, 2, 3, 4], N_CTX)
    scheduler.add(again)
    assert step(scheduler, memory) == 1 and again.n_completion == 1


def test_a_prompt_that_diverges_inside_a_chunk_keeps_what_is_common() -> None:
    scheduler, memory = make(1)
    first = Sequence(range(100, 120), N_CTX)
    scheduler.add(first)
    finish(scheduler, memory, first)
    other = Sequence([*range(100, 111), 5, 6], N_CTX)
    scheduler.add(other)
    assert step(scheduler, memory) == 2 and other.n_reused == 11


def test_an_architecture_that_cannot_forget_a_part_reads_all_again() -> None:
    scheduler, memory = make(1, can_truncate=False)
    first = Sequence([1, 2, 3, 4, 5, 6], N_CTX)
    scheduler.add(first)
    finish(scheduler, memory, first)
    other = Sequence([1, 2, 3, 4, 9], N_CTX)
    scheduler.add(other)
    assert step(scheduler, memory) == 5 and other.n_reused == 0


def test_conversations_that_share_only_a_system_prompt_do_not_throw_each_other_out() -> None:
    table = SlotTable(3, N_CTX, FakeMemory(3))
    memory = table._memory
    assert isinstance(memory, FakeMemory)
    for tail in (50, 60):
        tokens = [1, 2, 3, *range(tail, tail + 9)]
        slot, n_past = table.claim(tokens)
        memory.tokens[slot] = tokens[:]
        table.extend(slot, tokens[n_past:])
        table.release(slot)
    assert table.claim([1, 2, 3, 70, 71]).n_past == 0, "the empty slot, not a conversation's"
    assert sorted(map(len, memory.tokens)) == [0, 12, 12]


def test_a_long_prefix_is_copied_from_a_conversation_that_goes_on() -> None:
    scheduler, memory = make(3)
    system = list(range(1000, 1000 + MIN_COPY))
    running = Sequence([*system, 1, 2], N_CTX)
    scheduler.add(running)
    step(scheduler, memory, n_prefill=N_CTX)
    other = Sequence([*system, 5, 6, 7], N_CTX)
    scheduler.add(other)
    step(scheduler, memory, n_prefill=N_CTX)
    assert other.n_reused == MIN_COPY and running.slot != other.slot
    short = Sequence([*system[: MIN_COPY - 1], 9], N_CTX)
    scheduler.add(short)
    step(scheduler, memory, n_prefill=N_CTX)
    assert short.n_reused == 0, "copying would cost more than reading"


def test_a_draft_runs_only_while_nothing_else_does() -> None:
    scheduler, memory = make(1)
    draft = Sequence(range(40), N_CTX, is_draft=True)
    scheduler.add(draft)
    step(scheduler, memory)
    assert draft.n_past == 8
    question = Sequence([*range(6), 99], N_CTX)
    scheduler.add(question)
    assert step(scheduler, memory) == 1 and question.n_reused == 6, "it even uses what was read of the draft"
    assert draft.slot is None and scheduler.drafts == [draft]
    scheduler.remove(question)
    while draft.n_pending:
        step(scheduler, memory)
    assert draft.n_completion == 0


def test_how_an_answer_closes_is_read_at_once_or_not_at_all() -> None:
    """Later the conversation may have gone on in that slot, and would be cut off there."""
    scheduler, memory = make(2)
    closing = Sequence(range(40), N_CTX, is_draft=True, is_closing=True)
    scheduler.add(closing)
    step(scheduler, memory)
    assert closing.n_past == 8 and not scheduler.lapsed
    question = Sequence([*range(6), 99], N_CTX)
    scheduler.add(question)
    assert step(scheduler, memory) == 1 and scheduler.lapsed == [closing]
    scheduler.remove(closing)
    late = Sequence(range(30), N_CTX, is_draft=True, is_closing=True)
    scheduler.add(late)
    assert scheduler.lapsed == [late]
    scheduler.remove(question)
    scheduler.add(Sequence(range(50, 60), N_CTX, is_draft=True))
    step(scheduler, memory)
    other = Sequence(range(20), N_CTX, is_draft=True, is_closing=True)
    scheduler.add(other)
    assert not scheduler.lapsed, "nobody waits for an answer"


def test_what_an_answer_closes_with_is_no_draft_of_a_person() -> None:
    scheduler, memory = make(1)
    chat = Sequence(range(9), N_CTX)
    scheduler.add(chat)
    finish(scheduler, memory, chat)
    for n, is_closing in ((20, True), (30, False)):
        behind = Sequence(range(n), N_CTX, is_draft=True, is_closing=is_closing)
        scheduler.add(behind)
        while behind.n_pending:
            step(scheduler, memory)
        scheduler.remove(behind)
        (slot,) = scheduler.slots.infos()
        assert slot.n_tokens == n and slot.is_draft is not is_closing


def test_nobody_stands_in_line_behind_a_draft() -> None:
    scheduler, memory = make(1)
    scheduler.add(Sequence(range(40), N_CTX, is_draft=True))
    step(scheduler, memory)
    forecast, question = Forecast(scheduler, 1, Pace(0.1, 8)), Sequence([1, 2], N_CTX)
    forecast.coming[7] = question
    assert forecast.progress(question, 1.0).place == 0


def test_the_waiting_one_whose_prefix_is_at_hand_goes_first_but_not_for_ever() -> None:
    scheduler, memory = make(1)
    chat = Sequence([1, 2, 3, 4], N_CTX)
    scheduler.add(chat)
    finish(scheduler, memory, chat)
    stranger = Sequence([9, 9, 9], N_CTX)
    scheduler.add(stranger)
    for _ in range(MAX_OVERTAKEN):
        turn = Sequence([1, 2, 3, 4, 5], N_CTX)
        scheduler.add(turn)
        finish(scheduler, memory, turn)
        assert stranger.slot is None
    scheduler.add(Sequence([1, 2, 3, 4, 5], N_CTX))
    step(scheduler, memory)
    assert stranger.slot is not None


def test_without_room_idle_prefixes_go_first_then_the_youngest_waits() -> None:
    scheduler, memory = make(3, n_shared=30)
    idle = Sequence(range(8), N_CTX)
    scheduler.add(idle)
    finish(scheduler, memory, idle)
    old, young = Sequence(range(100, 112), N_CTX), Sequence(range(200, 212), N_CTX)
    scheduler.add(old)
    scheduler.add(young)
    while not (old.n_completion and young.n_completion):
        step(scheduler, memory)
    assert len(memory.tokens[0]) in (0, 12, 13), "the idle prefix was evicted"
    while young.slot is not None:
        step(scheduler, memory)
    assert scheduler.waiting == [young] and old.slot is not None
    n_known = len(young.tokens)
    scheduler.remove(old)
    if not step(scheduler, memory, n_prefill=N_CTX):  # what the old one leaves behind is evicted first
        step(scheduler, memory, n_prefill=N_CTX)
    assert len(young.tokens) == n_known + 1, "it goes on where it was"


@pytest.mark.parametrize("seed", range(12))
def test_two_thousand_random_steps_keep_the_books(seed: int) -> None:
    """add, abort, commit, preempt, fail in any order: after each, slots, sequences and memory agree."""
    rng = random.Random(seed)
    scheduler, memory = make(rng.randint(1, 4), rng.choice([10**9, 100, 160]), rng.random() < 0.8)
    bases = [[rng.randrange(5) for _ in range(50)] for _ in range(3)]
    live: list[Sequence] = []
    for _ in range(2000):
        action = rng.random()
        if action < 0.2 and len(live) < 8:
            prompt = rng.choice(bases)[: rng.randint(1, 50)] + [rng.randrange(5) for _ in range(rng.randint(0, 3))]
            live.append(Sequence(prompt, rng.randint(len(prompt) + 1, N_CTX), is_draft=rng.random() < 0.2))
            scheduler.add(live[-1])
        elif action < 0.25 and live:
            scheduler.remove(live.pop(rng.randrange(len(live))))
        elif action < 0.28 and scheduler.running:
            scheduler.preempt(rng.choice(scheduler.running))
        elif scheduler.has_work:
            random_step(scheduler, memory, rng, live)
        scheduler.check_integrity()
    while scheduler.has_work:
        random_step(scheduler, memory, rng, live)
    assert not live


def choose(sequence: Sequence, rows: range, rng: random.Random) -> list[int]:
    """Some of the guesses were right."""
    n_right = rng.randint(0, len(sequence.guesses))
    assert len(rows) == 1 + len(sequence.guesses)
    return [*sequence.guesses[:n_right], rng.randrange(5)]


def is_done(sequence: Sequence) -> bool:
    return not sequence.n_pending if sequence.is_draft else sequence.is_full


def random_step(scheduler: Scheduler, memory: FakeMemory, rng: random.Random, live: list[Sequence]) -> None:
    for sequence in scheduler.running:
        if sequence.is_decoding and memory.can_truncate:
            n_room = min(4, sequence.n_max - len(sequence.tokens) - 1)
            sequence.guesses = [rng.randrange(5) for _ in range(rng.randint(0, n_room))]
    batch = scheduler.schedule(rng.randint(1, 12))
    assert batch.n_tokens
    if rng.random() < 0.02:
        memory.break_some(batch, rng)
        for span in batch.spans:
            scheduler.fail(span.sequence)
            live.remove(span.sequence)
    elif rng.random() < 0.05:
        memory.break_some(batch, rng)
        scheduler.undo(batch)
    elif not memory.decode(batch):
        if not scheduler.make_room():
            scheduler.fail(batch.spans[0].sequence)
            live.remove(batch.spans[0].sequence)
    else:
        scheduler.commit(batch, {sequence: choose(sequence, rows, rng) for rows, sequence in batch.sampled_rows()})
        for sequence in [sequence for sequence in scheduler.running if is_done(sequence)]:
            scheduler.remove(sequence)
            live.remove(sequence)
    scheduler.check_integrity()


@pytest.mark.parametrize("seed", range(12))
def test_whoever_waits_is_served_in_turn_and_leaves_nothing(seed: int) -> None:
    """Clients of different greed, several answers to one prompt, embeddings, cancels: while a client waits, no other
    one is served again and again; in the end the books are empty."""
    rng = random.Random(seed)
    scheduler, memory = make(n_slots=2)
    added, ended = set[Sequence](), set[Sequence]()
    passed = dict.fromkeys("abc", 0)
    for n in range(400):
        for _ in range(rng.choice([0, 0, 1, 3]) if n < 60 else 0):
            prompt, client = [rng.randrange(3) for _ in range(rng.randint(1, 12))], rng.choice("aaaaabc")
            new = [Sequence(prompt, len(prompt) + 3, client=client) for _ in range(rng.choice([1, 1, 1, 3]))]
            for other in new[1:]:
                other.after = new[0]
            if rng.random() < 0.2:
                new = [Sequence(prompt, len(prompt) + 3, client=client, is_embedding=True)]
            added |= {*new}
            for sequence in new:
                scheduler.add(sequence)
        admitted = admit_some(scheduler, memory, rng)
        for client in passed:
            waits = any(sequence.client == client and sequence.may_begin for sequence in scheduler.waiting)
            is_served = any(sequence.client == client for sequence in admitted)
            passed[client] = 0 if is_served or not waits else passed[client] + len(admitted)
            assert passed[client] <= 4
        for sequence in [*scheduler.running, *scheduler.waiting]:
            is_read = sequence.is_embedding and not sequence.n_pending
            if sequence.is_full or is_read or rng.random() < 0.03:
                scheduler.remove(sequence)
                ended.add(sequence)
    assert not scheduler.has_work and ended == added and not any(scheduler.slots.is_busy(slot) for slot in range(2))


def test_those_who_come_again_and_again_do_not_pass_one_that_waits() -> None:
    scheduler, memory = make(1)
    served, waits = Sequence([1], N_CTX, client="a"), Sequence([1, 2], N_CTX, client="a")
    scheduler.add(served)
    step(scheduler, memory)
    scheduler.add(waits)
    for client in "bcbcbc":
        scheduler.add(Sequence([3], N_CTX, client=client))
        scheduler.remove(scheduler.running[0])
        step(scheduler, memory)
        if scheduler.running == [waits]:
            return
    pytest.fail("two clients who came by turns kept the slot for themselves")


def test_who_has_a_slot_since_long_does_not_pass_who_has_none() -> None:
    scheduler, memory = make(2)
    for client in "ab":
        scheduler.add(Sequence([1], N_CTX, client=client))
        step(scheduler, memory)
    newcomer, again = Sequence([2], N_CTX, client="c"), Sequence([3], N_CTX, client="a")
    scheduler.add(newcomer)
    scheduler.add(again)
    scheduler.remove(scheduler.running[1])
    step(scheduler, memory)
    assert newcomer.slot is not None and again.slot is None


def test_one_that_comes_before_the_one_that_it_waits_for_makes_no_work() -> None:
    """As when a snapshot is fetched for both, and the later one's thread is the quicker one."""
    scheduler, memory = make(2)
    first, second = Sequence([1, 2, 3], N_CTX), Sequence([1, 2, 3], N_CTX)
    second.after = first
    scheduler.add(second)
    assert not scheduler.has_work
    scheduler.add(first)
    while scheduler.has_work and not second.n_completion:
        step(scheduler, memory)
    assert second.n_completion


def admit_some(scheduler: Scheduler, memory: FakeMemory, rng: random.Random) -> list[Sequence]:
    """One step; returns who got a slot in it."""
    before, running = list(scheduler.waiting), set(scheduler.running)
    assert sorted(map(scheduler.place, before)) == list(range(1, len(before) + 1))
    if scheduler.has_work:
        step(scheduler, memory, n_prefill=rng.randint(1, 8))
    return [sequence for sequence in scheduler.running if sequence not in running]
