"""Grammars: what is read, what is refused, which tokens are allowed; llama.cpp's own matcher is asked as well."""

from __future__ import annotations

import codecs
import ctypes
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from server.engine.automaton import Automaton
from server.engine.beginnings import read_checked
from server.engine.constraint import Constraint
from server.engine.llama import Model
from server.engine.sampler import SamplerChain
from server.engine.sampling import SamplingParams, plan
from server.errors import InvalidField
from tests.conftest import DEMO

JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") space
object ::= "{" space ( string ":" space value ("," space string ":" space value)* )? "}" space
array ::= "[" space ( value ("," space value)* )? "]" space
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" space
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? space
space ::= | " " | "\n" [ \t]{0,20}
"""

GRAMMARS = [
    JSON,
    'root ::= "a" | "ab" | "abc" # the longest one\n',
    'root ::= ("x" [0-9]{2,3} | y+)* "."\ny ::= [^x.a-z]',
    'root ::= "日本" . "語"? [à-ü\\u4e00-\\u4e10]{0,3} "\\U0001F600"',
    'root ::= "a" root "b" | ""',
    'root ::= ((("a"*)*)*  |  "b"{3})  "c"',
    'root ::= item ("," item)*\nitem ::=\n  "1" |\n  "2" {2} | ( "3"\n | "4" )',
    r'root ::= "\x41\t\"\\" [\]\[\-a]+ [^\n]',
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    model = Model(DEMO)
    yield model
    model.close()


class Official:
    """llama.cpp's matcher, which says of all tokens at once what is allowed."""

    def __init__(self, model: Model, grammar: str) -> None:
        native = llama_cpp.llama_model_get_vocab(model._model)
        self._sampler = llama_cpp.llama_sampler_init_grammar(native, grammar.encode(), b"root")
        assert self._sampler
        self._kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._n = model.vocab.n_tokens

    def allowed(self) -> set[int]:
        rows = np.zeros(self._n, dtype=self._kind)
        rows["id"] = np.arange(self._n)
        data = rows.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=data, size=self._n, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return set(np.flatnonzero(np.isfinite(rows["logit"])).tolist())

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self._sampler)


def is_text(data: bytes) -> bool:
    """It is UTF-8, or the beginning of some."""
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("grammar", GRAMMARS, ids=range(len(GRAMMARS)))
@pytest.mark.parametrize("seed", range(6))
def test_the_same_tokens_are_allowed_as_by_llama_cpp(demo: Model, grammar: str, seed: int) -> None:
    """Walks at random through each grammar, and at each step all tokens of the vocabulary are compared."""
    rng, vocab = random.Random(seed), demo.vocab
    official, ours = Official(demo, grammar), Constraint(vocab, grammar)
    controls = set(vocab.special.values()) - vocab.eog
    logits = np.random.default_rng(seed).normal(size=vocab.n_tokens).astype(np.float32)
    for _ in range(25):
        # llama.cpp takes "<|im_start|>" for text, which nobody would see, and bytes that are in no text.
        expected = {token for token in official.allowed() - controls if is_text(ours._rest + vocab.piece(token))}
        got = ours.best(logits, None).tolist()
        assert set(got) == expected and logits[got].tolist() == sorted(logits[got], reverse=True)
        assert ours.best(logits, 5).tolist() == got[:5]
        assert all(ours.allows(token) == (token in expected) for token in rng.sample(range(vocab.n_tokens), 50))
        going_on = [token for token in got if token not in vocab.eog]
        assert ours.is_over == (not going_on)
        if not going_on:
            break
        token = rng.choice(going_on)
        official.accept(token)
        ours.accept(token)
    official.close()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule called root"),
        ("x ::= [a-z]", "no rule called root"),
        ("root = [a-z]", "line 1: '= [a-z]' is not"),
        ('root ::= "a', "line 1: '\"a' is not understood"),
        ('root ::= "a"\nx ::= [a-', "line 2"),
        ('root ::= ("a" | "b"', "not closed"),
        ('root ::= "a")', "a rule like"),
        ("root ::= y", "line 1: there is no rule called 'y'"),
        ("root ::= *", "stands behind nothing"),
        ("root ::= [z-a]", "wrong way round"),
        ('root ::= "\\q"', "\\q is no escape"),
        ('root ::= "\\UFFFFFFFF"', "is no character"),
        ('root ::= "a"{5,2}', "the first number"),
        ('root ::= root "a" | "b"', "rule root begins with itself"),
        ('root ::= "a" x\nx ::= ""? y "b"\ny ::= x | "c"', "begins with itself"),
        ("root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000, "brackets inside each other"),
        ('root ::= ("" | ""){99999999}', "too many ways"),
        ('root ::= ((("a"?){2000}){2000}){2000}', "too many ways"),
        ("root ::= " + '"a"' + "?" * 50_000, "too many repetitions"),
        ("".join(f'r{n} ::= "a"\n' for n in range(5000)) + "root ::= r0", "5001 rules are too many"),
    ],
)
def test_what_is_no_grammar_says_why(demo: Model, grammar: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidField) as caught:
        Constraint(demo.vocab, grammar)
    assert caught.value.param == "grammar" and message in caught.value.message
    assert time.process_time() - began < 5


