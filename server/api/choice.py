"""One choice of a reply as far as it has come, and the JSON of what replies have in common."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.tool_splitter import Argued, Called, Part, Said, ToolCallSplitter
from server.engine.sequence import Event, Finished, TextDelta, TokenLogprob, Usage

_FINISH = {"stop": "stop", "length": "length", "time": "length", "cancelled": "stop", "error": "error"}


@dataclass
class Call:
    """A tool call that the model asks for. arguments: JSON, as far as it is written."""

    id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True)
class Step:
    """A part of an answer. call: the place, among the answer's calls, of the one that it belongs to or follows.

    scores: of the tokens that came since the last part; what held the text back holds them back, too.
    """

    call: int
    part: Part
    scores: tuple[TokenLogprob, ...] = ()


class Choice:
    """What a choice's events say together."""

    def __init__(self, *, has_tools: bool = False) -> None:
        self._splitter = ToolCallSplitter() if has_tools else None
        self._said: list[str] = []
        self.calls: list[Call] = []
        self.steps: list[Step] = []
        self.logprobs: list[TokenLogprob] = []
        self._n_scored = 0
        self.finished: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self._said)

    @property
    def finish_reason(self) -> str:
        assert self.finished is not None
        return "tool_calls" if self.calls and self.finished.reason == "stop" else _FINISH[self.finished.reason]

    @property
    def usage(self) -> Usage:
        assert self.finished is not None
        return self.finished.usage

    def push(self, event: Event) -> list[Step]:
        """The next event, and what it adds."""
        if isinstance(event, TextDelta):
            self.logprobs += event.logprobs
            parts: list[Part] = self._splitter.push(event.text) if self._splitter else [Said(event.text)]
        else:
            self.finished = event
            parts = self._splitter.flush() if self._splitter else []
        steps = [Step(self._take(part), part, self._new_scores()) for part in parts]
        self.steps += steps
        return steps

    def _new_scores(self) -> tuple[TokenLogprob, ...]:
        new, self._n_scored = tuple(self.logprobs[self._n_scored :]), len(self.logprobs)
        return new

    def _take(self, part: Part) -> int:
        if isinstance(part, Said):
            self._said.append(part.text)
        elif isinstance(part, Called):
            self.calls.append(Call(f"call_{secrets.token_hex(12)}", part.name))
        else:
            assert isinstance(part, Argued)
            self.calls[-1].arguments += part.text
        return len(self.calls) - 1


def usage_json(usages: Sequence[Usage], n_per_prompt: int = 1) -> dict[str, Any]:
    """OpenAI's usage of choices of which n_per_prompt neighbours share a prompt, which counts once."""
    n_prompt = sum(usage.n_prompt for usage in usages[::n_per_prompt])
    n_completion = sum(usage.n_completion for usage in usages)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.n_reused for usage in usages[::n_per_prompt])},
    }


def timings_json(usages: Sequence[Usage], n_per_prompt: int = 1) -> dict[str, Any]:
    """llama-server's timings. Choices are written side by side: the slowest one's time is that of all."""
    prompts = usages[::n_per_prompt]
    n_read = sum(usage.n_prompt - usage.n_reused for usage in prompts)
    n_written = sum(usage.n_completion for usage in usages)
    prompt_s, decode_s = sum(usage.prompt_s for usage in prompts), max(usage.decode_s for usage in usages)
    return {
        "cache_n": sum(usage.n_reused for usage in prompts),
        **_timing("prompt", n_read, prompt_s),
        **_timing("predicted", n_written, decode_s),
    }


def _timing(name: str, n: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": n,
        f"{name}_ms": round(seconds * 1000, 3),
        f"{name}_per_token_ms": round(seconds * 1000 / n, 3) if n else 0.0,
        f"{name}_per_second": round(n / seconds, 2) if seconds else 0.0,
    }


def logprobs_json(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """As in chat completions."""
    content = [
        {
            **_scored(token.piece, token.logprob),
            "top_logprobs": [_scored(piece, score) for _, piece, score in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def old_logprobs_json(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """As in completions. Half a character begins where the whole one does."""
    return {
        "tokens": [_text(token.piece) for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{_text(piece): finite(score) for _, piece, score in token.top} for token in tokens],
        "text_offset": [token.at for token in tokens],
    }


def finite(score: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what can't be."""
    return round(score, 6) if math.isfinite(score) else -9999.0


def _scored(piece: bytes, score: float) -> dict[str, Any]:
    return {"token": _text(piece), "logprob": finite(score), "bytes": list(piece)}


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
