"""Measures the GGUF itself through llama.cpp: held-out items, greedy or sampled, at several quants.

An item is a conversation whose last answer is missing; it counts as right when the answer is right to the letter.
"""

from __future__ import annotations

import ctypes
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import llama_cpp
from llama_cpp._logger import set_verbose

from . import data, words
from .phrases import ASK, FACTS, Fact, Lang

QUANTS = {"F16": None, "Q8_0": 7, "Q4_0": 2, "IQ4_NL": 25}  # llama_ftype
HELD_OUT = data.Mix(held_out=True)
N_CTX = 4096


@dataclass(frozen=True)
class Sampling:
    temp: float = 0.0
    top_k: int = 1
    top_p: float = 1.0
    penalty: float = 1.0


GREEDY = Sampling()
OFFICIAL = Sampling(temp=0.7, top_k=20, top_p=0.8, penalty=1.1)  # Qwen2.5's generation_config.json


def prompt_of(talk: data.Conversation) -> str:
    """ChatML up to the last answer; the same text as the GGUF's template gives."""
    said = data.messages(talk)[:-1]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said) + "<|im_start|>assistant\n"


def _fillers(rng: random.Random, talk: data.Conversation, lang: Lang, n_tokens: int) -> None:
    """Turns that state nothing, until the conversation has grown by about `n_tokens`."""
    left = n_tokens * (1.5 if lang == "en" else 0.75)  # characters
    while left > 0:
        skill = rng.choice((data.repeat, data.repeat, data.count, data.chat, data.block, data.other))
        turn = skill(rng, talk, lang, HELD_OUT)
        if len(turn.user) < 600:
            talk.turns.append(turn)
            left -= len(turn.user) + len(turn.answer) + 8


def _recall(rng: random.Random, lang: Lang, n_tokens: int = 200, real: bool = False) -> data.Conversation:
    talk = data.Conversation(data.system_message(rng))
    for _ in range(rng.choice((1, 1, 2))):
        talk.turns.append(data.state(rng, talk, lang, HELD_OUT))
    if real:
        fact: Fact = rng.choice(FACTS)
        value = rng.choice(words.REAL_LATIN if lang == "en" else words.REAL_CHINESE)
        talk.turns.append(data.stated(rng, talk, lang, {fact: value}))
    _fillers(rng, talk, lang, rng.randint(0, n_tokens) if n_tokens < 1000 else n_tokens)
    fact = next(reversed(talk.facts)) if real else rng.choice(list(talk.facts))
    question = data.tidy(rng, lang, data.spell(rng, rng.choice(ASK[lang][fact])), "?.")
    talk.turns.append(data.recalled(talk, lang, [fact], question))
    return talk


def _last(
    skill: Callable[..., data.Turn], mix: data.Mix = HELD_OUT
) -> Callable[[random.Random, Lang], data.Conversation]:
    """A short conversation whose last turn is of one skill."""

    def make(rng: random.Random, lang: Lang) -> data.Conversation:
        talk = data.Conversation(data.system_message(rng))
        _fillers(rng, talk, lang, rng.randint(0, 200))
        talk.turns.append(skill(rng, talk, lang, mix))
        return talk

    return make


def _unknown(rng: random.Random, lang: Lang) -> data.Conversation:
    talk = _last(data.chat)(rng, lang)
    talk.turns.append(data.ask(rng, talk, lang, HELD_OUT))
    return talk


def _hundred(rng: random.Random, lang: Lang) -> data.Conversation:
    talk = data.Conversation(data.system_message(rng))
    ask = "Count from 1 to 100." if lang == "en" else "从1数到100。"
    talk.turns.append(data.Turn("count", ask, data.count_answer(1, 100)))
    return talk


ROWS: dict[str, tuple[int, Callable[[random.Random, Lang], data.Conversation]]] = {
    "recall": (200, _recall),
    "recall, real names": (60, lambda rng, lang: _recall(rng, lang, real=True)),
    "recall after 1,250 tokens": (30, lambda rng, lang: _recall(rng, lang, n_tokens=1250)),
    "recall after 3,000 tokens": (20, lambda rng, lang: _recall(rng, lang, n_tokens=2900)),
    "not told yet": (60, _unknown),
    "acknowledge facts": (100, _last(data.state)),
    "repeat": (200, _last(data.repeat)),
    "repeat, doubled words": (60, _last(data.repeat, replace(HELD_OUT, doubled=True))),
    "count": (60, _last(data.count)),
    "count 1 to 100": (5, _hundred),
    "list, table, code": (60, _last(data.block)),
    "small talk": (60, _last(data.chat)),
    "anything else": (60, _last(data.other)),
}


def items(row: str, lang: Lang, share: float = 1.0) -> Iterator[data.Conversation]:
    n, make = ROWS[row]
    rng = random.Random(f"held out {row} {lang}")
    for _ in range(max(2, round(n * share))):
        yield make(rng, lang)


def load(path: Path, n_threads: int) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_threads=n_threads, n_threads_batch=n_threads, verbose=False, seed=1
    )


def answer(model: llama_cpp.Llama, prompt: str, sampling: Sampling, limit: int = 520) -> str:
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    out: list[int] = []
    for token in model.generate(
        ids, top_k=sampling.top_k, top_p=sampling.top_p, temp=sampling.temp, min_p=0.0, repeat_penalty=sampling.penalty
    ):
        if token == model.token_eos() or len(out) == limit or len(ids) + len(out) >= N_CTX - 1:
            break
        out.append(token)
    text: bytes = model.detokenize(out)
    return text.decode(errors="replace")


def score(
    model: llama_cpp.Llama, row: str, lang: Lang, sampling: Sampling, share: float, show: int = 0
) -> tuple[int, int, float]:
    """(right, asked, mean prompt tokens); prints the first `show` failures."""
    right = asked = n_tokens = 0
    for talk in items(row, lang, share):
        prompt, wanted = prompt_of(talk), talk.turns[-1].answer
        got = answer(model, prompt, sampling)
        right, asked = right + (got == wanted), asked + 1
        n_tokens += len(model.tokenize(prompt.encode(), add_bos=False, special=True))
        if got != wanted and show > 0:
            show -= 1
            print(f"    {talk.turns[-1].user!r}\n      wanted {wanted[:200]!r}\n      got    {got[:200]!r}")
    return right, asked, n_tokens / asked


def quantize(source: Path, target: Path, ftype: int) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to type {ftype}")


@dataclass(frozen=True)
class Options:
    quants: tuple[str, ...] = tuple(QUANTS)
    rows: tuple[str, ...] = tuple(ROWS)
    sampling: Sampling = GREEDY
    share: float = 1.0
    n_threads: int = 1
    show: int = 0


def measure(path: Path, options: Options) -> None:
    """Prints one line per row, language and quant: right answers of asked."""
    set_verbose(False)  # quantizing would print a line per tensor
    with tempfile.TemporaryDirectory() as folder:
        for quant in options.quants:
            source, ftype = path, QUANTS[quant]
            if ftype is not None:
                source = Path(folder) / f"{quant}.gguf"
                quantize(path, source, ftype)
            model = load(source, options.n_threads)
            for row in options.rows:
                for lang in ("en", "zh"):
                    right, asked, n_tokens = score(model, row, lang, options.sampling, options.share, options.show)
                    share = 100 * right / asked
                    print(
                        f"{quant:7}{row:28}{lang} {right:4} of {asked:4} {share:6.1f} %  prompt {n_tokens:5.0f}",
                        flush=True,
                    )
            model.close()