def test_a_grammar_that_explodes_is_given_up(demo: Model) -> None:
    """llama.cpp takes 16 s for the 22nd "a", and four times as long for each that follows."""
    constraint = Constraint(demo.vocab, 'root ::= "a" root "b" | "a" root "c" | "a"')
    (a,) = demo.vocab.tokenize("a")
    began = time.process_time()
    with pytest.raises(InvalidField, match="too many ways"):
        for _ in range(40):
            assert constraint.allows(a)
            constraint.accept(a)
    assert time.process_time() - began < 10


def test_what_is_remembered_of_a_long_text_is_bounded(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.automaton.MAX_KEPT", 5_000)
    constraint = Constraint(demo.vocab, 'root ::= ("a" [b-y]{0,60000} "z")+')
    letters = [demo.vocab.tokenize(letter)[0] for letter in "bcdefg"]
    constraint.accept(demo.vocab.tokenize("a")[0])
    for n in range(12_000):
        assert constraint.allows(letters[n % 6])
        constraint.accept(letters[n % 6])
    assert len(constraint._automaton._places) < 5_500 and len(constraint._automaton._states) < 5_500
    constraint.accept(demo.vocab.tokenize("z")[0])
    assert constraint.may_end and not constraint.is_over


@pytest.mark.parametrize("seed", range(8))
def test_bytes_are_text_however_they_are_cut(seed: int) -> None:
    """Pieces that together are valid UTF-8 are all allowed where any text is, and bytes that are none never."""

    class Pieces:
        eog = frozenset[int]()
        first_bytes = np.arange(256, dtype=np.int16)

        def bytes_at(self, ids: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.int16]:
            return np.where(at == 0, ids, -1).astype(np.int16)

        def piece(self, token: int) -> bytes:
            return bytes([token])

    rng = random.Random(seed)
    text = "".join(rng.choice("aé語😀\U0010ffff\ud7ff\ue000") for _ in range(12)).encode()
    constraint = Constraint(Pieces(), "root ::= .*")
    for byte in text:
        allowed = set(constraint.best(np.zeros(256, dtype=np.float32), None).tolist())
        assert byte in allowed and allowed == {other for other in range(256) if constraint.allows(other)}
        constraint.accept(byte)
    assert constraint.may_end


def test_where_nearly_all_is_allowed_the_likeliest_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a text, with top_k 0, each of Qwen's 151,936 tokens was looked at: 0.6 s, for which everybody waited."""

    class Words:
        eog = frozenset[int]()
        pieces = [bytes(letters) for letters in itertools.product(b"abcdefghijklmnopqrst", repeat=3)]
        first_bytes = np.array([piece[0] for piece in pieces], dtype=np.int16)

        def bytes_at(self, ids: npt.NDArray[np.int64], at: int) -> npt.NDArray[np.int16]:
            return np.array([self.pieces[token][at] if at < 3 else -1 for token in ids], dtype=np.int16)

        def piece(self, token: int) -> bytes:
            return self.pieces[token]

    looked_at = list[int]()
    looks = Constraint._allows

    def allows(self: Constraint, token: int) -> bool:
        looked_at.append(token)
        return looks(self, token)

    monkeypatch.setattr(Constraint, "_allows", allows)
    logits = np.random.default_rng(1).normal(size=len(Words.pieces)).astype(np.float32)
    best = Constraint(Words(), "root ::= [^t]*").best(logits, None)
    expected = [token for token in np.argsort(-logits).tolist() if b"t" not in Words.pieces[token]]
    assert best.tolist() == expected[: len(best)] and len(best) > 1000
    assert len(looked_at) <= 4200 < len(Words.pieces)
    logits[expected[:50]] += 100.0
    assert Constraint(Words(), "root ::= [^t]*").best(logits, 10).tolist() == expected[:10]


def follow(constraint: Constraint, vocab_of: Model, text: str) -> list[bool]:
    """What the constraint says of each token of the text; it goes on as far as it allows."""
    said = []
    for token in vocab_of.vocab.tokenize(text):
        said.append(constraint.allows(token))
        if not said[-1]:
            break
        constraint.accept(token)
    return said


def test_a_trigger_begins_the_grammar_in_the_middle(demo: Model) -> None:
    grammar = 'root ::= "<call>" [0-9]+ "</call>"'
    for text, is_allowed in (
        ("any text < call > and <<call", True),
        ("so: <call>12</call>", True),
        ("<<call>1", True),
        ("<call>x", False),
        ("then <call>12</call> and", False),
    ):
        assert all(follow(Constraint(demo.vocab, grammar, "<call>"), demo, text)) == is_allowed
    constraint = Constraint(demo.vocab, grammar, "<call>", demo.vocab.tokenize("a <call>4"))
    assert not constraint.may_end and not follow(constraint, demo, "x")[-1]
    assert all(follow(constraint, demo, "</call>")) and constraint.is_over
    with pytest.raises(InvalidField, match="answer so far"):
        Constraint(demo.vocab, grammar, "<call>", demo.vocab.tokenize("a <call>x"))


HOT = SamplingParams(top_k=0, min_p=0.01)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0), HOT])
def test_the_quick_way_chooses_what_a_whole_row_would(demo: Model, params: SamplingParams) -> None:
    """As llama.cpp does it: choose freely; if the grammar forbids that, put it in front of the chain and try again."""
    params = replace(params, seed=7, grammar=JSON)
    rng = np.random.default_rng(3)
    quick = SamplerChain(demo.vocab, params, plan(params, 0), Constraint(demo.vocab, JSON))
    whole = SamplerChain(demo.vocab, params, plan(params, 0))
    whole._n_candidates = None
    official = Official(demo, JSON)
    for _ in range(150):
        logits = (rng.normal(size=demo.vocab.n_tokens) * 2).astype(np.float32)
        logits[list(demo.vocab.special.values())] = -30.0
        allowed = np.array([token for token in sorted(official.allowed()) if is_text(demo.vocab.piece(token))])
        if not len(allowed):
            break
        expected = whole._choose(logits, np.arange(demo.vocab.n_tokens))
        if expected not in allowed:
            expected = whole._choose(logits, allowed)
        got = quick.sample(logits.copy())
        assert got == expected
        whole.accept(expected)
        official.accept(expected)
        if expected in demo.vocab.eog:
            break
    quick.close()
    whole.close()
    official.close()


def test_a_grammar_costs_microseconds_where_the_choice_is_right(demo: Model) -> None:
    """Not seconds on the clock, which a busy machine stretches: how many places are visited."""
    automaton = Automaton(read_checked(JSON))
    state = automaton.advance(automaton.start, '{"name": "')
    assert state is not None
    n_kept = len(automaton._states)
    for text in ("some words", "word some", "rows"):
        state = automaton.advance(state, text)
        assert state is not None
    assert len(automaton._states) <= n_kept + 1, "inside a text there is one state"
