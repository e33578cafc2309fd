"""How an answer is chosen: validated parameters, and the sampler chain they mean, as data. Pure.

The defaults are Qwen2.5's official ones (generation_config.json of Qwen/Qwen2.5-0.5B-Instruct); llama.cpp's differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidField

MAX_STOPS = 4
"""As many stop strings as OpenAI's API takes."""

MAX_LOGPROBS = 20
"""As many alternatives for each token as OpenAI's API gives."""

MAX_GRAMMAR = 100_000
"""Characters of a grammar."""

PENALTY_LAST_N = 64
"""How many of the last tokens the penalties look at; llama.cpp's own default."""

Stage = tuple[str, tuple[float | int, ...]]
"""One link of the chain: llama.cpp's name of the sampler and its arguments in order."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Everything that decides an answer but the prompt. Raises InvalidField with the field's API name."""

    max_tokens: int | None = None
    """Most tokens to generate; None: as many as the context holds; 0: only read the prompt, at leisure."""
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    """0 keeps every candidate."""
    min_p: float = 0.0
    repeat_penalty: float = 1.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None: another answer each time."""
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    """Never choose a token that ends the answer: for measurements of a fixed length."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit before anything else: -100 to 100)."""
    grammar: str = ""
    """GBNF with a rule `root` that the whole answer follows; "" leaves it free."""
    grammar_trigger: str = ""
    """The grammar begins only where the answer comes to contain this text, and describes it from there on, the text
    included; "" begins at once. From there on no stop string is looked for."""
    logprobs: int | None = None
    """How many alternatives each token's log probability comes with, 0 to 20; None: no log probabilities."""

    def __post_init__(self) -> None:
        _check(self.max_tokens is None or self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
        _check(0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "between 0 and 2")
        _check(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _check(0 <= self.top_k < 2**31, "top_k", self.top_k, "0 or more")
        _check(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "between 0 and 1")
        _check(0.0 < self.repeat_penalty <= 10.0, "repeat_penalty", self.repeat_penalty, "above 0 and at most 10")
        _check(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "between -2 and 2")
        _check(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "between -2 and 2")
        _check(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit whole number")
        _check(len(self.stop) <= MAX_STOPS, "stop", len(self.stop), f"at most {MAX_STOPS} strings")
        _check(all(self.stop), "stop", '""', "strings that are not empty")
        for token, bias in self.logit_bias:
            _check(-100.0 <= bias <= 100.0, "logit_bias", f"{bias} for token {token}", "between -100 and 100")
        n_alternatives = self.logprobs or 0
        _check(0 <= n_alternatives <= MAX_LOGPROBS, "logprobs", self.logprobs, f"0 to {MAX_LOGPROBS}")
        n_letters = len(self.grammar)
        _check(n_letters <= MAX_GRAMMAR, "grammar", f"{n_letters} characters", f"at most {MAX_GRAMMAR}")
        _check(bool(self.grammar or not self.grammar_trigger), "grammar_trigger", "without a grammar", "a grammar, too")

    @property
    def has_penalties(self) -> bool:
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check(holds: bool, param: str, value: Any, wanted: str) -> None:
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidField(param, f"{value} is out of range; give {wanted}.")


def plan(params: SamplingParams, seed: int) -> tuple[Stage, ...]:
    """The sampler chain of `params`, first link first; `seed` (32 bits) is used where params names none.

    Temperature 0 is greedy: penalties still hold, nothing is drawn. The order is llama.cpp's own.
    """
    stages: list[Stage] = []
    if params.has_penalties:
        penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        stages.append(("penalties", (PENALTY_LAST_N, *penalties)))
    if params.temperature == 0.0:
        return (*stages, ("greedy", ()))
    if params.top_k:
        stages.append(("top_k", (params.top_k,)))
    if params.top_p < 1.0:
        stages.append(("top_p", (params.top_p, 1)))
    if params.min_p > 0.0:
        stages.append(("min_p", (params.min_p, 1)))
    stages.append(("temp", (params.temperature,)))
    return (*stages, ("dist", ((seed if params.seed is None else params.seed) & 0xFFFFFFFF,)))


def n_candidates(params: SamplingParams) -> int | None:
    """How many of the largest logits are enough for the chain to choose as it would from all; None: it needs all.

    Penalties that only lower logits can push at most PENALTY_LAST_N tokens out of the top k, so so many more are
    kept. A penalty that raises logits, or no top_k, can reach any token.
    """
    raises = params.repeat_penalty < 1.0 or params.presence_penalty < 0.0 or params.frequency_penalty < 0.0
    k = 1 if params.temperature == 0.0 else params.top_k
    if raises or k == 0:
        return None
    return k + (PENALTY_LAST_N if params.has_penalties else 0)
