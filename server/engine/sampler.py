"""llama.cpp's samplers, on as few candidates as choose the same token as all of them would."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import llama_cpp
import numpy as np

from server.engine.constraint import Constraint
from server.engine.sampling import SamplingParams, Stage, n_candidates
from server.engine.topk import Best, Ids, Logits, top_ids
from server.engine.vocab import Vocab

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data, so that an array of candidates is what llama.cpp reads and writes."""

_INIT: dict[str, Callable[..., object]] = {
    "top_k": llama_cpp.llama_sampler_init_top_k,
    "top_p": llama_cpp.llama_sampler_init_top_p,
    "min_p": llama_cpp.llama_sampler_init_min_p,
    "temp": llama_cpp.llama_sampler_init_temp,
    "greedy": llama_cpp.llama_sampler_init_greedy,
    "dist": llama_cpp.llama_sampler_init_dist,
}


class SamplerChain:
    """llama.cpp's samplers for one answer, with their state (the last tokens, the random numbers)."""

    def __init__(
        self, vocab: Vocab, params: SamplingParams, stages: Sequence[Stage], constraint: Constraint | None = None
    ) -> None:
        self._constraint = constraint
        self._biased = np.array([token for token, _ in params.logit_bias], dtype=np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], dtype=np.float32)
        self._banned = np.array(sorted(vocab.eog), dtype=np.int64) if params.ignore_eos else None
        self._n_candidates = n_candidates(params)
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for name, arguments in stages:
            if name == "penalties":
                link = llama_cpp.llama_sampler_init_penalties(vocab.n_tokens, *arguments)
            else:
                link = _INIT[name](*arguments)
            llama_cpp.llama_sampler_chain_add(self._chain, link)

    def accept(self, token: int) -> None:
        """`token` has become part of the sequence: the penalties count it."""
        llama_cpp.llama_sampler_accept(self._chain, token)

    def sample(self, logits: Logits, best: Best | None = None) -> int | None:
        """The next token; it is accepted too. None: the grammar allows none. `logits` may be changed; best: of them.

        Raises InvalidField when the grammar is too ambiguous.
        """
        if len(self._biased):
            np.add.at(logits, self._biased, self._biases)
        if self._banned is not None:
            logits[self._banned] = -np.inf
        token = self._choose(logits, self._candidates(logits, best))
        allowed = token if self._constraint is None else self._follow(self._constraint, logits, token)
        if allowed is not None:
            self.accept(allowed)
        return allowed

    def _candidates(self, logits: Logits, best: Best | None) -> Ids:
        """Those that are known will do, unless too many are needed or a bias may have raised others above them."""
        n_banned = 0 if self._banned is None else len(self._banned)
        if best and self._n_candidates and not len(self._biased) and self._n_candidates + n_banned <= best.n_sure:
            return best.ids
        return top_ids(logits, self._n_candidates)

    def _follow(self, constraint: Constraint, logits: Logits, token: int) -> int | None:
        """The token if the grammar allows it, else one that is chosen from those that it allows."""
        if not constraint.allows(token):
            ids = constraint.best(logits, self._n_candidates)
            if not len(ids):
                return None
            token = self._choose(logits, ids)
        constraint.accept(token)
        return token

    def _choose(self, logits: Logits, ids: Ids) -> int:
        """What the chain takes of these candidates."""
        candidates = np.empty(len(ids), dtype=_CANDIDATE)
        candidates["id"], candidates["logit"] = ids, logits[ids]
        data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data=data, size=len(ids), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def close(self) -> None:
        if self._chain:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None
