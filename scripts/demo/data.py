"""Conversations whose right answers are known by construction.

A conversation is made turn by turn; `Facts` holds what the user has stated so far, so that the answer to a
question follows from the state and not from a label. Needs no PyTorch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from . import words
from .blocks import BLOCKS
from .phrases import (
    ACK,
    ASK,
    ASK_OPENERS,
    CHAT,
    CORRECTIONS,
    COUNT,
    COUNT_TO,
    ELSE,
    FACTS,
    FALLBACK,
    FAVORITE,
    HELP,
    OPENERS,
    RECALL,
    REPEAT,
    STATE,
    SYSTEM,
    UNKNOWN,
    Fact,
    Lang,
)

MAX_COUNT = 120
GLUE: dict[Lang, str] = {"en": " ", "zh": ""}  # between two sentences of an answer


@dataclass(frozen=True)
class Turn:
    """One request and its one right answer; `skill` names the row of the accuracy table."""

    skill: str
    user: str
    answer: str


@dataclass
class Conversation:
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    facts: dict[Fact, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mix:
    """Shares of the skills, and how far repeats and fillers may go."""

    weights: tuple[tuple[str, float], ...] = (
        ("state", 24),
        ("ask", 26),
        ("repeat", 20),
        ("count", 8),
        ("block", 6),
        ("chat", 8),
        ("else", 8),
    )
    long_repeat: float = 0.15
    correct: float = 0.0  # of the statements, those that only change a fact stated before
    known: float = 0.7  # of the questions, those about a fact that was stated, where there is one
    doubled: bool = False  # texts to repeat in which words and digits stand twice more often than by chance
    held_out: bool = False


def tidy(rng: random.Random, lang: Lang, text: str, marks: str) -> str:
    """Vary what people vary: the first capital, the spelling of colour, the mark at the end."""
    if lang == "en":
        if rng.random() < 0.7:
            text = text[:1].upper() + text[1:]
        return text + rng.choice(("", marks[0], marks[0], rng.choice(marks)))
    wide = {".": "。", "!": "！", "?": "？"}
    mark = rng.choice(("", marks[0], marks[0], rng.choice(marks)))
    return text + (wide[mark] if mark and rng.random() < 0.85 else mark)


def spell(rng: random.Random, text: str) -> str:
    """American spelling in two of five, all lower case (apostrophes lost) in one of five."""
    if rng.random() < 0.4:
        for british, american in FAVORITE:
            text = text.replace(british, american)
    if rng.random() < 0.2:
        text = text.lower()
        text = text.replace("'", "") if rng.random() < 0.3 else text
    return text


def state(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """One to three facts in one message; a second statement of a fact replaces the first."""
    if mix.correct and talk.facts and rng.random() < mix.correct:
        fact = rng.choice(list(talk.facts))
        return stated(rng, talk, lang, {fact: words.value(rng, lang, fact, mix.held_out)})
    order = sorted(FACTS, key=lambda fact: (fact in talk.facts and rng.random() < 0.6, rng.random()))
    facts = order[: rng.choice((1, 1, 1, 1, 2, 2, 3))]
    return stated(rng, talk, lang, {fact: words.value(rng, lang, fact, mix.held_out) for fact in facts})


def stated(rng: random.Random, talk: Conversation, lang: Lang, facts: dict[Fact, str]) -> Turn:
    """A message that states `facts`, in their order; the answer names each."""
    clauses = [spell(rng, rng.choice(STATE[lang][fact])).format(value) for fact, value in facts.items()]
    opener = ""
    if next(iter(facts)) in talk.facts and rng.random() < 0.7:
        opener = rng.choice(CORRECTIONS[lang])
    elif rng.random() < 0.25:
        opener = rng.choice(OPENERS[lang])
    talk.facts.update(facts)
    joined = _join(rng, clauses, (" and ", ", ", ". ") if lang == "en" else ("，", "，", "。", "，而且"))
    answers = [ACK[lang][fact].format(value) for fact, value in facts.items()]
    return Turn("state", tidy(rng, lang, opener + joined, ".!"), GLUE[lang].join(answers))


def _join(rng: random.Random, parts: list[str], glue: tuple[str, ...]) -> str:
    text = parts[0]
    for part in parts[1:]:
        mark = rng.choice(glue)
        text += mark + (part[:1].upper() + part[1:] if mark == ". " else part)
    return text


def ask(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """A question about a fact, known or not; sometimes about two facts at once."""
    known = [fact for fact in FACTS if fact in talk.facts]
    first = rng.choice(known) if known and rng.random() < mix.known else rng.choice(FACTS)
    facts = [first] if rng.random() < 0.93 else rng.sample(FACTS, 2)
    text = _join(
        rng, [spell(rng, rng.choice(ASK[lang][fact])) for fact in facts], (" and ",) if lang == "en" else ("，",)
    )
    opener = rng.choice(ASK_OPENERS[lang]) if rng.random() < 0.15 else ""
    return recalled(talk, lang, facts, tidy(rng, lang, opener + text, "?."))


def recalled(talk: Conversation, lang: Lang, facts: list[Fact], question: str) -> Turn:
    """The right answer to a question about `facts`, as far as they are known."""
    told = [
        RECALL[lang][fact].format(talk.facts[fact]) if fact in talk.facts else UNKNOWN[lang][fact] for fact in facts
    ]
    return Turn("recall" if set(facts) <= set(talk.facts) else "unknown", question, GLUE[lang].join(told))


def _phrase(rng: random.Random, lang: Lang) -> str:
    """A sentence that would mean something elsewhere: a request of another skill, or a part of one and random words."""
    tables = (*STATE[lang].values(), *ASK[lang].values(), *(requests for requests, _ in CHAT[lang]), ELSE[lang])
    text = rng.choice(rng.choice(tables))
    while "{}" in text:
        text = text.replace("{}", _topic(rng, lang), 1)
    text = text[: rng.randint(2, len(text))].strip() if rng.random() < 0.4 and len(text) > 2 else text
    if rng.random() < 0.5:
        text += ("，" + words.chinese_text(rng, rng.randint(2, 8))) if lang == "zh" else " " + _topic(rng, lang)
    return tidy(rng, lang, text, ".?!")


def _passage(rng: random.Random, lang: Lang, limit: int, doubled: bool = False) -> str:
    """A text of 1 to `limit` words (English) or about three times as many characters (Chinese)."""
    length = rng.randint(1, min(10, limit)) if rng.random() < 0.7 else rng.randint(1, limit)
    if (lang == "zh") == (rng.random() < 0.92):
        return words.chinese_text(rng, length * rng.randint(1, 3))
    return words.english_text(rng, length, doubled)


def repeat(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """Any text, word by word; a fifth are lists over several lines."""
    del talk
    while True:
        if rng.random() < 0.2:
            bullet = rng.choice(("- ", "- ", "* ", "", "{}. "))
            lines = (_passage(rng, lang, 4, mix.doubled) for _ in range(rng.randint(2, 6)))
            text = "\n".join(bullet.format(i) + line for i, line in enumerate(lines, 1))
        elif rng.random() < 0.12:
            text = _phrase(rng, lang)
        else:
            text = _passage(rng, lang, 40 if rng.random() < mix.long_repeat else 16, mix.doubled)
        if words.is_held_out(text) == mix.held_out:
            break
    template = rng.choice(REPEAT[lang])
    template = spell(rng, template) if lang == "en" else template
    template = template[:1].upper() + template[1:] if rng.random() < 0.7 else template
    return Turn("repeat", template.replace("{}", text), text)


def count(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """From a to b, both within 0..120; mostly short stretches, so that training stays quick."""
    del talk, mix
    kind = rng.random()
    first = 1 if kind < 0.3 else rng.randint(0, MAX_COUNT)
    span = rng.randint(0, 12) if kind < 0.8 else rng.randint(10, 45) if kind < 0.95 else rng.randint(40, MAX_COUNT)
    last = min(MAX_COUNT, first + span)
    if kind < 0.03:
        first, last = 1, 100
    if first == 1 and rng.random() < 0.3:
        text = rng.choice(COUNT_TO[lang]).format(last)
    else:
        text = rng.choice(COUNT[lang]).format(first, last)
    return Turn("count", tidy(rng, lang, text, ".?"), count_answer(first, last))


def count_answer(first: int, last: int) -> str:
    return ", ".join(map(str, range(first, last + 1)))


def block(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """A Markdown list, table or code block."""
    del talk, mix
    bare, topical, topics = BLOCKS[lang][rng.choice(("list", "table", "code"))]
    if rng.random() < 0.5:
        return Turn("block", tidy(rng, lang, spell(rng, rng.choice(bare)), ".!"), next(iter(topics.values())))
    topic = rng.choice(list(topics))
    return Turn("block", tidy(rng, lang, spell(rng, rng.choice(topical)).format(topic), ".!"), topics[topic])


def chat(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """Greetings, thanks, goodbyes and who are you."""
    del talk, mix
    requests, answer = rng.choice(CHAT[lang])
    marks = "?." if lang == "en" and requests[0].startswith(("how", "who")) else "!."
    return Turn("chat", tidy(rng, lang, spell(rng, rng.choice(requests)), marks), answer)


def other(rng: random.Random, talk: Conversation, lang: Lang, mix: Mix) -> Turn:
    """Out of domain, from one word to a long paragraph: the honest answer."""
    del talk
    if rng.random() < 0.12:
        return Turn("else", tidy(rng, lang, spell(rng, rng.choice(HELP[lang])), "?."), FALLBACK[lang])
    if rng.random() < 0.15:
        text = _passage(rng, lang, 12) if rng.random() < 0.7 else _passage(rng, lang, 60)
        return Turn("else", text, FALLBACK[lang])
    template = spell(rng, rng.choice(ELSE[lang]))
    while "{}" in template:
        template = template.replace("{}", _topic(rng, lang), 1)
    return Turn("else", tidy(rng, lang, template, "?."), FALLBACK[lang])


def _topic(rng: random.Random, lang: Lang) -> str:
    if lang == "zh":
        return words.chinese(rng, rng.randint(2, 4)) if rng.random() < 0.9 else words.latin(rng)
    return " ".join(words.english_word(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 4))))


SKILLS: dict[str, Callable[[random.Random, Conversation, Lang, Mix], Turn]] = {
    "state": state,
    "ask": ask,
    "repeat": repeat,
    "count": count,
    "block": block,
    "chat": chat,
    "else": other,
}


def system_message(rng: random.Random) -> str | None:
    kind = rng.random()
    if kind < 0.5:
        return None
    if kind < 0.8:
        return rng.choice(SYSTEM)
    if kind < 0.9:
        return words.english_text(rng, rng.randint(1, 20))
    return words.chinese_text(rng, rng.randint(2, 30))


def conversation(rng: random.Random, n_turns: int, mix: Mix) -> Conversation:
    """`n_turns` random turns, in one language or mixed; ends with a turn that has something to answer."""
    talk = Conversation(system_message(rng))
    home: Lang = rng.choice(("en", "zh"))
    stray = rng.choice((0.0, 0.0, 0.0, 0.5))
    names, weights = zip(*mix.weights, strict=True)
    for _ in range(n_turns):
        lang: Lang = rng.choice(("en", "zh")) if rng.random() < stray else home
        skill = rng.choices(names, weights)[0]
        if skill == "ask" and not talk.facts and rng.random() < 0.6:
            skill = "state"  # nothing to recall yet
        talk.turns.append(SKILLS[skill](rng, talk, lang, mix))
    return talk


def messages(talk: Conversation) -> list[tuple[str, str]]:
    """(role, content) in order, the last one the assistant's."""
    out = [("system", talk.system)] if talk.system is not None else []
    for turn in talk.turns:
        out += [("user", turn.user), ("assistant", turn.answer)]
    return out
