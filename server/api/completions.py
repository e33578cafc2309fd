"""POST /v1/completions: a text goes on, without a chat template."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.api.answering import DONE, Prompt, error_frame, respond, submit
from server.api.choice import Choice, Step, old_logprobs_json, timings_json, usage_json
from server.api.parameters import (
    CALLERS,
    GRAMMAR,
    IGNORE_EOS,
    LOGIT_BIAS,
    MAX_CHOICES,
    MAX_TOKENS,
    MAX_TOP,
    MODEL,
    SAMPLING,
    STOP,
    STREAM,
    STREAM_OPTIONS,
    N,
    check_model,
    choices,
    sampling_params,
)
from server.api.prompts import PROMPT, token_ids
from server.api.report import Report
from server.api.table import Field, Flag, Number, Table, Text
from server.api.tool_splitter import Said
from server.body import read_json
from server.engine.sampling import SamplingParams
from server.engine.sequence import Event, Finished, TextDelta
from server.errors import InvalidField, SparrowError
from server.sse import sse
from server.state import AppState

DEFAULT_TOKENS = 16
"""OpenAI's default of max_tokens: a text has no end of its own."""

COMPLETIONS = Table(
    (
        MODEL,
        PROMPT,
        *SAMPLING,
        MAX_TOKENS,
        STOP,
        N,
        Field("best_of", Number(int, 1, MAX_CHOICES), "At most n: there is nobody here who could say which is best."),
        STREAM,
        STREAM_OPTIONS,
        Field("logprobs", Number(int, 0, MAX_TOP), "The log probability of each token, and of so many alternatives."),
        Field("echo", Flag(), "Begin the text with the prompt."),
        LOGIT_BIAS,
        GRAMMAR,
        IGNORE_EOS,
        *CALLERS,
        Field("suffix", Text(), refused="this model can only go on behind a text.", allows=("",)),
        Field("cache_prompt", Flag(), ignored="what was read before is always used again.", allows=(True,)),
    )
)


@dataclass(frozen=True)
class CompletionRequest:
    """prompts: texts, or tokens. n: answers to each of them."""

    prompts: list[str | list[int]]
    params: SamplingParams
    n: int
    stream: bool
    include_usage: bool
    echo: bool


def parse_completion(body: Mapping[str, Any], defaults: SamplingParams, report: Report) -> CompletionRequest:
    given = COMPLETIONS.read(body, "", report)
    n, prompts = given.get("n", 1), given["prompt"]
    if given.get("best_of", n) > n:
        raise InvalidField("best_of", f"{given['best_of']} is more than n; give at most {n}, or leave it out.")
    if n * len(prompts) > MAX_CHOICES:
        raise InvalidField("prompt", f"{len(prompts)} prompts with n = {n} are more than {MAX_CHOICES} answers.")
    if given.get("echo") and "logprobs" in given:
        raise InvalidField("echo", "the prompt's log probabilities are not known; leave out echo or logprobs.")
    given.setdefault("max_tokens", DEFAULT_TOKENS)
    params = sampling_params(given, defaults, given.get("grammar", ""), n_top=given.get("logprobs"))
    usage = given.get("stream_options", {}).get("include_usage", False)
    return CompletionRequest(prompts, params, n, given.get("stream", False), usage, given.get("echo", False))


async def completions(request: Request[AppState]) -> Response:
    """POST /v1/completions, streamed or whole."""
    engine, report, body = request.state["engine"], Report(), await read_json(request)
    asked = parse_completion(body, engine.sampling_defaults, report)
    check_model(body, engine.model.name, report)
    report.settle(is_strict=request.state["settings"].strict)
    with engine.expecting():
        tokens = await run_in_threadpool(lambda: [token_ids(engine.vocab, each, "prompt") for each in asked.prompts])
        running = await submit(request, [Prompt(ids, choices(asked.params, asked.n)) for ids in tokens], "prompt")
    echoed = [_text(request, prompt) if asked.echo else "" for prompt in asked.prompts]
    return await respond(request, running, _Completion(engine.model.name, asked, echoed, report), report, asked.stream)


def _text(request: Request[AppState], prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return b"".join(map(request.state["engine"].vocab.piece, prompt)).decode("utf-8", "replace")


class _Completion:
    """The JSON of one reply, whole or chunk by chunk."""

    def __init__(self, model: str, asked: CompletionRequest, echoed: list[str], report: Report) -> None:
        """echoed: for each prompt, what its choices begin with."""
        self.choices = [Choice() for _ in range(asked.n * len(asked.prompts))]
        self._asked, self._echoed, self._report = asked, echoed, report
        self._head: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self) -> dict[str, Any]:
        made = []
        for index, choice in enumerate(self.choices):
            echoed = self._echoed[index // self._asked.n]
            scores = None if self._asked.params.logprobs is None else old_logprobs_json(choice.logprobs)
            made.append(_choice(index, echoed + choice.text, scores, choice.finish_reason))
        return {**self._head, "choices": made, "usage": self._usage(), **self._remarks()}

    def begin(self) -> bytes:
        echoed = [(index, self._echoed[index // self._asked.n]) for index in range(len(self.choices))]
        return b"".join(self._frame([_choice(index, text)]) for index, text in echoed if text)

    def encode(self, index: int, steps: Sequence[Step], event: Event) -> bytes:
        text = "".join(step.part.text for step in steps if isinstance(step.part, Said))
        if isinstance(event, TextDelta):
            scores = old_logprobs_json(event.logprobs) if event.logprobs else None
            return self._frame([_choice(index, text, scores)])
        assert isinstance(event, Finished)
        is_last = all(choice.finished for choice in self.choices) and not self._asked.include_usage
        return self._frame(
            [_choice(index, text, None, self.choices[index].finish_reason)], self._remarks() if is_last else {}
        )

    def end(self) -> bytes:
        usage = {"usage": self._usage(), **self._remarks()}
        return (self._frame([], usage) if self._asked.include_usage else b"") + DONE

    def fail(self, error: SparrowError) -> bytes:
        return error_frame(error)

    def _usage(self) -> dict[str, Any]:
        return usage_json([choice.usage for choice in self.choices], self._asked.n)

    def _remarks(self) -> dict[str, Any]:
        timings = timings_json([choice.usage for choice in self.choices], self._asked.n)
        return {"timings": timings, **self._report.json()}

    def _frame(self, made: list[dict[str, Any]], more: Mapping[str, Any] | None = None) -> bytes:
        usage = {"usage": None} if self._asked.include_usage else {}
        return sse(json.dumps({**self._head, "choices": made, **usage, **(more or {})}, ensure_ascii=False))


def _choice(index: int, text: str, scores: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}
