"""What decides an answer but the prompt, the same on every route: rows of fields, and the SamplingParams they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.api.report import Report
from server.api.table import Anything, Custom, Either, Field, Flag, Kind, ListOf, Number, Schema, Table, Text
from server.engine.sampling import MAX_STOPS, SamplingParams
from server.errors import InvalidField
from server.fields import number

MAX_CHOICES = 16
"""Answers that one request may ask for: half of what may wait for a slot."""

MAX_TOP = 20
"""Alternatives to a token that one may ask for, as in OpenAI's API."""

_INT64 = 2**63 - 1

SAMPLING = (
    Field("temperature", Number(float, 0, 2), "0 always takes the likeliest token. Default: the model's own."),
    Field("top_p", Number(float, above=0, most=1), "Keep the likeliest tokens that together have this probability."),
    Field("top_k", Number(int, 0, 2**31 - 1), "Keep so many of the likeliest tokens; 0 keeps all."),
    Field("min_p", Number(float, 0, 1), "Keep tokens with at least this share of the likeliest one's probability."),
    Field("repeat_penalty", Number(float, above=0, most=10), "Divide the odds of the last 64 tokens; 1 does nothing."),
    Field("presence_penalty", Number(float, -2, 2), "Lower a token that stands among the last 64."),
    Field("frequency_penalty", Number(float, -2, 2), "Lower a token for each time that it stands among the last 64."),
    Field(
        "seed", Number(int, -(2**63), _INT64), "The same seed and prompt give the same answer; choice i has seed + i."
    ),
)

_LENGTH = Number(int, 0, _INT64)

MODEL = Field("model", Text(), "Any name is served by the model that is loaded; another one's is reported.")
STOP = Field(
    "stop",
    Either((Text(1), ListOf(Text(1), 0, MAX_STOPS, "texts")), "give a text or a list of texts."),
    "The answer ends before the first of these texts; at most four. None is looked for inside a tool call.",
)
MAX_TOKENS = Field("max_tokens", _LENGTH, "Most tokens of the answer; 0 only reads the prompt, for the next request.")
N = Field("n", Number(int, 1, MAX_CHOICES), "How many answers to give.")
STREAM = Field("stream", Flag(), "Send the answer as server-sent events while it is written.")
_STREAM_OPTIONS = Table(
    (
        Field("include_usage", Flag(), "Send the usage in a chunk of its own at the end."),
        Field("include_obfuscation", Flag(), ignored="nothing is padded here.", allows=(False,)),
    )
)
STREAM_OPTIONS = Field("stream_options", _STREAM_OPTIONS, 'Like {"include_usage": true}.')
GRAMMAR = Field("grammar", Text(), "A grammar in llama.cpp's GBNF that the answer follows.")
IGNORE_EOS = Field("ignore_eos", Flag(), "Never end before max_tokens: for measurements.")

_CALLERS: dict[str, Kind] = {
    "user": Text(),
    "safety_identifier": Text(),
    "prompt_cache_key": Text(),
    "prompt_cache_retention": Text(),
    "service_tier": Text(),
    "metadata": Anything(is_object=True),
}

CALLERS = tuple(Field(name, kind, "Accepted; it changes nothing here.") for name, kind in _CALLERS.items())
"""What a caller tells a large provider about itself. Nothing is asked for with it, so there is nothing to report."""


def _bias(given: Any, where: str) -> tuple[tuple[int, float], ...]:
    if not isinstance(given, Mapping):
        raise InvalidField(where, 'give an object of token ids and numbers, like {"42": -100}.')
    return tuple(_one_bias(token, bias, where) for token, bias in given.items())


def _one_bias(token: str, bias: Any, where: str) -> tuple[int, float]:
    if not (token.isascii() and token.isdigit() and len(token) < 10):
        raise InvalidField(where, f"{token[:20]!r} is no token id; /tokenize gives the ids of a text.")
    value = number(bias, f"{where}.{token}", float)
    if not -100 <= value <= 100:
        raise InvalidField(f"{where}.{token}", f"{value} is out of range; give -100 to 100.")
    return int(token), float(value)


_BIAS_SCHEMA: Schema = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
LOGIT_BIAS = Field(
    "logit_bias", Custom(_bias, _BIAS_SCHEMA), "Added to the logits of these tokens: -100 forbids one, 100 forces it."
)

_SAME_NAME = {field.name for field in (*SAMPLING, MAX_TOKENS, IGNORE_EOS, LOGIT_BIAS)}


def sampling_params(
    given: Mapping[str, Any], defaults: SamplingParams, grammar: str = "", trigger: str = "", n_top: int | None = None
) -> SamplingParams:
    """given: what a table has read; defaults: what is absent means; n_top: see SamplingParams.logprobs."""
    values = {name: value for name, value in given.items() if name in _SAME_NAME}
    if "stop" in given:
        values["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    if grammar and given.get("ignore_eos"):
        raise InvalidField("ignore_eos", "an answer of a given form has an end; leave it out.")
    return replace(defaults, **values, grammar=grammar, grammar_trigger=trigger, logprobs=n_top)


def check_model(given: Mapping[str, Any], name: str, report: Report) -> None:
    """Any name is served, since there is one model; a program that asked for another may want to know."""
    asked = given.get("model") or name
    if asked != name:
        report.ignore("model", f"{asked[:80]} is not loaded; {name} answered.")


def choices(params: SamplingParams, n: int) -> list[SamplingParams]:
    """The parameters of n answers to one prompt: with one seed they would all be the same."""
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=_wrapped(params.seed + at)) for at in range(n)]


def _wrapped(seed: int) -> int:
    return seed if seed <= _INT64 else seed - 2**64
