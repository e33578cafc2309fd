"""The JSON of POST /v1/chat/completions -> messages, SamplingParams and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.api.messages import MESSAGES, chat_messages
from server.api.parameters import (
    CALLERS,
    GRAMMAR,
    IGNORE_EOS,
    LOGIT_BIAS,
    MAX_TOKENS,
    MAX_TOP,
    MODEL,
    SAMPLING,
    STOP,
    STREAM,
    STREAM_OPTIONS,
    N,
    sampling_params,
)
from server.api.report import Report
from server.api.table import Anything, Choice, Field, Flag, ListOf, Number, Table, Text
from server.api.tools import PARALLEL, RESPONSE_FORMAT, TOOL_CHOICE, TOOLS, Form, asked_in_chat, form_of
from server.chat import ChatMessage
from server.engine.sampling import SamplingParams
from server.errors import InvalidField

CHAT = Table(
    (
        MODEL,
        MESSAGES,
        *SAMPLING,
        Field("max_completion_tokens", MAX_TOKENS.kind, "The newer name of max_tokens, and stronger."),
        MAX_TOKENS,
        STOP,
        N,
        STREAM,
        STREAM_OPTIONS,
        Field("logprobs", Flag(), "Give the log probability of each token."),
        Field("top_logprobs", Number(int, 0, MAX_TOP), "With logprobs: so many alternatives to each token."),
        LOGIT_BIAS,
        RESPONSE_FORMAT,
        TOOLS,
        TOOL_CHOICE,
        PARALLEL,
        GRAMMAR,
        IGNORE_EOS,
        Field(
            "truncation",
            Choice(("disabled", "auto")),
            'What happens to a history that does not fit: "auto" leaves the oldest turns out, "disabled" refuses.',
        ),
        *CALLERS,
        Field("cache_prompt", Flag(), ignored="what was read before is always used again.", allows=(True,)),
        Field("store", Flag(), ignored="nothing is kept here.", allows=(False,)),
        Field("reasoning_effort", Text(), ignored="this model does not think before it speaks.", allows=("none",)),
        Field("verbosity", Text(), ignored="ask for short or long answers in the messages."),
        Field("prediction", Anything(), ignored="text that repeats itself is guessed anyway."),
        Field("web_search_options", Anything(), ignored="this server never searches the web."),
        Field("modalities", ListOf(Text()), refused="this model only writes text.", allows=(["text"],)),
        Field("audio", Anything(), refused="this model only writes text."),
        Field("functions", ListOf(Anything()), refused="give tools instead.", allows=([],)),
        Field("function_call", Anything(), refused="give tool_choice instead.", allows=("auto", "none")),
    )
)


@dataclass(frozen=True)
class ChatRequest:
    messages: list[ChatMessage]
    params: SamplingParams
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    truncates: bool = False
    """Leave the oldest turns out when they don't fit, instead of refusing."""
    form: Form = Form()


def parse_chat(body: Mapping[str, Any], defaults: SamplingParams, report: Report) -> ChatRequest:
    """defaults: what a field that is absent or null means. What is not honoured goes into report."""
    given = CHAT.read(body, "", report)
    form = form_of(asked_in_chat(given, report), report)
    return ChatRequest(
        chat_messages(given["messages"]),
        _params(given, defaults, form),
        given.get("n", 1),
        given.get("stream", False),
        given.get("stream_options", {}).get("include_usage", False),
        given.get("truncation") == "auto",
        form,
    )


def _params(given: dict[str, Any], defaults: SamplingParams, form: Form) -> SamplingParams:
    if "top_logprobs" in given and not given.get("logprobs"):
        raise InvalidField("top_logprobs", "it needs logprobs: true.")
    n_top = given.get("top_logprobs", 0) if given.get("logprobs") else None
    if form.is_call:
        given.pop("stop", None)
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    return sampling_params(given, defaults, form.grammar, form.trigger, n_top)
