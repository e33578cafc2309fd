"""Text pipeline: whatever the cuts, the same text; never half a character, never a piece of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.text import StopMatcher, TextStream

SAMPLES = ["plain", "naïve café", "你好，世界", "👩‍👩‍👧 family", "a\u0301 mixed 日本 ok", ""]


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(stops)
    shown = [stream.push(piece) for piece in pieces]
    return [*shown, stream.flush()], stream.stopped


@pytest.mark.parametrize("text", SAMPLES)
def test_every_cut_gives_the_same_text_and_no_half_character(text: str) -> None:
    raw = text.encode()
    for cut in range(len(raw) + 1):
        shown, _ = run([raw[:cut], raw[cut:]])
        assert "".join(shown) == text
        assert all(text.startswith("".join(shown[: n + 1])) for n in range(len(shown)))


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert "".join(run([b"a\xff", b"b", "你".encode()[:2]])[0]) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("stop", ["END", "\n\n", "。", "aab"])
def test_text_ends_before_a_stop_string_wherever_it_is_cut(stop: str) -> None:
    raw = f"one 二 aaa{stop}tail {stop} more".encode()
    expected = raw.decode()[: raw.decode().index(stop)]
    for a in range(len(raw) + 1):
        for b in range(a, len(raw) + 1, 3):
            shown, stopped = run([raw[:a], raw[a:b], raw[b:]], (stop,))
            assert ("".join(shown), stopped) == (expected, True)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_any_text_any_stops_any_cuts(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, shown, at = StopMatcher(stops), "", 0
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    first = min(ends)[1] if ends else len(text)
    while at < len(text):
        n = data.draw(st.integers(1, len(text) - at))
        shown += matcher.push(text[at : at + n])
        assert text[:first].startswith(shown), "a part of a stop string was shown"
        at += n
    assert shown + matcher.flush() == text[:first]
    assert matcher.stopped == any(stop in text for stop in stops)


def test_after_a_stop_nothing_more_is_shown() -> None:
    matcher = StopMatcher(["."])
    assert [matcher.push("a.b"), matcher.push("c"), matcher.flush()] == ["a", "", ""]
