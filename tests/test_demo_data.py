"""The demo model's training data: right by construction, the same for the same seed, held-out values kept out."""

from __future__ import annotations

import random
import re
from pathlib import Path

import llama_cpp
import pytest
from demo import data, words
from demo.phrases import ACK, FACTS, LANGS, RECALL, Lang

GGUF = Path(__file__).resolve().parents[1] / "models" / "demo" / "sparrow-demo-f16.gguf"
MIX, HELD_OUT = data.Mix(), data.Mix(held_out=True)


def talks(n: int, mix: data.Mix = MIX, seed: int = 7) -> list[data.Conversation]:
    rng = random.Random(seed)
    return [data.conversation(rng, rng.randint(1, 10), mix) for _ in range(n)]


def test_a_seed_gives_the_same_conversations() -> None:
    assert talks(50) == talks(50)
    assert talks(50) != talks(50, seed=8)


def test_conversations_are_well_formed() -> None:
    for talk in talks(300):
        roles = [role for role, _ in data.messages(talk)]
        assert roles[0] == ("system" if talk.system is not None else "user")
        assert roles[-2 * len(talk.turns) :] == ["user", "assistant"] * len(talk.turns)
        for _, text in data.messages(talk):
            assert text == text.strip() and text
            assert "<|" not in text and "{}" not in text


def test_recall_gives_the_newest_statement() -> None:
    rng = random.Random(1)
    for lang in LANGS:
        talk = data.Conversation()
        for value in ("Ana", "Bo", "Cy"):
            data.stated(rng, talk, lang, {"name": value})
        assert data.recalled(talk, lang, ["name"], "?").answer == RECALL[lang]["name"].format("Cy")


def test_a_statement_is_acknowledged_by_its_value() -> None:
    rng = random.Random(2)
    for lang in LANGS:
        for fact in FACTS:
            turn = data.stated(rng, data.Conversation(), lang, {fact: "Xyz"})
            assert "Xyz" in turn.user
            assert turn.answer == ACK[lang][fact].format("Xyz")


def test_what_was_never_stated_is_not_recalled() -> None:
    rng = random.Random(3)
    for lang in LANGS:
        turns = [data.ask(rng, data.Conversation(), lang, MIX) for _ in range(50)]
        assert {turn.skill for turn in turns} == {"unknown"}


def test_repeats_end_with_the_text_itself() -> None:
    rng = random.Random(4)
    for lang in LANGS:
        for _ in range(300):
            turn = data.repeat(rng, data.Conversation(), lang, MIX)
            assert turn.user.endswith(turn.answer)


def test_counts_count() -> None:
    rng = random.Random(5)
    for lang in LANGS:
        for _ in range(300):
            turn = data.count(rng, data.Conversation(), lang, MIX)
            numbers = [int(number) for number in turn.answer.split(", ")]
            asked = [int(number) for number in re.findall(r"\d+", turn.user)]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            assert asked in ([numbers[0], numbers[-1]], [numbers[-1]])
            assert 0 <= numbers[0] and numbers[-1] <= data.MAX_COUNT


@pytest.mark.parametrize("lang", LANGS)
def test_held_out_values_are_disjoint_from_training(lang: Lang) -> None:
    rng = random.Random(6)
    for fact in FACTS:
        seen = {words.value(rng, lang, fact) for _ in range(500)}
        kept = {words.value(rng, lang, fact, held_out=True) for _ in range(100)}
        assert not any(map(words.is_held_out, seen)) and all(map(words.is_held_out, kept))
    assert all(map(words.is_held_out, words.REAL))


@pytest.mark.skipif(not GGUF.is_file(), reason="models/demo/sparrow-demo-f16.gguf is not there")
def test_the_vocabulary_keeps_every_text() -> None:
    model = llama_cpp.Llama(str(GGUF), vocab_only=True, verbose=False)
    for talk in talks(100, HELD_OUT):
        for _, text in data.messages(talk):
            ids = model.tokenize(text.encode(), add_bos=False, special=True)
            assert model.detokenize(ids).decode() == text
