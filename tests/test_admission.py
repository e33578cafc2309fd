"""Who may come in: a bounded queue of which nobody has it all."""

from __future__ import annotations

import random
import threading

import pytest

from server.engine.admission import Admission
from server.errors import InvalidField, QueueFull, ShuttingDown


def enter_all(admission: Admission, client: str) -> int:
    """How many of one client find room."""
    n = 0
    while True:
        try:
            admission.enter(client)
        except QueueFull as error:
            assert 1 <= error.retry_after <= 60
            return n
        n += 1


def test_a_client_leaves_room_for_others() -> None:
    admission = Admission(2, 8)
    assert enter_all(admission, "a") == 2 + 6, "alone: three quarters of the queue"
    assert enter_all(admission, "b") == 2, "what is left"
    admission.leave("b", 1.0)
    with pytest.raises(QueueFull, match="6 of your requests are waiting already"):
        admission.enter("a")  # has more than half while b is there
    admission.enter("c")
    for _ in range(4):
        admission.leave("a", None)
    assert enter_all(admission, "a") == 2


def test_somebody_without_a_name_may_have_all() -> None:
    assert enter_all(Admission(2, 8), "") == 10


def test_several_come_in_together_or_not_at_all() -> None:
    admission = Admission(1, 4)
    admission.enter("", 2)
    with pytest.raises(QueueFull):
        admission.enter("", 4)
    admission.enter("", 3)


def test_more_than_ever_find_room_are_not_told_to_come_again() -> None:
    admission = Admission(1, 8)
    for client, most in (("", 9), ("a", 7)):
        with pytest.raises(InvalidField, match=f"n: .*at most {most}"):
            admission.enter(client, most + 1)
    admission.enter("a", 7)


def test_after_random_lives_nothing_is_left() -> None:
    rng, admission, inside = random.Random(4), Admission(3, 9), list[str]()
    for _ in range(3000):
        client = rng.choice(["", "a", "b", "c"])
        try:
            admission.enter(client)
            inside.append(client)
        except QueueFull:
            admission.leave(inside.pop(rng.randrange(len(inside))), rng.random())
        assert len(inside) <= 12 and all(inside.count(name) <= 3 + 9 * 3 // 4 for name in "abc")
    for client in inside:
        admission.leave(client, 0.1)
    assert not admission._open
    admission.refuse()
    with pytest.raises(ShuttingDown):
        admission.enter("a")


def test_the_end_waits_for_who_is_coming_in() -> None:
    """Else a request could be put into an inbox that nobody reads any more, and never end."""
    admission, refused = Admission(1, 1), threading.Event()

    def refuse() -> None:
        admission.refuse()
        refused.set()

    def then() -> None:
        threading.Thread(target=refuse).start()
        assert not refused.wait(0.05)

    admission.enter("", 1, then)
    assert refused.wait(10)
