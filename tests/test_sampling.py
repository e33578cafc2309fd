"""Sampling: fields that are wrong name themselves; the chain as data; the shortcut chooses what the whole row would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.llama import Model
from server.engine.sampler import SamplerChain
from server.engine.sampling import SamplingParams, n_candidates, plan
from server.engine.topk import Best, log_probabilities, top_ids
from server.errors import InvalidField


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repeat_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", float("-inf")),
        ("seed", 2**64),
        ("stop", ("a", "b", "c", "d", "e")),
        ("stop", ("",)),
        ("logit_bias", ((1, 5.0), (2, 101.0))),
        ("logit_bias", ((1, float("nan")),)),
        ("logprobs", 21),
        ("logprobs", -1),
        ("grammar", "x" * 300_000),
        ("grammar_trigger", "<tool_call>"),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field and field in caught.value.message


GREEDY = SamplingParams(temperature=0.0, repeat_penalty=1.0)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), "penalties(64, 1.1, 0.0, 0.0) top_k(20) top_p(0.8, 1) temp(0.7) dist(5)"),
        (GREEDY, "greedy()"),
        (SamplingParams(temperature=0.0), "penalties(64, 1.1, 0.0, 0.0) greedy()"),
        (SamplingParams(repeat_penalty=1.0, top_k=0, top_p=1.0, min_p=0.1), "min_p(0.1, 1) temp(0.7) dist(5)"),
        (SamplingParams(seed=-1, repeat_penalty=1.0, top_p=1.0), "top_k(20) temp(0.7) dist(4294967295)"),
    ],
)
def test_the_chain_as_data(params: SamplingParams, expected: str) -> None:
    got = " ".join(f"{name}({', '.join(map(str, arguments))})" for name, arguments in plan(params, 5))
    assert got == expected


def test_the_defaults_are_qwens_official_ones() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.repeat_penalty) == (0.7, 0.8, 20, 1.1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000), st.integers(1, 400))
def test_top_ids_are_exactly_the_largest(seed: int, n: int, k: int) -> None:
    logits = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    if seed % 3 == 0:  # many equal values, and minus infinity
        logits = np.where(logits < 0, -np.inf, np.round(logits)).astype(np.float32)
    got = top_ids(logits, k)
    assert len(set(got.tolist())) == len(got) == min(n, k)
    assert sorted(logits[got]) == sorted(logits)[n - min(n, k) :]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.5, top_k=40, top_p=0.95, repeat_penalty=1.3),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, presence_penalty=1.0, frequency_penalty=0.5, top_p=1.0),
        GREEDY,
        SamplingParams(ignore_eos=True),
        SamplingParams(logit_bias=((3, 10.0), (5, -100.0), (7, 2.5), (100, 100.0)), presence_penalty=2.0),
    ],
    ids=["official", "hot", "greedy", "penalties", "plain-greedy", "endless", "biased"],
)
def test_the_shortcut_chooses_what_the_whole_row_would(tiny_model: Model, params: SamplingParams) -> None:
    """Two thousand steps, the same seed: one chain sees the k best candidates, one those that are known, one all."""
    vocab = tiny_model.vocab
    params = replace(params, seed=11)
    short, known, whole = (SamplerChain(vocab, params, plan(params, 0)) for _ in range(3))
    whole._n_candidates = None
    assert n_candidates(params) is not None
    rng = np.random.default_rng(1)
    for _ in range(2000):
        logits = (rng.normal(size=vocab.n_tokens) * 3).astype(np.float32)
        token = whole.sample(logits.copy())
        assert short.sample(logits.copy()) == token
        assert known.sample(logits.copy(), Best(top_ids(logits, 160), 120)) == token
    for chain in (short, known, whole):
        chain.close()


@pytest.mark.parametrize("n_sure", [0, 64, 65, 68, 120])
def test_known_candidates_are_not_taken_where_they_may_not_be_enough(tiny_model: Model, n_sure: int) -> None:
    params = replace(GREEDY, presence_penalty=0.5, ignore_eos=True)
    chain = SamplerChain(tiny_model.vocab, params, plan(params, 0))
    logits = np.zeros(tiny_model.vocab.n_tokens, dtype=np.float32)
    logits[65] = 1.0
    taken = chain.sample(logits, Best(np.array([70, 71]), n_sure))
    n_needed = 65 + len(tiny_model.vocab.eog)
    assert taken == (65 if n_sure < n_needed else 70)
    chain.close()


def test_penalties_that_raise_and_no_top_k_need_the_whole_row() -> None:
    for params in (SamplingParams(repeat_penalty=0.9), SamplingParams(presence_penalty=-1.0), SamplingParams(top_k=0)):
        assert n_candidates(params) is None


def test_ignore_eos_never_ends(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    params = replace(GREEDY, ignore_eos=True)
    chain = SamplerChain(vocab, params, plan(params, 0))
    logits = np.zeros(vocab.n_tokens, dtype=np.float32)
    logits[list(vocab.eog)] = 100.0
    logits[65] = 1.0
    assert chain.sample(logits) == 65
    chain.close()


def test_a_bias_is_added_before_all_else(tiny_model: Model) -> None:
    vocab = tiny_model.vocab
    logits = np.zeros(vocab.n_tokens, dtype=np.float32)
    logits[[65, 66, 67]] = [50.0, 49.0, 20.0]
    for bias, expected in (((), 65), (((65, -2.0),), 66), (((65, -100.0), (66, -100.0), (67, 1.0)), 67)):
        params = replace(GREEDY, logit_bias=bias)
        chain = SamplerChain(vocab, params, plan(params, 0))
        assert chain.sample(logits.copy()) == expected
        chain.close()


def test_log_probabilities_are_those_of_a_softmax() -> None:
    logits = (np.random.default_rng(2).normal(size=5000) * 30).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64) - logits.max()).sum()) - logits.max()
    ids = np.array([0, 17, int(logits.argmax())])
    assert np.allclose(log_probabilities(logits, ids), exact[ids], atol=1e-5)
